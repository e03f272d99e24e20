//! What an administrator chooses for the whole service.

use actix_web::{HttpResponse, web};
use hgs_protocol::health::AttestationMode;
use hgs_service::tokens::Holder;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Problem, record, refresh, unavailable};
use crate::{App, store::StoredSettings};

/// The settings as a whole; a PUT replaces them all.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Settings {
    /// Attestation modes whose health certificates are accepted.
    accepted_modes: Vec<Mode>,
    /// Upper limit of the offline unwraps that a release may carry; 0 allows none, null means as started.
    max_offline_unwraps: Option<u32>,
    /// Whether wrappings and hosts may use OAEP with SHA-1. Old guardians may need it; leave it off otherwise.
    allow_sha1_oaep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
enum Mode {
    Tpm,
    ActiveDirectory,
    HostKey,
}

impl Mode {
    fn of(code: u8) -> Option<Mode> {
        Some(match AttestationMode::from_code(u64::from(code))? {
            AttestationMode::Tpm => Mode::Tpm,
            AttestationMode::ActiveDirectory => Mode::ActiveDirectory,
            AttestationMode::HostKey => Mode::HostKey,
        })
    }

    fn code(self) -> u8 {
        match self {
            Mode::Tpm => AttestationMode::Tpm,
            Mode::ActiveDirectory => AttestationMode::ActiveDirectory,
            Mode::HostKey => AttestationMode::HostKey,
        }
        .code()
    }
}

/// The settings in force.
#[utoipa::path(get, path = "/settings", tag = "settings",
    responses((status = 200, description = "All of them", body = Settings)))]
pub(super) async fn get(app: web::Data<App>) -> HttpResponse {
    match app.store.settings().await {
        Ok(stored) => HttpResponse::Ok().json(Settings {
            accepted_modes: stored
                .accepted_modes
                .iter()
                .filter_map(|code| Mode::of(*code))
                .collect(),
            max_offline_unwraps: stored.max_offline_unwraps,
            allow_sha1_oaep: stored.allow_sha1_oaep,
        }),
        Err(error) => unavailable(&error),
    }
}

/// Replaces the settings.
#[utoipa::path(put, path = "/settings", tag = "settings", request_body = Settings,
    responses((status = 200, description = "In force", body = Settings),
              (status = 400, description = "Not settings", body = Problem)))]
pub(super) async fn put(app: web::Data<App>, by: web::ReqData<Holder>, new: web::Json<Settings>) -> HttpResponse {
    let done = async {
        record(&app, *by, "settings-changed", serde_json::json!(&*new)).await?;
        let mut modes: Vec<u8> = new.accepted_modes.iter().map(|mode| mode.code()).collect();
        modes.sort_unstable();
        modes.dedup();
        let stored = StoredSettings {
            accepted_modes: modes,
            max_offline_unwraps: new.max_offline_unwraps,
            allow_sha1_oaep: new.allow_sha1_oaep,
        };
        app.store.set_settings(&stored).await.map_err(|e| unavailable(&e))?;
        refresh(&app).await
    };
    match done.await {
        Ok(()) => get(app.clone()).await,
        Err(refusal) => refusal,
    }
}
