//! Safety of VMs that move and crash: what the stores' ledgers prove, and that the checker can fail.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ledgers;
#[path = "../support/mod.rs"]
mod support;

use guarded_host_sim::{
    fabric::host::SimHost,
    ledger::{self, check::Account},
};

/// What the ledgers of `hosts` say.
fn accounts(hosts: &[&SimHost]) -> Vec<Account> {
    let account = |host: &&SimHost| Account {
        host: host.name.clone(),
        entries: ledger::read(&host.folder().join("store").join(ledger::FILE)).unwrap(),
        deaths: Vec::new(),
    };
    hosts.iter().map(account).collect()
}
