//! Guarded hosts, simulated on real parts: TPMs (swtpm), boot logs, a VBS store and an agent in
//! processes of their own, and the virtual machines that run on them.

pub mod agent;
pub mod child;
pub mod client;
pub mod cluster;
pub mod cmdlets;
pub mod commit_point;
pub mod console;
pub mod demo;
pub mod drill;
pub mod event_log;
pub mod fabric;
pub mod gallery;
pub mod lab;
pub mod ledger;
pub mod lesson;
pub mod load;
pub mod machine;
pub mod owner;
pub mod remedy;
pub mod renew_signer;
pub mod scenario;
pub mod shell;
pub mod shielding;
pub mod store;
pub mod swtpm;
pub mod tpm_channel;
pub mod vm;
