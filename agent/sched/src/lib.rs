//! Cell membership, placement, grants and healing as a pure state machine.
