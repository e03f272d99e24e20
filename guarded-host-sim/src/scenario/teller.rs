//! Tells on the terminal how a run goes: a line for each scenario that ended, and what is under way meanwhile.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    report::{culprit, explain},
    run::{Report, Verdict},
};

/// Clones tell together.
#[derive(Clone)]
pub(super) struct Teller {
    live: bool,
    color: bool,
    begun: Instant,
    of: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Name and step of what is under way.
    under_way: BTreeMap<String, String>,
    ended: usize,
    told: Duration,
}

impl Teller {
    pub(super) fn new(of: usize, how: &str) -> Teller {
        let live = io::stdout().is_terminal();
        println!("{of} scenarios, {how}");
        Teller {
            live,
            color: live && std::env::var_os("NO_COLOR").is_none(),
            begun: Instant::now(),
            of,
            state: Arc::default(),
        }
    }

    pub(super) fn begins(&self, name: &str) {
        self.step(name, "the fabric starts");
    }

    pub(super) fn step(&self, name: &str, step: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.under_way.insert(name.to_owned(), step.to_owned());
        self.line(&mut state);
    }

    /// Waits until it is time to tell again what is under way, and tells it.
    pub(super) async fn ticks(&self) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.line(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn ends(&self, report: &Report) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.under_way.remove(&report.file.name);
        state.ended += 1;
        self.clear();
        let (color, word) = match report.verdict {
            Verdict::Passed => ("32", "ok"),
            Verdict::Failed => ("31", "FAIL"),
            Verdict::Skipped(_) => ("33", "skip"),
            Verdict::Trouble(_) => ("35", "TROUBLE"),
        };
        println!(
            "  {} {}: {} ({:.1} s)",
            self.paint(color, &format!("{word:7}")),
            report.file.name,
            report.file.scenario.title,
            report.took.as_secs_f64()
        );
        for line in told(report) {
            println!("          {line}");
        }
        self.line(&mut state);
    }

    pub(super) fn sums_up(&self, reports: &[Report]) {
        self.clear();
        let count = |word: &str| reports.iter().filter(|report| report.verdict.word() == word).count();
        let good = count("failed") + count("trouble") == 0;
        let line = format!(
            "{} passed, {} failed, {} skipped, {} with trouble, in {:.1} s",
            count("passed"),
            count("failed"),
            count("skipped"),
            count("trouble"),
            self.begun.elapsed().as_secs_f64()
        );
        println!("\n{}", self.paint(if good { "32" } else { "31" }, &line));
    }

    /// What is under way: at once on a terminal, every ten seconds elsewhere.
    fn line(&self, state: &mut State) {
        let elapsed = self.begun.elapsed();
        let names: Vec<String> = state
            .under_way
            .iter()
            .map(|(name, step)| format!("{name}: {step}"))
            .collect();
        let text = format!("  {}/{} {}", state.ended, self.of, names.join("; "));
        if self.live {
            let short: String = text.chars().take(110).collect();
            print!("\r\x1b[2K{short}");
            let _ = io::stdout().flush();
        } else if elapsed.saturating_sub(state.told) >= Duration::from_secs(10) {
            state.told = elapsed;
            println!("{text} ({} s)", elapsed.as_secs());
        }
    }

    fn clear(&self) {
        if self.live {
            print!("\r\x1b[2K");
        }
    }

    fn paint(&self, color: &str, text: &str) -> String {
        match self.color {
            true => format!("\x1b[{color}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// What a reader needs to know of a scenario that did not pass.
fn told(report: &Report) -> Vec<String> {
    match (&report.verdict, culprit(report)) {
        (Verdict::Passed, _) => Vec::new(),
        (_, Some((number, step))) => {
            let mut lines = vec![format!("step {}: {}", number + 1, step.title)];
            lines.extend(explain(report, number, step));
            lines
        }
        (Verdict::Trouble(reason) | Verdict::Skipped(reason), None) => vec![reason.clone()],
        (Verdict::Failed, None) => Vec::new(),
    }
}
