//! The shell that both services share: configuration, listeners, TLS, the administrator's token,
//! sealed keys, backups, database pools, the audit chain, the lab's clock and logs.
//!
//! It touches everything and decides nothing of the protocols.

pub mod audit;
pub mod audit_command;
pub mod backup;
pub mod database;
pub mod lab_clock;
pub mod sealed;
pub mod serve;
pub mod settings;
pub mod telemetry;
pub mod tls;
pub mod tokens;
