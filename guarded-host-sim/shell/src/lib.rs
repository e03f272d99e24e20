//! The administrators' shell: the product's cmdlets, read and bound as PowerShell does it.

pub mod bind;
pub mod call;
pub mod check;
pub mod cmdlets;
pub mod complete;
pub mod console;
pub mod coverage;
pub mod error;
pub mod eval;
pub mod format;
pub mod help;
pub mod path;
pub mod registry;
pub mod session;
pub mod syntax;
pub mod table;
pub mod value;
pub mod wildcard;
pub mod world;
