//! What an administrator of an HGS does over its administrators' listeners, and what befalls its databases.

use std::{fs, sync::atomic::Ordering};

use anyhow::{Context, ensure};
use hgs_protocol::env::{Clock, UnixTime};
use reqwest::Method;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};

use super::HgsHere;
use crate::{
    fabric::{hgs::Hgs, service::Service},
    renew_signer::{RenewSignerArgs, renew},
    scenario::{act::hgs::Old, model::step::ServiceName},
};

/// A certificate of key protection as its administrators' listener shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Own {
    pub(super) sha256: String,
    pub(super) certificate_type: String,
    pub(super) is_primary: bool,
    pub(super) is_enabled: bool,
}

impl Own {
    /// Where it is below `/admin/v1`.
    pub(super) fn path(&self) -> String {
        format!("certificates/{}/{}", self.certificate_type.to_lowercase(), self.sha256)
    }
}

/// A database that nobody else can write to; it is let go with this value.
pub(in crate::scenario) struct Held(SqliteConnection);

impl Held {
    /// Lets others write again.
    pub(in crate::scenario) async fn let_go(mut self) -> anyhow::Result<()> {
        sqlx::query("ROLLBACK").execute(&mut self.0).await?;
        Ok(())
    }
}

impl HgsHere {
    /// GET below `/admin/v1`.
    pub(in crate::scenario) async fn get<T: DeserializeOwned>(&self, of: ServiceName, path: &str) -> anyhow::Result<T> {
        service(&*self.hgs.read().await, of).admin_get(path).await
    }

    /// POST below `/admin/v1`.
    pub(in crate::scenario) async fn post(&self, of: ServiceName, path: &str, body: &Value) -> anyhow::Result<()> {
        self.post_for(of, path, body).await.map(|_| ())
    }

    /// POST below `/admin/v1`; gives the answer.
    pub(in crate::scenario) async fn post_for(
        &self,
        of: ServiceName,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<Vec<u8>> {
        service(&*self.hgs.read().await, of).admin_post(path, body).await
    }

    /// PUT below `/admin/v1`.
    pub(in crate::scenario) async fn put(&self, of: ServiceName, path: &str, body: &Value) -> anyhow::Result<()> {
        let hgs = self.hgs.read().await;
        service(&hgs, of).admin_put(path, body).await.map(|_| ())
    }

    /// DELETE below `/admin/v1` of attestation.
    pub(in crate::scenario) async fn remove(&self, path: &str) -> anyhow::Result<()> {
        self.hgs.read().await.attestation.admin_delete(path).await
    }

    /// Any request below `/admin/v1`; gives whatever is answered.
    pub(in crate::scenario) async fn administer(
        &self,
        of: ServiceName,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Vec<u8>)> {
        let method = Method::from_bytes(method.as_bytes()).context("this is no HTTP method")?;
        service(&*self.hgs.read().await, of).admin_any(method, path, body).await
    }

    /// The time of a service's clock.
    pub(in crate::scenario) fn now(&self, of: ServiceName) -> UnixTime {
        let ahead = self.ahead_of(of).load(Ordering::SeqCst);
        Clock::system()
            .now()
            .plus_seconds(i64::try_from(ahead).unwrap_or(i64::MAX))
    }

    /// Key protection's limit of starts without contact.
    pub(in crate::scenario) async fn allow_offline(&self, starts: u32) -> anyhow::Result<()> {
        let mut settings: Value = self.get(ServiceName::KeyProtection, "settings").await?;
        if let Some(settings) = settings.as_object_mut() {
            settings.insert("maxOfflineUnwraps".to_owned(), starts.into());
        }
        self.put(ServiceName::KeyProtection, "settings", &settings).await
    }

    /// The attestation signers' certificates, DER.
    pub(in crate::scenario) async fn signing_certificates(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        self.hgs.read().await.signing_certificates().await
    }

    /// Key protection trusts the present attestation signers.
    pub(in crate::scenario) async fn trust_signers(&self) -> anyhow::Result<()> {
        self.hgs.read().await.trust_signer().await.map(|_| ())
    }

    /// Key protection trusts no attestation signer any more.
    pub(in crate::scenario) async fn untrust_signers(&self) -> anyhow::Result<()> {
        let hgs = self.hgs.read().await;
        let signers: Vec<Value> = hgs.kps.admin_get("attestation-signers").await?;
        for thumbprint in signers.iter().filter_map(|signer| signer.get("thumbprint")?.as_str()) {
            hgs.kps
                .admin_delete(&format!("attestation-signers/{thumbprint}"))
                .await?;
        }
        Ok(())
    }

    /// What the timer of the product's renewal task does; gives what it says.
    pub(in crate::scenario) async fn renew_signer(&self, now: bool, at_once: bool) -> anyhow::Result<String> {
        let hgs = self.hgs.read().await;
        let token = |service: &Service| {
            let (url, token) = service.administrator();
            let path = self.folder.join(format!("{}-token", service.name));
            fs::write(&path, token).with_context(|| format!("cannot write {}", path.display()))?;
            anyhow::Ok((url.to_owned(), path))
        };
        let (attestation_admin, attestation_token_file) = token(&hgs.attestation)?;
        let (kps_admin, kps_token_file) = token(&hgs.kps)?;
        let args = RenewSignerArgs {
            attestation_admin,
            attestation_token_file,
            attestation_root: None,
            kps_admin,
            kps_token_file,
            kps_root: None,
            now,
            at_once,
            json: false,
        };
        Ok(renew(&args, &mut Vec::new()).await?.to_string())
    }

    /// New signing and encryption certificates, which become primary.
    pub(in crate::scenario) async fn rotate_certificates(&self) -> anyhow::Result<()> {
        let hgs = self.hgs.read().await;
        for kind in ["Signing", "Encryption"] {
            let name = format!("HGS {kind}, the next");
            let body = json!({ "certificateType": kind, "generate": { "commonName": name } });
            let made: Own = serde_json::from_slice(&hgs.kps.admin_post("certificates", &body).await?)?;
            hgs.kps.admin_patch(&made.path(), &json!({ "isPrimary": true })).await?;
        }
        Ok(())
    }

    /// Does the same to every certificate that is not primary.
    pub(in crate::scenario) async fn for_old_certificates(&self, what: Old) -> anyhow::Result<()> {
        let hgs = self.hgs.read().await;
        let all: Vec<Own> = hgs.kps.admin_get("certificates").await?;
        for old in all.iter().filter(|one| !one.is_primary) {
            let path = old.path();
            match what {
                Old::Disable => drop(hgs.kps.admin_patch(&path, &json!({ "isEnabled": false })).await?),
                Old::Enable => drop(hgs.kps.admin_patch(&path, &json!({ "isEnabled": true })).await?),
                Old::Remove if old.is_enabled => {}
                Old::Remove => hgs.kps.admin_delete(&path).await?,
            }
        }
        Ok(())
    }

    /// No certificate of `role` is primary any more in key protection's database, to which no call of an administrator
    /// leads; a restore by hand does. The service sees it when it looks next.
    pub(in crate::scenario) async fn lose_primary(&self, role: &str) -> anyhow::Result<()> {
        let mut database = self.database(ServiceName::KeyProtection).await?;
        let lose = "UPDATE guardian_certificate SET is_primary = FALSE WHERE role = $1";
        let done = sqlx::query(lose).bind(role).execute(&mut database).await?;
        ensure!(done.rows_affected() > 0, "there was no primary {role} certificate");
        sqlx::query("UPDATE standing SET revision = revision + 1")
            .execute(&mut database)
            .await?;
        // Any change lets the service look at once.
        let settings: Value = self.get(ServiceName::KeyProtection, "settings").await?;
        self.put(ServiceName::KeyProtection, "settings", &settings).await
    }

    /// Takes a service's database for oneself: nobody else writes to it.
    pub(in crate::scenario) async fn hold_database(&self, of: ServiceName) -> anyhow::Result<Held> {
        let mut database = self.database(of).await?;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut database).await?;
        Ok(Held(database))
    }

    async fn database(&self, of: ServiceName) -> anyhow::Result<SqliteConnection> {
        let hgs = self.hgs.read().await;
        let service = service(&hgs, of);
        let file = service.folder().join("data").join(format!("{}.db", service.name));
        SqliteConnection::connect(&format!("sqlite://{}", file.display()))
            .await
            .with_context(|| format!("the database {}", file.display()))
    }
}

fn service(hgs: &Hgs, name: ServiceName) -> &Service {
    match name {
        ServiceName::Attestation => &hgs.attestation,
        ServiceName::KeyProtection => &hgs.kps,
    }
}
