//! A lesson as its file has it.

use std::fmt::Write as _;

use anyhow::Context;
use serde::Deserialize;

use super::Check;
use crate::{lab::Plan, machine::dials::Dials};

/// A lesson.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lesson {
    /// What it is asked for by.
    pub name: String,
    /// Its place in the course, from 0.
    pub number: u32,
    /// For people.
    pub title: String,
    /// What one knows afterwards.
    pub teaches: String,
    /// What is to be done.
    pub task: String,
    /// What it should take, in minutes.
    pub minutes: u64,
    /// HGS nodes, none of them set up.
    #[serde(default = "one")]
    pub nodes: usize,
    /// Hosts.
    pub hosts: Vec<String>,
    /// Whether hosts have a code-integrity policy in force already.
    #[serde(default)]
    pub hosts_have_policy: bool,
    /// What is set up already, by names of scripts in `lessons/prepared`; the trainee does not see it.
    #[serde(default)]
    pub prepared: Vec<String>,
    /// A script of the lesson's own after those.
    #[serde(default)]
    pub setup: String,
    /// More that is set up already, after that.
    #[serde(default)]
    pub prepared_after: Vec<String>,
    /// What is amiss, hidden.
    #[serde(default)]
    pub fault: Vec<Fault>,
    /// On request, one after the other.
    pub hints: Vec<String>,
    /// What must hold in the end.
    pub checks: Vec<Check>,
    /// A script that solves it.
    pub solution: String,
    /// A script that looks like a solution and is none.
    pub wrong: String,
    /// Why it is none.
    pub wrong_because: String,
}

/// What a lesson damages before it begins.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// A host's machine is set otherwise, and restarts.
    Settings {
        /// The host.
        host: String,
        /// Whether virtual secure mode runs.
        vsm: Option<bool>,
        /// Whether the IOMMU is required.
        iommu: Option<bool>,
        /// Whether memory dumps are off.
        dumps_disabled: Option<bool>,
        /// Whether Secure Boot is on.
        secure_boot: Option<bool>,
    },
    /// The fabric's machines find no name of the HGS domain.
    NamesMissing,
    /// A node has lost its power.
    NodeDown {
        /// Which.
        node: String,
    },
    /// Time has passed.
    Later {
        /// Seconds.
        seconds: u64,
    },
}

fn one() -> usize {
    1
}

impl Lesson {
    /// What its fabric is to have.
    pub fn plan(&self) -> Plan {
        let dials = |name: &String| {
            let mut dials = Dials::default();
            if !self.hosts_have_policy {
                dials.ci_policy = None;
            }
            (name.clone(), dials)
        };
        Plan {
            nodes: self.nodes,
            hosts: self.hosts.iter().map(dials).collect(),
        }
    }

    /// What prepares its fabric, as one script.
    ///
    /// # Errors
    /// It names a script that is not there.
    pub fn preparation(&self) -> anyhow::Result<String> {
        let hosts: Vec<String> = self.hosts.iter().map(|name| format!("'{name}'")).collect();
        let mut script = format!("$ErrorActionPreference = 'Stop'\n$hosts = @({})\n", hosts.join(", "));
        let prepared = |name: &String| {
            let found = PREPARED.iter().find(|(own, _)| own == name);
            found
                .map(|(_, text)| *text)
                .with_context(|| format!("lessons/prepared has no {name}.ps1"))
        };
        for name in &self.prepared {
            writeln!(script, "{}", prepared(name)?)?;
        }
        writeln!(script, "{}", self.setup)?;
        for name in &self.prepared_after {
            writeln!(script, "{}", prepared(name)?)?;
        }
        Ok(script)
    }
}

/// All lessons, in the order of the course.
///
/// # Errors
/// A file is no lesson.
pub fn lessons() -> anyhow::Result<Vec<Lesson>> {
    let mut all = Vec::new();
    for (file, text) in FILES {
        let lesson: Lesson = toml::from_str(text).with_context(|| format!("lessons/{file} is no lesson"))?;
        all.push(lesson);
    }
    all.sort_by_key(|lesson| lesson.number);
    Ok(all)
}

/// The lesson of that name or number.
///
/// # Errors
/// There is none.
pub fn lesson(name: &str) -> anyhow::Result<Lesson> {
    let found = lessons()?
        .into_iter()
        .find(|lesson| lesson.name == name || lesson.number.to_string() == name);
    found.with_context(|| format!("there is no lesson {name}: without a name, lesson lists them"))
}

macro_rules! files {
    ($($file:literal),* $(,)?) => {
        [$(($file, include_str!(concat!("../../../lessons/", $file)))),*]
    };
}

const FILES: [(&str, &str); 13] = files![
    "00-urls.toml",
    "01-first-hgs.toml",
    "02-first-guarded-host.toml",
    "03-guardians.toml",
    "04-tpm-identity.toml",
    "05-baseline-and-policy.toml",
    "06-reading-failures.toml",
    "07-three-nodes.toml",
    "08-names.toml",
    "09-vmm.toml",
    "10-tenants.toml",
    "11-keys-over-time.toml",
    "12-change-and-disaster.toml",
];

macro_rules! prepared {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../lessons/prepared/", $name, ".ps1")))),*]
    };
}

const PREPARED: [(&str, &str); 8] = prepared![
    "hgs-host-key",
    "hgs-tpm",
    "features",
    "host-keys",
    "tpm-hosts",
    "baseline",
    "urls",
    "tenant-vm",
];
