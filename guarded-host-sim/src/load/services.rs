//! The services before which light hosts attest: this run's own, or somebody's attestation service.

use std::path::Path;

use anyhow::{Context, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::{env::UnixTime, health::AttestationMode};
use serde_json::json;

use super::{LoadArgs, memory::pss_kib, report::ServiceMemory};
use crate::fabric::{
    hgs::Hgs,
    service::{Attachment, Extras, Service, administrator_token},
};

/// Where hosts attest.
pub(super) enum Services {
    /// Started by this run, both of them.
    Own(Box<Hgs>),
    /// An attestation service that runs elsewhere, and whether the lab may move its clock.
    Attached(Box<Service>, bool),
}

impl Services {
    /// Starts services below `folder`, or attaches to the one that `args` name, and sees that it is in `mode`.
    pub(super) async fn open(args: &LoadArgs, folder: &Path, mode: AttestationMode) -> anyhow::Result<Services> {
        let mode = match mode {
            AttestationMode::HostKey => "HostKey",
            _ => "Tpm",
        };
        let Some(url) = &args.attestation else {
            let mut extras = Extras::default();
            // A host attests once a round, and a minute may see many rounds.
            let most = args.rounds.saturating_add(20).to_string();
            extras
                .environment
                .push(("HGS_REQUESTS_PER_MINUTE_PER_KEY".to_owned(), most));
            let hgs = Hgs::start(folder, &extras, None)?;
            hgs.trust_signer().await?;
            hgs.attestation
                .admin_put("operation-mode", &json!({ "mode": mode }))
                .await?;
            return Ok(Services::Own(Box::new(hgs)));
        };
        let base = base_url(url)?;
        let admin = args.attestation_admin.as_deref().context("give --attestation-admin")?;
        let file = args.token_file.as_deref().context("give --token-file")?;
        let name = "the attestation service";
        let service = Service::attach(
            "attestation",
            &Attachment {
                https: None,
                url: base.to_owned(),
                admin_url: admin.trim_end_matches('/').to_owned(),
                token: administrator_token(name, admin, file)?.to_string(),
                root: args.attestation_root.clone(),
                clock: args.lab_clock.clone().unwrap_or_default(),
                replica_clocks: Vec::new(),
            },
        )?;
        let present = service.operation_mode().await?;
        ensure!(
            present == mode,
            "{name} is in mode {present}, which this run does not change: choose the mode there, or another --mode here"
        );
        Ok(Services::Attached(Box::new(service), args.lab_clock.is_some()))
    }

    pub(super) fn attestation(&self) -> &Service {
        match self {
            Services::Own(hgs) => &hgs.attestation,
            Services::Attached(service, _) => service,
        }
    }

    /// Base URL of attestation, as hosts are told it.
    pub(super) fn url(&self) -> String {
        format!("{}/Attestation", self.attestation().url)
    }

    /// Whether the lab may move the services' clocks.
    pub(super) fn has_lab_clock(&self) -> bool {
        match self {
            Services::Own(_) => true,
            Services::Attached(_, clock) => *clock,
        }
    }

    /// The services' time, where the lab may move it: an earlier run may have done so.
    pub(super) async fn now(&self) -> anyhow::Result<Option<UnixTime>> {
        match self.has_lab_clock() {
            true => Ok(Some(UnixTime(self.attestation().advance_clock(0).await?))),
            false => Ok(None),
        }
    }

    /// Moves the services' clocks forward.
    pub(super) async fn advance_clock(&self, seconds: u64) -> anyhow::Result<()> {
        self.attestation().advance_clock(seconds).await?;
        if let Services::Own(hgs) = self {
            hgs.kps.advance_clock(seconds).await?;
        }
        Ok(())
    }

    /// Kills both services, as a power cut would.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        match self {
            Services::Own(hgs) => {
                hgs.attestation.kill()?;
                hgs.kps.kill()
            }
            Services::Attached(..) => anyhow::bail!("services that run elsewhere cannot be killed from here"),
        }
    }

    /// Starts both services again, over their data and at their addresses.
    pub(super) fn restart(&mut self) -> anyhow::Result<()> {
        match self {
            Services::Own(hgs) => {
                hgs.attestation.restart()?;
                hgs.kps.restart()
            }
            Services::Attached(..) => anyhow::bail!("services that run elsewhere cannot be started from here"),
        }
    }

    /// Registers what the hosts of the pool `tag` have in common. What an earlier run of this pool left is replaced.
    pub(super) async fn register_model(
        &self,
        tag: &str,
        makers: &[Vec<u8>],
        (boot_log, ci_policy): (&[u8], &[u8]),
    ) -> anyhow::Result<()> {
        let service = self.attestation();
        for (name, der) in ["root", "intermediate"].into_iter().zip(makers) {
            service.trust_tpm_maker(&format!("light-{tag}-{name}"), der).await?;
        }
        let name = format!("light-{tag}");
        for (kind, content) in [("tpm-baselines", boot_log), ("ci-policies", ci_policy)] {
            // Not there on a first run; whatever else is wrong, the registration says.
            let _ = service.admin_delete(&format!("{kind}/{name}")).await;
            let body = json!({ "name": name, "content": STANDARD.encode(content) });
            service.admin_post(kind, &body).await?;
        }
        Ok(())
    }

    /// What each service takes, where that can be seen.
    pub(super) fn memory(&self) -> Vec<ServiceMemory> {
        let services = match self {
            Services::Own(hgs) => vec![&hgs.attestation, &hgs.kps],
            Services::Attached(..) => Vec::new(),
        };
        let seen = |service: &&Service| {
            Some(ServiceMemory {
                service: service.name,
                pss_kib: pss_kib(service.process_id()?)?,
            })
        };
        services.iter().filter_map(seen).collect()
    }

    /// Says which service has ended, if one has.
    pub(super) fn ended(&mut self) -> Option<String> {
        match self {
            Services::Own(hgs) => hgs.ended(),
            Services::Attached(..) => None,
        }
    }
}

/// `http://HOST:PORT` of `http://HOST:PORT/Attestation`.
fn base_url(url: &str) -> anyhow::Result<&str> {
    let url = url.trim_end_matches('/');
    let cut = url.len().saturating_sub(SUFFIX.len());
    match (url.get(..cut), url.get(cut..)) {
        (Some(base), Some(end)) if end.eq_ignore_ascii_case(SUFFIX) => Ok(base),
        _ => anyhow::bail!("{url} does not end with {SUFFIX}, as in http://hgs.bastion.local{SUFFIX}"),
    }
}

const SUFFIX: &str = "/Attestation";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_the_one_that_hosts_are_told() {
        let base = "http://127.0.0.1:8080";
        assert_eq!(base_url("http://127.0.0.1:8080/Attestation").unwrap(), base);
        assert_eq!(base_url("http://127.0.0.1:8080/attestation/").unwrap(), base);
        for wrong in ["http://127.0.0.1:8080", "", "http://127.0.0.1/KeyProtection"] {
            assert!(base_url(wrong).is_err(), "{wrong}");
        }
    }
}
