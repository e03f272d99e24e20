//! One line per step with its outcome, progress while a step runs, and the JSON document at the end.
//!
//! A step passes when its outcome is the expected one. For a refusal the expected words (the
//! protocol's own error and the reason) must be in what came back, so a refusal for another reason
//! does not pass.

use std::{
    future::Future,
    io::{self, IsTerminal, Write},
    time::Duration,
};

/// What a step must come to.
#[derive(Clone, Debug)]
pub enum Expected {
    /// The operation succeeds.
    Done,
    /// The operation is refused and the refusal names all of these.
    Refused(&'static [&'static str]),
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded; the text tells what a reader wants to know.
    Done(String),
    /// The other side refused, with its own error and the reason.
    Refused(String),
}

/// A step as the JSON document has it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// `done`, or `refused: ` and the words that the refusal must name.
    pub expected: String,
    /// `done`, `refused`, `failed` or `not run`.
    pub outcome: &'static str,
    /// Whether the outcome is the expected one.
    pub passed: bool,
    /// What the outcome says.
    pub detail: String,
}

/// The whole document of `--json`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Document {
    /// Every step, in order.
    pub steps: Vec<Step>,
    /// How many passed.
    pub passed: usize,
    /// How many did not.
    pub failed: usize,
}

/// Where the story is told.
pub struct Narrator {
    json: bool,
    color: bool,
    live: bool,
    steps: Vec<Step>,
    stopped: Option<String>,
}

impl Narrator {
    /// Tells the story on standard output; with `json` only [`Narrator::finish`] writes there.
    pub fn new(json: bool) -> Narrator {
        let terminal = io::stdout().is_terminal() && !json;
        Narrator {
            json,
            color: terminal && std::env::var_os("NO_COLOR").is_none(),
            live: terminal,
            steps: Vec::new(),
            stopped: None,
        }
    }

    /// Opens a part of the story.
    pub fn part(&self, title: &str) {
        if !self.json {
            println!("\n{}", self.paint("1", title));
        }
    }

    /// Runs one step. After [`Narrator::stop`] a step is recorded as not run.
    ///
    /// Answers whether the step passed.
    pub async fn step<F>(&mut self, name: &str, expected: Expected, run: F) -> bool
    where
        F: Future<Output = anyhow::Result<Outcome>>,
    {
        let result = match &self.stopped {
            Some(reason) => Err(Stopped::NotRun(reason.clone())),
            None => self.wait(name, run).await.map_err(Stopped::Failed),
        };
        let step = judge(name, &expected, result);
        let passed = step.passed;
        self.tell(&step);
        self.steps.push(step);
        passed
    }

    /// Why no further step can run: the fabric is broken. The first reason stays.
    pub fn stop(&mut self, reason: String) {
        if self.stopped.is_none() {
            if !self.json {
                println!("  {}", self.paint("31", &format!("the demonstration stops: {reason}")));
            }
            self.stopped = Some(reason);
        }
    }

    /// Prints the last line or the document. Answers whether every step passed.
    pub fn finish(self) -> io::Result<bool> {
        let passed = self.steps.iter().filter(|s| s.passed).count();
        let failed = self.steps.len() - passed;
        let good = failed == 0 && self.stopped.is_none();
        let mut out = io::stdout().lock();
        if self.json {
            let document = Document {
                steps: self.steps,
                passed,
                failed,
            };
            serde_json::to_writer_pretty(&mut out, &document)?;
            writeln!(out)?;
        } else {
            let line = format!("{passed} steps passed, {failed} failed");
            writeln!(out, "\n{}", self.paint(if good { "32" } else { "31" }, &line))?;
        }
        out.flush()?;
        Ok(good)
    }

    async fn wait<F>(&self, name: &str, run: F) -> anyhow::Result<Outcome>
    where
        F: Future<Output = anyhow::Result<Outcome>>,
    {
        let mut run = std::pin::pin!(run);
        let mut seconds = 0_u32;
        loop {
            match tokio::time::timeout(Duration::from_secs(1), run.as_mut()).await {
                Ok(result) => {
                    if self.live && seconds > 0 {
                        print!("\r\x1b[2K");
                    }
                    return result;
                }
                Err(_) => {
                    seconds += 1;
                    self.progress(name, seconds);
                }
            }
        }
    }

    fn progress(&self, name: &str, seconds: u32) {
        if self.live {
            print!("\r\x1b[2K  ..   {name} ({seconds} s)");
            let _ = io::stdout().flush();
        } else if seconds.is_multiple_of(5) {
            eprintln!("  ..   {name} ({seconds} s)");
        }
    }

    fn tell(&self, step: &Step) {
        if self.json {
            return;
        }
        let (color, mark) = if step.passed { ("32", "ok") } else { ("31", "FAIL") };
        let outcome = if step.outcome == "done" {
            String::new()
        } else {
            format!("{}: ", step.outcome)
        };
        println!(
            "  {} {}: {outcome}{}",
            self.paint(color, &format!("{mark:4}")),
            step.name,
            step.detail
        );
        if !step.passed {
            println!("       expected {}", step.expected);
        }
        let _ = io::stdout().flush();
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{color}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

enum Stopped {
    NotRun(String),
    Failed(anyhow::Error),
}

fn judge(name: &str, expected: &Expected, result: Result<Outcome, Stopped>) -> Step {
    let (outcome, passed, detail) = match (result, expected) {
        (Ok(Outcome::Done(detail)), Expected::Done) => ("done", true, detail),
        (Ok(Outcome::Done(detail)), Expected::Refused(_)) => ("done", false, detail),
        (Ok(Outcome::Refused(detail)), Expected::Done) => ("refused", false, detail),
        (Ok(Outcome::Refused(detail)), Expected::Refused(words)) => {
            ("refused", words.iter().all(|w| detail.contains(w)), detail)
        }
        (Err(Stopped::NotRun(reason)), _) => ("not run", false, reason),
        (Err(Stopped::Failed(error)), _) => ("failed", false, format!("{error:#}")),
    };
    Step {
        name: name.to_owned(),
        expected: match expected {
            Expected::Done => "done".to_owned(),
            Expected::Refused(words) => format!("refused: {}", words.join(", ")),
        },
        outcome,
        passed,
        detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done() -> Result<Outcome, Stopped> {
        Ok(Outcome::Done("fine".into()))
    }

    fn refused(text: &str) -> Result<Outcome, Stopped> {
        Ok(Outcome::Refused(text.into()))
    }

    #[test]
    fn only_the_expected_outcome_passes() {
        let words = Expected::Refused(&["PolicyEvaluationErrorReply", "SecureBootEnabled"]);
        assert!(judge("s", &Expected::Done, done()).passed);
        assert!(!judge("s", &Expected::Done, refused("no")).passed);
        assert!(!judge("s", &words, done()).passed);
        assert!(!judge("s", &words, refused("PolicyEvaluationErrorReply: FullBoot")).passed);
        let good = judge("s", &words, refused("PolicyEvaluationErrorReply: SecureBootEnabled"));
        assert!(good.passed);
        assert_eq!(good.outcome, "refused");
        let failed = judge("s", &words, Err(Stopped::Failed(anyhow::anyhow!("connection refused"))));
        assert!(!failed.passed);
        assert_eq!(failed.outcome, "failed");
    }

    #[tokio::test]
    async fn after_a_stop_every_further_step_counts_as_failed() {
        let mut narrator = Narrator::new(true);
        assert!(
            narrator
                .step("one", Expected::Done, async { Ok(Outcome::Done(String::new())) })
                .await
        );
        narrator.stop("host02 ended".into());
        let ran = narrator
            .step("two", Expected::Done, async { anyhow::bail!("this must not run") })
            .await;
        assert!(!ran);
        assert_eq!(narrator.steps[1].outcome, "not run");
        assert_eq!(narrator.steps[1].detail, "host02 ended");
    }
}
