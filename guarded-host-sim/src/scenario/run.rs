//! One scenario from its first process to its last, and everything that is known about it then.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::{
    act::{Acted, act},
    came::Came,
    journal::{Journal, Message},
    judge::{Mismatch, judge},
    model::{Action, Step},
    parse::ScenarioFile,
    pool::TpmPool,
    world::{Way, World},
};

/// How scenarios are run.
#[derive(Clone, Debug)]
pub struct Running {
    /// How the parts of a fabric run.
    pub way: Way,
    /// Whether waiting moves the clocks.
    pub virtual_time: bool,
    /// Where TPMs come from.
    pub pool: Arc<TpmPool>,
}

impl Running {
    /// In words.
    pub fn told(&self) -> String {
        let time = if self.virtual_time { ", in virtual time" } else { "" };
        format!("{}{time}", self.way)
    }
}

/// A scenario that was run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was run.
    pub file: ScenarioFile,
    /// How it ended.
    pub verdict: Verdict,
    /// Each step.
    pub steps: Vec<StepReport>,
    /// Every message.
    pub messages: Vec<Message>,
    /// How long all of it took.
    pub took: Duration,
}

/// How a scenario or a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "reason", rename_all = "lowercase")]
pub enum Verdict {
    /// Everything as expected.
    Passed,
    /// Something else came than was expected.
    Failed,
    /// This way of running cannot do it.
    Skipped(String),
    /// The lab itself had trouble.
    Trouble(String),
}

impl Verdict {
    /// In a word.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::Skipped(_) => "skipped",
            Verdict::Trouble(_) => "trouble",
        }
    }
}

/// A step that was run.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// What was done.
    pub step: Step,
    /// In a line.
    pub title: String,
    /// How it ended.
    pub verdict: Verdict,
    /// When it began, since the scenario's begin.
    pub at: Duration,
    /// What came; nothing when it was not carried out.
    pub came: Option<Came>,
    /// Every field that is not as expected.
    pub mismatches: Vec<Mismatch>,
}

/// Runs a scenario. `progress` is told which step is under way.
pub async fn run(file: ScenarioFile, running: &Running, progress: impl Fn(usize, &str) + Send) -> Report {
    let journal = Journal::begin();
    let (mut verdict, steps) = match running.way.cannot(&file.scenario) {
        Some(reason) => (Verdict::Skipped(reason.clone()), not_begun(&file, &reason)),
        None => on_a_fabric(&file, running, &journal, progress).await,
    };
    if let Way::Attached(to) = &running.way
        && let Err(error) = to.put_back().await
    {
        verdict = Verdict::Trouble(format!("the fabric is not as it was: {error:#}"));
    }
    Report {
        file,
        verdict,
        steps,
        messages: journal.messages(),
        took: journal.elapsed(),
    }
}

/// Starts the scenario's fabric, takes its steps, ends it.
async fn on_a_fabric(
    file: &ScenarioFile,
    running: &Running,
    journal: &Journal,
    progress: impl Fn(usize, &str) + Send,
) -> (Verdict, Vec<StepReport>) {
    let mut steps: Vec<StepReport> = Vec::new();
    let way = running.way.clone();
    let world = match World::start(&file.scenario, way, running.pool.clone(), journal.clone(), &[]).await {
        Ok(world) => world,
        Err(error) => return (Verdict::Trouble(format!("the fabric does not start: {error:#}")), steps),
    };
    // What setting up left in the records belongs to no step.
    world.news().await;
    let mut verdict = Verdict::Passed;
    for (number, step) in file.scenario.step.iter().enumerate() {
        let title = step.title();
        progress(number, &title);
        let report = match &verdict {
            Verdict::Passed => take(&world, number, step, title, running.virtual_time).await,
            earlier => not_run(step, title, because(earlier), journal.elapsed()),
        };
        if verdict == Verdict::Passed {
            verdict = report.verdict.clone();
        }
        steps.push(report);
    }
    if tokio::task::spawn_blocking(move || drop(world)).await.is_err() {
        verdict = Verdict::Trouble("the fabric did not end in order".to_owned());
    }
    (verdict, steps)
}

/// Every step of a scenario that cannot be run in this way.
fn not_begun(file: &ScenarioFile, reason: &str) -> Vec<StepReport> {
    let steps = file.scenario.step.iter();
    steps
        .map(|step| not_run(step, step.title(), reason.to_owned(), Duration::ZERO))
        .collect()
}

async fn take(world: &World, number: usize, step: &Step, title: String, virtual_time: bool) -> StepReport {
    world.journal.step(number);
    let at = world.journal.elapsed();
    let acted = act(world, &step.action, virtual_time).await;
    let mut report = StepReport {
        step: step.clone(),
        title,
        verdict: Verdict::Passed,
        at,
        came: None,
        mismatches: Vec::new(),
    };
    match acted {
        Ok(Acted::Came(mut came)) => {
            let news = world.news().await;
            (came.events, came.logged) = (news.recorded, news.logged);
            report.mismatches = judge(step.expect.as_ref(), &came);
            if !report.mismatches.is_empty() {
                report.verdict = Verdict::Failed;
            }
            report.came = Some(*came);
        }
        Ok(Acted::Skipped(reason)) => report.verdict = Verdict::Skipped(reason),
        Err(error) => report.verdict = Verdict::Trouble(format!("{error:#}")),
    }
    report
}

/// A step after one that failed, was skipped or met trouble says nothing.
fn because(earlier: &Verdict) -> String {
    let earlier = match earlier {
        Verdict::Failed => "failed",
        Verdict::Trouble(_) => "met trouble",
        _ => "was skipped",
    };
    format!("an earlier step {earlier}")
}

/// A step that is not carried out.
fn not_run(step: &Step, title: String, reason: String, at: Duration) -> StepReport {
    StepReport {
        step: step.clone(),
        title,
        verdict: Verdict::Skipped(reason),
        at,
        came: None,
        mismatches: Vec::new(),
    }
}

impl StepReport {
    /// The name of the action.
    pub fn action(&self) -> String {
        Action::name(&self.step.action)
    }
}
