//! The service over real HTTP, as a host, an owner and an administrator see it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on stops")]

mod admin;
mod audit;
mod backup;
mod busy;
mod elliptic;
mod events;
mod fabric;
mod health;
mod metadata;
mod mutations;
mod postgres;
mod precedence;
mod refusals;
mod release;
mod rotation;
mod sha1;
mod token;
