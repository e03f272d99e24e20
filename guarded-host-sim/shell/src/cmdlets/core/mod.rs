//! PowerShell's own cmdlets.

mod content;
mod data;
mod filter;
mod help;
mod item;
mod location;
mod object;
mod output;
mod property;
mod remote;
mod transfer;
mod variable;
mod write;

use super::Implementation;

/// All of them.
pub(super) const ALL: [&[Implementation]; 13] = [
    content::ALL,
    data::ALL,
    filter::ALL,
    help::ALL,
    item::ALL,
    location::ALL,
    object::ALL,
    output::ALL,
    property::ALL,
    remote::ALL,
    transfer::ALL,
    variable::ALL,
    write::ALL,
];
