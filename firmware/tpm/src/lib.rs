//! Seals and unseals secrets in a TPM 2.0, with a software fallback.
