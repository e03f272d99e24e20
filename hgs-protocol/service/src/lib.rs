//! The shell that both services share: configuration, listeners, TLS, the administrator's token,
//! sealed key files, database pools, the audit chain, the lab's clock and logs.
//!
//! It touches everything and decides nothing of the protocols.
