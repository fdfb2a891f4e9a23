//! Node key, root chain, membership and operator credentials.
