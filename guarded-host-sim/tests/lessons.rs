//! Every lesson has a solution that is accepted, and an attempt that is not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{process::Command, thread};

use guarded_host_sim::lesson::{Course, Grade, lesson, lessons};
use hgs_shell::console::Recorder;
use support::Folder;

fn attempt(name: &str, script: impl FnOnce(&guarded_host_sim::lesson::Lesson) -> String) -> (Grade, Grade, String) {
    let lesson = lesson(name).unwrap();
    let script = script(&lesson);
    let folder = Folder::new();
    let mut course = Course::begin(lesson, &folder.0).unwrap_or_else(|e| panic!("{name}: {e:#}"));
    let before = course.grade();
    let recorder = Recorder::default();
    let mut session = course.session(Box::new(recorder.clone())).unwrap();
    session.run(&script);
    course.count_step();
    let after = course.grade();
    drop(session);
    drop(course);
    (before, after, recorder.all())
}

/// Shells need room; says SKIPPED where there is no software TPM.
fn in_room(name: &'static str, test: impl FnOnce() + Send + 'static) {
    if Command::new("swtpm").arg("--version").output().is_err() {
        println!("SKIPPED {name}: swtpm is not installed");
        return;
    }
    thread::Builder::new()
        .stack_size(64 << 20)
        .spawn(test)
        .unwrap()
        .join()
        .unwrap();
}

fn is_solved_and_not_by_a_wrong_way(name: &'static str) {
    in_room(name, move || {
        let (before, after, told) = attempt(name, |lesson| lesson.solution.clone());
        assert!(!before.passed, "{name} is passed before anything was done");
        assert!(after.passed, "{name}: {:?}\n{told}", after.checks);
        assert_eq!((after.steps, after.hints), (1, 0));
        let (_, after, told) = attempt(name, |lesson| lesson.wrong.clone());
        assert!(!after.passed, "{name}: the wrong attempt is accepted\n{told}");
        assert_eq!(after.points, 0);
    });
}

macro_rules! lessons {
    ($($function:ident: $name:literal),* $(,)?) => {
        $(#[test] fn $function() { is_solved_and_not_by_a_wrong_way($name); })*

        #[test]
        fn each_lesson_has_its_test() {
            let tested = [$($name),*];
            let all: Vec<String> = lessons().unwrap().into_iter().map(|lesson| lesson.name).collect();
            assert_eq!(all, tested);
        }
    };
}

lessons! {
    urls: "urls",
    first_hgs: "first-hgs",
    first_guarded_host: "first-guarded-host",
    guardians: "guardians",
    tpm_identity: "tpm-identity",
    baseline: "baseline",
    reading_failures: "reading-failures",
    three_nodes: "three-nodes",
    names: "names",
    vmm: "vmm",
    tenants: "tenants",
    keys_over_time: "keys-over-time",
    change_and_disaster: "change-and-disaster",
}

#[test]
fn hints_cost_points_and_come_one_after_the_other() {
    in_room("hints", || {
        let folder = Folder::new();
        let mut course = Course::begin(lesson("first-hgs").unwrap(), &folder.0).unwrap();
        let first = course.hint().to_owned();
        assert_ne!(first, course.hint());
        let grade = course.grade();
        assert_eq!((grade.hints, grade.passed, grade.points), (2, false, 0));
    });
}
