//! Disk layout: GPT plan, partition labels, file systems.
