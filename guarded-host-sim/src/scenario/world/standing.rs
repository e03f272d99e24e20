//! What administrators have told an HGS, as far as a scenario may change it: noted before, put back afterwards.
//! What a scenario registers has names of its own and is removed; everything else is set as it was.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{administer::Own, attached::OWN_NAMES};
use crate::fabric::{hgs::Hgs, service::Service};

/// Settings of both services.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Standing {
    mode: Value,
    ca_certificates: Value,
    /// Whether a policy is on, by its administrators' name.
    policies: BTreeMap<String, bool>,
    settings: Value,
    signers: Vec<Trusted>,
    certificates: Vec<Own>,
}

/// An attestation signer that key protection trusts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trusted {
    thumbprint: String,
    certificate: String,
    deny_issued_before: Option<i64>,
}

#[derive(Deserialize)]
struct Policy {
    switch: String,
    enabled: bool,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl Standing {
    /// How it is now.
    pub(super) async fn of(hgs: &Hgs) -> anyhow::Result<Standing> {
        let policies: Vec<Policy> = hgs.attestation.admin_get("policies").await?;
        Ok(Standing {
            mode: hgs.attestation.admin_get("operation-mode").await?,
            ca_certificates: hgs.attestation.admin_get("ca-certificates").await?,
            policies: policies
                .into_iter()
                .map(|policy| (policy.switch, policy.enabled))
                .collect(),
            settings: hgs.kps.admin_get("settings").await?,
            signers: hgs.kps.admin_get("attestation-signers").await?,
            certificates: hgs.kps.admin_get("certificates").await?,
        })
    }

    /// Makes it so again, and removes what scenarios have registered. Fails where something is gone for good.
    pub(super) async fn put_back(&self, hgs: &Hgs) -> anyhow::Result<()> {
        self.put_back_attestation(&hgs.attestation).await?;
        self.put_back_key_protection(&hgs.kps).await?;
        let now = Standing::of(hgs).await?;
        anyhow::ensure!(
            now == *self,
            "the HGS is not as it was before the scenario: it was {}, and is {}",
            json!(self),
            json!(now)
        );
        Ok(())
    }

    async fn put_back_attestation(&self, attestation: &Service) -> anyhow::Result<()> {
        for listing in LISTINGS {
            remove_own(attestation, listing).await?;
        }
        let now: Value = attestation.admin_get("operation-mode").await?;
        if now != self.mode {
            attestation.admin_put("operation-mode", &self.mode).await?;
        }
        let now: Value = attestation.admin_get("ca-certificates").await?;
        if now != self.ca_certificates {
            attestation.admin_put("ca-certificates", &self.ca_certificates).await?;
        }
        for policy in attestation.admin_get::<Vec<Policy>>("policies").await? {
            let verb = match self.policies.get(&policy.switch) {
                Some(true) if !policy.enabled => "enable",
                Some(false) if policy.enabled => "disable",
                _ => continue,
            };
            let path = format!("policies/{}/{verb}", policy.switch);
            attestation.admin_post(&path, &json!({})).await?;
        }
        Ok(())
    }

    async fn put_back_key_protection(&self, kps: &Service) -> anyhow::Result<()> {
        let now: Value = kps.admin_get("settings").await?;
        if now != self.settings {
            kps.admin_put("settings", &self.settings).await?;
        }
        let now: Vec<Trusted> = kps.admin_get("attestation-signers").await?;
        for signer in self.signers.iter().filter(|signer| !now.contains(signer)) {
            let body = json!({ "certificate": signer.certificate });
            kps.admin_post("attestation-signers", &body).await?;
            let path = format!("attestation-signers/{}/policy", signer.thumbprint);
            let body = json!({ "denyIssuedBefore": signer.deny_issued_before });
            kps.admin_put(&path, &body).await?;
        }
        self.put_back_certificates(kps).await
    }

    /// A certificate that is to be primary must be enabled, and one that is to go must be neither.
    async fn put_back_certificates(&self, kps: &Service) -> anyhow::Result<()> {
        let now: Vec<Own> = kps.admin_get("certificates").await?;
        if now == self.certificates {
            return Ok(());
        }
        for before in self.certificates.iter().filter(|before| !now.contains(before)) {
            kps.admin_patch(&before.path(), &json!({ "isEnabled": true })).await?;
            if before.is_primary {
                kps.admin_patch(&before.path(), &json!({ "isPrimary": true })).await?;
            }
        }
        for before in self.certificates.iter().filter(|before| !before.is_enabled) {
            kps.admin_patch(&before.path(), &json!({ "isEnabled": false })).await?;
        }
        let known = |one: &&Own| self.certificates.iter().any(|before| before.sha256 == one.sha256);
        for new in now.iter().filter(|one| !known(one)) {
            kps.admin_patch(&new.path(), &json!({ "isEnabled": false })).await?;
            kps.admin_delete(&new.path()).await?;
        }
        Ok(())
    }
}

/// Removes what has a scenario's name from a listing of attestation.
async fn remove_own(attestation: &Service, listing: &str) -> anyhow::Result<()> {
    // Names in order, whatever the database's idea of it: all that begin with the word come after the word.
    let first = OWN_NAMES.trim_end_matches(|c: char| !c.is_alphanumeric());
    let mut after = first.to_owned();
    loop {
        let query = reqwest::Url::parse_with_params("http://localhost/", [("after", &after)])?;
        let path = format!("{listing}?{}", query.query().unwrap_or_default());
        let page: Vec<Named> = attestation.admin_get(&path).await?;
        for own in page.iter().filter(|row| row.name.starts_with(OWN_NAMES)) {
            let path = format!("{listing}/{}", own.name);
            let removed = attestation.admin_delete(&path).await;
            removed.with_context(|| format!("{} is left at attestation", own.name))?;
        }
        match page.last() {
            Some(last) => after.clone_from(&last.name),
            None => return Ok(()),
        }
    }
}

/// Where scenarios register something at attestation.
const LISTINGS: [&str; 7] = [
    "tpm-hosts",
    "host-keys",
    "host-groups",
    "tpm-baselines",
    "ci-policies",
    "dump-keys",
    "tpm-trust",
];
