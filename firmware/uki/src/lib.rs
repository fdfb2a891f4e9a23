//! Assembles a unified kernel image: sections to PE bytes.
