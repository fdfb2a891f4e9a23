//! Boot phases, services, shutdown, mount and device plans as pure state machines.
