//! What deployments of a guarded fabric use of Windows, and of Virtual Machine Manager.

mod certificates;
mod ci_policy;
mod cim;
mod computer;
mod events;
mod network;
mod tables;
mod vmm;

pub(super) use self::tables::{ALL, CORE};

use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
};

/// Something that this lab does not do.
fn outside(call: &mut Call<'_>, why: &str) -> Outcome {
    let name = call.name();
    Err(call.fail(ErrorRecord::new(
        Category::NotImplemented,
        "NotInThisLab",
        format!("{name} is not carried out in this lab: {why}."),
    )))
}
