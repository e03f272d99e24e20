//! What is left afterwards: the audit of both services, against what clients saw, and the ledgers of the
//! hosts' VBS stores.

use std::{collections::HashSet, path::PathBuf};

use anyhow::Context;
use hgs_service::audit::{Head, Verification};
use serde_json::{Value, json};

use super::{engine::Engine, load::Seen, report::Check};
use crate::fabric::{
    Elsewhere,
    service::{Attachment, Service},
};

/// Both services as their administrator reaches them.
pub(super) struct Auditors {
    attestation: Service,
    kps: Service,
    /// Root certificates.
    _folder: tempfile::TempDir,
}

/// The ends of all chains at some moment.
pub(super) struct Heads {
    attestation: Vec<Head>,
    kps: Vec<Head>,
}

impl Auditors {
    /// Reads tokens and roots of the lab from its volume.
    pub(super) async fn of(engine: &Engine) -> anyhow::Result<Auditors> {
        let folder = tempfile::tempdir()?;
        let read = async |name: &str| {
            engine
                .run_beside("enrol", None, &["cat", &format!("/lab/{name}")])
                .await
        };
        let elsewhere: Elsewhere = serde_json::from_str(&read("fabric.json").await?)?;
        let attach = async |name: &'static str, attachment: &Attachment, port: u16| {
            let root: PathBuf = folder.path().join(name);
            std::fs::write(&root, read(&format!("{name}-root.pem")).await?)?;
            let admin_url = format!("https://{}", engine.published("front-door", port).await?);
            Service::attach(
                name,
                &Attachment {
                    root: Some(root),
                    admin_url,
                    ..attachment.clone()
                },
            )
        };
        Ok(Auditors {
            attestation: attach("attestation", &elsewhere.attestation, 8444).await?,
            kps: attach("kps", &elsewhere.kps, 8445).await?,
            _folder: folder,
        })
    }

    /// The present ends of all chains.
    pub(super) async fn heads(&self) -> anyhow::Result<Heads> {
        let none = Heads {
            attestation: Vec::new(),
            kps: Vec::new(),
        };
        let (attestation, kps) = self.verify(&none).await?;
        Ok(Heads {
            attestation: attestation.heads,
            kps: kps.heads,
        })
    }

    /// Computes every chain anew, against ends that were kept.
    async fn verify(&self, kept: &Heads) -> anyhow::Result<(Verification, Verification)> {
        let attestation = self.attestation.admin_post("audit/verify", &kept.attestation).await?;
        let kps = self
            .kps
            .admin_post("audit/verify", &json!({ "heads": kept.kps }))
            .await?;
        Ok((serde_json::from_slice(&attestation)?, serde_json::from_slice(&kps)?))
    }

    /// Whether all chains hold, and begin as they did when `kept` was taken.
    pub(super) async fn chains_hold(&self, kept: &Heads) -> anyhow::Result<Check> {
        let (attestation, kps) = self.verify(kept).await?;
        let faults: Vec<&String> = attestation.faults.iter().chain(&kps.faults).collect();
        let told =
            |name: &str, found: &Verification| format!("{name}: {} rows by {} writers", found.rows, found.heads.len());
        let found = format!(
            "{}, {}; faults: {}",
            told("attestation", &attestation),
            told("key protection", &kps),
            faults.len()
        );
        let held = faults.is_empty() && attestation.rows > 0 && kps.rows > 0;
        let faults: String = faults.iter().take(5).map(|fault| format!("; {fault}")).collect();
        Ok(Check::new(
            "the audit's chains hold, and begin as they did before the outage",
            held,
            found + &faults,
        ))
    }
}

/// Whether everything that clients have in hand is in the audit.
pub(super) async fn audited(engine: &Engine, seen: &Seen) -> anyhow::Result<[Check; 2]> {
    let released = "SELECT body::json->>'egressProtector' FROM audit \
                    WHERE kind = 'key-release' AND body::json->>'outcome' = 'Released'";
    let certified = "SELECT body::json->>'serials' FROM audit WHERE kind = 'attestation'";
    let rows = async |database: &str, query: &str| {
        let program = ["psql", "-h", "/tmp", "-d", database, "-At", "-c", query];
        engine.run_in("postgres", &program, None).await
    };
    let releases: HashSet<String> = rows("kps", released).await?.lines().map(str::to_owned).collect();
    let mut serials = HashSet::new();
    for line in rows("attestation", certified).await?.lines() {
        let list: Vec<Value> = serde_json::from_str(line).with_context(|| format!("serials: {line}"))?;
        serials.extend(list.iter().filter_map(Value::as_str).map(str::to_owned));
    }
    let check = |what: &'static str, seen: &[String], rows: &HashSet<String>| {
        let missing = seen.iter().filter(|one| !rows.contains(*one)).count();
        let found = format!(
            "{} seen by clients, {missing} without a row; {} in the audit",
            seen.len(),
            rows.len()
        );
        Check::new(what, missing == 0 && !seen.is_empty(), found)
    };
    Ok([
        check(
            "every release that a client saw has its audit row",
            &seen.releases,
            &releases,
        ),
        check(
            "every health certificate that a host got has its audit row",
            &seen.serials,
            &serials,
        ),
    ])
}

/// Whether the hosts' ledgers show a VM on two hosts at once.
pub(super) async fn ran_once(engine: &Engine, hosts: &[&str]) -> Check {
    let what = "no VM ran on two hosts at once, by the ledgers of all VBS stores";
    let files: Vec<String> = hosts
        .iter()
        .map(|host| format!("/hosts/{host}/store/ledger.jsonl"))
        .collect();
    let mut program = vec!["guarded-host-sim", "ledger"];
    program.extend(files.iter().map(String::as_str));
    match engine.run_beside("enrol", None, &program).await {
        Ok(told) => Check::new(what, true, told.lines().last().unwrap_or_default().to_owned()),
        Err(error) => Check::new(what, false, format!("{error:#}")),
    }
}
