//! An HGS that is up and has other users: that of a fabric in containers. Scenarios use it one after the other, with
//! hosts of their own; what they may not do with it is skipped, and it is left as it was.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, bail};
use serde_json::Value;

use super::{HgsHere, Way, World, standing::Standing};
use crate::{
    fabric::{
        Elsewhere,
        hgs::Hgs,
        service::{Tls, write_private},
    },
    scenario::{
        act::LONGEST_WAIT,
        model::{
            Action, At, HgsPlan, Scenario,
            step::{Named, ServiceName},
        },
    },
};

/// A fabric that runs elsewhere, held by this process alone.
#[derive(Debug)]
pub struct Attached {
    elsewhere: Elsewhere,
    /// How the HGS was before the scenario that is under way.
    note: PathBuf,
    /// How many TPMs were given out.
    tpms: AtomicUsize,
    /// Locked; let go with this value.
    _hold: File,
}

impl Attached {
    /// Takes hold of the fabric that `description` (written by `prepare`) names, and puts back what a run that was
    /// ended early has left.
    ///
    /// Fails when somebody else runs scenarios on it, and when its HGS does not answer.
    pub async fn hold(description: &Path) -> anyhow::Result<Attached> {
        let elsewhere = Elsewhere::read(description)?;
        let hold = File::open(description).with_context(|| format!("cannot read {}", description.display()))?;
        match hold.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => bail!("scenarios run on this fabric already: wait for their end"),
            Err(fs::TryLockError::Error(error)) => return Err(error).context("the fabric cannot be held"),
        }
        let attached = Attached {
            elsewhere,
            note: description.with_file_name("before-the-scenario.json"),
            tpms: AtomicUsize::new(0),
            _hold: hold,
        };
        attached.put_back().await?;
        Ok(attached)
    }

    /// Where its HGS answers.
    pub fn url(&self) -> &str {
        &self.elsewhere.attestation.url
    }

    /// Its HGS, as its administrators reach it and as clients do in clear.
    pub(super) fn hgs(&self) -> anyhow::Result<Hgs> {
        Hgs::attach(&self.elsewhere.attestation, &self.elsewhere.kps)
    }

    /// Its HGS, as clients reach it over HTTPS.
    pub(super) fn hgs_with_https(&self) -> anyhow::Result<Hgs> {
        let mut hgs = self.hgs()?;
        let url = |https: &Option<(String, PathBuf)>| https.as_ref().map(|(url, _)| url.clone());
        hgs.attestation.tls_url = url(&self.elsewhere.attestation.https);
        hgs.kps.tls_url = url(&self.elsewhere.kps.https);
        Ok(hgs)
    }

    /// With what a door to its HGS speaks HTTPS: with hosts by the scenario's certificate, with the HGS by its root.
    pub(super) fn door(&self, own: &Tls) -> anyhow::Result<Tls> {
        let https = self.elsewhere.attestation.https.as_ref();
        let (_, root) = https.context("the fabric's description tells of no https: end it and start it anew")?;
        Ok(Tls {
            root: root.clone(),
            ..own.clone()
        })
    }

    /// The number of the first of `count` TPMs that other scenarios have not had for a while: attestation limits how
    /// often one key may ask.
    pub(super) fn tpms(&self, count: usize) -> usize {
        let first = self.tpms.load(Ordering::SeqCst);
        let first = if first + count > TPMS { 0 } else { first };
        self.tpms.store(first + count, Ordering::SeqCst);
        first
    }

    /// Notes how the HGS is, before a scenario changes it. Nothing is changed while an earlier note could not be put
    /// back.
    pub(in crate::scenario) async fn note(&self) -> anyhow::Result<()> {
        self.put_back().await?;
        let standing = Standing::of(&self.hgs()?).await?;
        write_private(&self.note, &serde_json::to_string(&standing)?)
    }

    /// Puts the HGS back as noted, if something is.
    pub(in crate::scenario) async fn put_back(&self) -> anyhow::Result<()> {
        let noted = match fs::read(&self.note) {
            Ok(noted) => noted,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.note.display())),
        };
        // A note that was cut short was written before anything was changed.
        if let Ok(standing) = serde_json::from_slice::<Standing>(&noted) {
            standing.put_back(&self.hgs()?).await?;
        }
        fs::remove_file(&self.note).with_context(|| format!("cannot remove {}", self.note.display()))
    }
}

impl Way {
    /// Why a scenario cannot be run in this way at all, if it cannot.
    pub(in crate::scenario) fn cannot(&self, scenario: &Scenario) -> Option<String> {
        let Way::Attached(_) = self else { return None };
        let services = scenario.services();
        let HgsPlan {
            health_certificate_minutes,
            requests_per_minute_per_key,
            signer_suite,
            ..
        } = services.first()?;
        let wanted = [
            ("health_certificate_minutes", health_certificate_minutes.is_some()),
            ("requests_per_minute_per_key", requests_per_minute_per_key.is_some()),
            ("signer_suite", signer_suite.is_some()),
        ];
        let (name, _) = wanted.iter().find(|(_, wanted)| *wanted)?;
        Some(format!(
            "{name} is chosen when a service starts, and the one that is up runs already"
        ))
    }
}

impl World {
    /// Why `action` cannot be carried out on this fabric, if it cannot: its HGS is shared with others, and what it is
    /// about would harm them or cannot be undone.
    pub(in crate::scenario) async fn cannot(&self, action: &Action) -> anyhow::Result<Option<String>> {
        let shared = |hgs: &Option<At<String>>| anyhow::Ok(self.hgs(hgs.as_ref().map(|name| name.as_str()))?.shared);
        let reason = match action {
            Action::KillService(of) | Action::StartService(of) | Action::RestartService(of) if shared(&of.hgs)? => {
                "a service in a container of its own is not ended from inside another container"
            }
            Action::LosePrimary(of) if shared(&of.hgs)? => NO_DATABASE,
            Action::Overload(_) if shared(&None)? => NO_DATABASE,
            Action::RemoveOldCertificates(of) if shared(&of.hgs)? => {
                "the HGS is shared: certificates whose keys were removed do not come back, and the VMs of others need them"
            }
            Action::RenewSigner(of) if shared(&of.hgs)? => {
                "the HGS is shared: a signer that was replaced does not come back"
            }
            Action::AdvanceClock(clock) if self.moves_shared_clock(&clock.of)? => CLOCKS,
            Action::Wait(wait) if wait.time.0 > LONGEST_WAIT && self.hgs.values().any(|hgs| hgs.shared) => CLOCKS,
            Action::RemoveBaseline(of) => return self.twin(of, "tpm-baselines", "digest").await,
            Action::RemoveCiPolicy(of) => return self.twin(of, "ci-policies", "sha256").await,
            _ => return Ok(None),
        };
        Ok(Some(reason.to_owned()))
    }

    fn moves_shared_clock(&self, parts: &[At<String>]) -> anyhow::Result<bool> {
        for part in parts {
            let hgs = match part.split_once('/') {
                Some((hgs, _)) => Some(hgs),
                None if self.hosts.contains_key(part.as_str()) => continue,
                None => None,
            };
            if self.hgs(hgs)?.shared {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// To remove what somebody else has registered too changes nothing, so nothing would be seen.
    async fn twin(&self, of: &Named, listing: &str, digest: &str) -> anyhow::Result<Option<String>> {
        let hgs: &HgsHere = self.hgs(of.hgs.as_ref().map(|name| name.as_str()))?;
        if !hgs.shared {
            return Ok(None);
        }
        let rows: Vec<Value> = hgs.get(ServiceName::Attestation, listing).await?;
        let own = hgs.registered_as(&of.name);
        let digest_of = |row: &&Value| row.get(digest).cloned();
        let named = |row: &&Value| row.get("name").and_then(Value::as_str) == Some(own.as_str());
        let wanted = rows.iter().find(named).as_ref().and_then(digest_of);
        let twin = rows
            .iter()
            .filter(|row| !named(row))
            .find(|row| wanted.is_some() && digest_of(row) == wanted);
        Ok(twin.map(|_| "the HGS is shared: others have registered the same, and it stays in force".to_owned()))
    }
}

/// The name under which a scenario's `name` is registered beside those of others.
pub(super) fn own_name(name: &str) -> String {
    format!("{OWN_NAMES}{name}")
}

/// How the names begin that scenarios register.
pub(super) const OWN_NAMES: &str = "scenario-";
/// A key is used again after so many others.
const TPMS: usize = 24;
const NO_DATABASE: &str = "the database of an HGS that is shared is not for scenarios";
const CLOCKS: &str = "so much time would have to pass, and the clocks of an HGS that is shared are not moved: they cannot \
                      be set back";
