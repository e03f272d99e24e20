//! `guarded-host-sim lesson`: guided lessons. A lesson is a data file in `lessons/`: a fabric, perhaps with a hidden fault, a task,
//! and checks of the fabric's state. What is typed is never looked at, so that any way to the goal is a good one.

mod check;
pub mod command;
mod course;
mod model;

pub use self::{
    check::Check,
    course::{Course, Grade},
    model::{Fault, Lesson, lesson, lessons},
};
