//! A lesson under way: its fabric, what was done, and how it is graded.

use std::{path::Path, rc::Rc, time::Instant};

use anyhow::{Context, bail};
use hgs_shell::{
    console::{Console, Recorder},
    session::{Ended, Session},
};

use super::{Fault, Lesson};
use crate::{cmdlets, lab::Lab};

/// A lesson under way.
pub struct Course {
    lesson: Lesson,
    lab: Lab,
    steps: usize,
    hints: usize,
    begun: Instant,
}

/// How a lesson went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grade {
    /// Whether everything that must hold does.
    pub passed: bool,
    /// Of what must hold, each with whether it does.
    pub checks: Vec<(String, bool)>,
    /// Lines that were carried out.
    pub steps: usize,
    /// Hints that were asked for.
    pub hints: usize,
    /// Whole minutes so far.
    pub minutes: u64,
    /// 100, less 10 for each hint and 1 for each minute beyond what the lesson should take; none while it is not passed.
    pub points: u64,
}

impl Course {
    /// Sets the fabric of a lesson up below `folder` (absolute).
    ///
    /// # Errors
    /// A part does not start, or the lesson's own preparation fails.
    pub fn begin(lesson: Lesson, folder: &Path) -> anyhow::Result<Course> {
        let lab = Lab::start(folder, &lesson.plan())?;
        let course = Course {
            lesson,
            lab,
            steps: 0,
            hints: 0,
            begun: Instant::now(),
        };
        course.prepare()?;
        Ok(course)
    }

    fn prepare(&self) -> anyhow::Result<()> {
        let recorder = Recorder::default();
        let mut session = self.session(Box::new(recorder.clone()))?;
        if session.run(&self.lesson.preparation()?) != Ended::Whole(true) {
            bail!("the lesson {} cannot be prepared: {}", self.lesson.name, recorder.all());
        }
        for fault in &self.lesson.fault {
            match fault {
                Fault::Settings {
                    host,
                    vsm,
                    iommu,
                    dumps_disabled,
                    secure_boot,
                } => {
                    let mut own = self
                        .lab
                        .host(host)
                        .with_context(|| format!("the lesson has no host {host}"))?;
                    let dials = &mut own.dials;
                    dials.vsm = vsm.unwrap_or(dials.vsm);
                    dials.iommu = iommu.unwrap_or(dials.iommu);
                    dials.dumps_disabled = dumps_disabled.unwrap_or(dials.dumps_disabled);
                    dials.secure_boot = secure_boot.unwrap_or(dials.secure_boot);
                    drop(own);
                    self.lab.restart_host(host)?;
                }
                Fault::NamesMissing => self.lab.hide_names(true)?,
                Fault::NodeDown { node } => self.lab.power_node(node, false)?,
                Fault::Later { seconds } => self.lab.advance(*seconds)?,
            }
        }
        Ok(())
    }

    /// A shell on the lesson's fabric.
    ///
    /// # Errors
    /// A machine's folder cannot be made.
    pub fn session(&self, console: Box<dyn Console>) -> anyhow::Result<Session> {
        let mut session = Session::new(Rc::new(self.lab.clone()), cmdlets::registry(), console)?;
        session.set_views(cmdlets::VIEWS);
        Ok(session)
    }

    /// The lesson.
    pub fn lesson(&self) -> &Lesson {
        &self.lesson
    }

    /// Its fabric.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A line was carried out.
    pub fn count_step(&mut self) {
        self.steps += 1;
    }

    /// The next hint; the last one again when there is no further.
    pub fn hint(&mut self) -> &str {
        let last = self.lesson.hints.len().saturating_sub(1);
        let at = self.hints.min(last);
        self.hints = (self.hints + 1).min(self.lesson.hints.len());
        self.lesson.hints.get(at).map_or("There is no hint.", String::as_str)
    }

    /// Looks at the fabric.
    pub fn grade(&self) -> Grade {
        let checks: Vec<(String, bool)> = self
            .lesson
            .checks
            .iter()
            .map(|check| (check.text.clone(), check.is_met(&self.lab)))
            .collect();
        let passed = checks.iter().all(|(_, met)| *met);
        let minutes = self.begun.elapsed().as_secs() / 60;
        let less = 10 * u64::try_from(self.hints).unwrap_or_default() + minutes.saturating_sub(self.lesson.minutes);
        Grade {
            passed,
            checks,
            steps: self.steps,
            hints: self.hints,
            minutes,
            points: if passed { 100u64.saturating_sub(less) } else { 0 },
        }
    }
}
