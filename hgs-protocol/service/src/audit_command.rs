//! `audit verify`: recomputes the chains of a service's record from the command line, without the service.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use sqlx::migrate::Migrator;

use crate::{
    audit::{self, Head, Verification},
    database::Database,
    settings::{ServiceArgs, Settings},
};

/// `audit …` on a service's command line.
#[derive(clap::Subcommand)]
pub enum AuditCommand {
    /// Recompute the record's chains and say what was changed, inserted or taken away
    Verify {
        #[command(flatten)]
        service: Box<ServiceArgs>,
        /// Heads kept elsewhere (JSON, from an earlier --json); without them a cut tail does not show
        #[arg(long)]
        head: Option<PathBuf>,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
}

impl AuditCommand {
    /// Runs it for the service `name`, whose tables are those of SQLite and of PostgreSQL.
    pub async fn run(self, name: &str, tables: (&Migrator, &Migrator)) -> anyhow::Result<ExitCode> {
        let AuditCommand::Verify { service, head, json } = self;
        verify(&service.resolve(name)?, tables, head.as_deref(), json).await
    }
}

/// Checks every row, and the tail against the heads kept in `head`: a JSON list as `audit verify --json`
/// or the admin API gives it (the whole answer will do). Prints what was found; fails when something is wrong.
async fn verify(
    settings: &Settings,
    tables: (&Migrator, &Migrator),
    head: Option<&Path>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    // An empty record has no fault.
    settings.require_database()?;
    let database = Database::open(&settings.database_url, tables.0, tables.1).await?;
    let kept = match head {
        Some(path) => read_heads(path)?,
        None => Vec::new(),
    };
    let found = audit::verify(&database, &settings.kek, &kept).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print(&found, head.is_some());
    }
    Ok(match found.faults.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn read_heads(path: &Path) -> anyhow::Result<Vec<Head>> {
    let text = std::fs::read(path).with_context(|| format!("the kept heads {} cannot be read", path.display()))?;
    let whole: Result<Verification, _> = serde_json::from_slice(&text);
    match whole {
        Ok(found) => Ok(found.heads),
        Err(_) => serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is no list of heads as `audit verify --json` prints it",
                path.display()
            )
        }),
    }
}

fn print(found: &Verification, against_heads: bool) {
    println!("{} rows of {} writers checked", found.rows, found.heads.len());
    for fault in &found.faults {
        println!("FAULT: {fault}");
    }
    for head in &found.heads {
        println!("head {} {} {}", head.writer, head.sequence, head.mac);
    }
    if found.faults.is_empty() {
        println!("no row was changed, inserted or taken from the middle");
    }
    if !against_heads {
        println!("rows cut from the end, or a whole writer taken away, show only against a kept head (--head FILE)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_bare_or_from_a_whole_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("heads.json");
        let head = Head {
            writer: "aa".to_owned(),
            sequence: 3,
            mac: "bb".to_owned(),
        };
        std::fs::write(&path, serde_json::to_vec(&vec![head.clone()]).unwrap()).unwrap();
        assert_eq!(read_heads(&path).unwrap(), std::slice::from_ref(&head));
        let whole = Verification {
            heads: vec![head.clone()],
            ..Verification::default()
        };
        std::fs::write(&path, serde_json::to_vec(&whole).unwrap()).unwrap();
        assert_eq!(read_heads(&path).unwrap(), [head]);
        std::fs::write(&path, b"{}").unwrap();
        assert!(read_heads(&path).is_err());
    }
}
