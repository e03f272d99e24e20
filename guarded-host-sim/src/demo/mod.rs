//! The demonstration: a guarded fabric from set-up to refusal, told one line per step.

pub mod narrator;
