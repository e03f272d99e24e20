//! Scenarios: a fabric described in a file, what happens on it, and what must come of it.
//!
//! `model` is the file's schema, `parse` reads it. `world` is a running fabric, `act` carries a step out
//! on it, `judge` holds what came against what was expected, `report` writes it down. Everything speaks
//! HTTP with the services, as on any other fabric.

mod act;
pub mod advice;
pub mod came;
mod check;
pub mod command;
pub mod coverage;
pub mod damage;
pub mod decode;
pub mod door;
pub mod journal;
pub mod judge;
pub mod model;
pub mod parse;
pub mod pool;
pub mod report;
pub mod run;
pub mod schema;
mod teller;
pub mod testing;
pub mod weather;
pub mod world;
