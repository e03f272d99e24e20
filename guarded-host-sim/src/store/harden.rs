//! What a process can do for the secrets in its memory: no core dumps, no tracing by its own user,
//! no swapping. Refusals are reported; containers often refuse the last.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, set_dumpable_behavior},
};

/// Applies all three and says which were refused.
pub(super) fn harden() -> Vec<String> {
    let mut refused = Vec::new();
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        refused.push(format!(
            "the system refused to make the VBS store not dumpable: {error}"
        ));
    }
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        refused.push(format!(
            "the system refused to lock the VBS store's memory, which may be swapped out: {error}"
        ));
    }
    refused
}
