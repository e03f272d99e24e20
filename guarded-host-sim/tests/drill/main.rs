//! Crash drills: a seeded tenth of what `./lab drill` plays, runs that are spoiled on purpose, and how a VM comes back
//! after a migration that was cut short.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod liveness;
#[path = "../support/mod.rs"]
mod support;
mod whole;
