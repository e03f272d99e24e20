//! `guarded-host-sim events`: a host's event log, from its agent or, of a host that does not run, from its folder.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context, ensure};
use hgs_service::events::{Event, Query};
use reqwest::{Method, Url};

use crate::{owner::certificate::printable, vm::client::Host};

/// A host's event log, newest first.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("where").required(true).multiple(true).args(["agent", "dir"]))]
pub struct EventsArgs {
    /// Base URL of the host's agent
    #[arg(long, env = "HGS_AGENT", value_name = "URL")]
    agent: Option<String>,
    /// The host's folder, as `host --dir` has it: of a host that does not run
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Only events with these ids, separated by commas
    #[arg(long, value_name = "IDS")]
    id: Option<String>,
    /// Only events of this level or a worse one: Critical, Error, Warning, Information, Verbose
    #[arg(long)]
    level: Option<String>,
    /// Only events from this time on: RFC 3339 in UTC, or seconds since 1970
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// At most so many, 1 to 1000; 100 unless given
    #[arg(long, value_name = "N")]
    newest: Option<String>,
    /// Only events before the one with this RecordId
    #[arg(long, value_name = "ID")]
    before: Option<String>,
    /// Print the events as JSON
    #[arg(long)]
    json: bool,
}

/// Reads and shows.
pub fn run(args: &EventsArgs) -> anyhow::Result<()> {
    let query = Query {
        id: args.id.clone(),
        level: args.level.clone(),
        since: args.since.clone(),
        newest: args.newest.clone(),
        before: args.before.clone(),
    };
    let filter = query.filter()?;
    let events = match (&args.dir, &args.agent) {
        (Some(dir), _) => {
            ensure!(
                super::is_in(&dir.join("agent")),
                "there is no event log in {}: give the host's folder, the one of `host --dir`",
                dir.display()
            );
            super::read(&dir.join("agent"), &filter)?
        }
        (None, agent) => {
            let agent = agent.as_deref().context("give --agent or --dir")?;
            Host::at(agent).ask(Method::GET, &path(&query)?, None)?
        }
    };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&events)?),
        false => print!("{}", text(&events)?),
    }
    Ok(())
}

/// Below `/v1`.
fn path(query: &Query) -> anyhow::Result<String> {
    let mut url = Url::parse("http://agent/")?;
    let fields = serde_json::to_value(query)?;
    for (name, value) in fields.as_object().into_iter().flatten() {
        url.query_pairs_mut()
            .append_pair(name, value.as_str().unwrap_or_default());
    }
    Ok(format!("events?{}", url.query().unwrap_or_default()))
}

fn text(events: &[Event]) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for event in events {
        let (time, level) = (event.time_created, event.level.to_string());
        let provider = printable(&event.provider_name);
        writeln!(text, "{time}  {level:<11}  {:>5}  {provider}", event.id)?;
        writeln!(text, "    {}", printable(&event.message))?;
    }
    if events.is_empty() {
        writeln!(text, "no events")?;
    }
    Ok(text)
}
