//! The shell that the services share, and with it the owner's tools: configuration, listeners, TLS, tokens,
//! sealed keys, key files, backups, database pools, the audit chain, events, the lab's clock and logs.
//!
//! It touches everything and decides nothing of the protocols.

pub mod audit;
pub mod audit_command;
pub mod backup;
pub mod database;
pub mod events;
pub mod lab_clock;
pub mod pair_files;
pub mod sealed;
pub mod serve;
pub mod settings;
pub mod telemetry;
pub mod tls;
pub mod tokens;
mod watch;
