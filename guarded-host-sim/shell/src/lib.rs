//! The administrators' shell: the product's cmdlets, read and bound as PowerShell does it.

pub mod bind;
pub mod check;
pub mod cmdlets;
pub mod coverage;
pub mod syntax;
pub mod table;
pub mod value;
