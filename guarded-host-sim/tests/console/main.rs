//! The fabric console over a real fabric: by its pages' text, and in a real browser.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod browser;
mod flows;
mod lab;
mod pages;
