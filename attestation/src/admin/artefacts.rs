//! What hosts of TPM mode are held against: baselines, code-integrity policies, dump keys.

use actix_web::{
    HttpResponse,
    web::{Data, Json, Path, Query},
};
use hgs_protocol::wire::boot_log::{Bank, BootLog};
use serde::{Deserialize, Serialize};

use super::{Answer, App, NewFile, Paging, Problem, Refused, added, decode, digest, invalid, removed, valid_name};
use crate::{
    baseline::{CiPolicy, DumpKey, TpmBaseline},
    ci_file::CiPolicyFile,
    evidence::{self, Subject},
    facts::Facts,
    replay::{MeasuredLog, TcgLogError},
    store::{Kind, PolicyVersion, Registered},
};

/// A registered artefact.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Artefact {
    name: String,
    /// Hex. Of a baseline: SHA-256 of PCR 7's digests in order; otherwise the digest as measured
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    policy_version: Option<PolicyVersion>,
    /// True while no host is held against it
    staged: bool,
}

impl Artefact {
    fn of(kind: Kind, row: &Registered) -> Artefact {
        let digest = match kind {
            Kind::TpmBaseline => serde_json::from_str(&row.body)
                .ok()
                .map(|baseline: TpmBaseline| baseline.digest()),
            Kind::CiPolicy => serde_json::from_str(&row.body)
                .ok()
                .map(|policy: CiPolicy| policy.sha256),
            _ => serde_json::from_str(&row.body).ok().map(|key: DumpKey| key.sha256),
        };
        let digest = digest.map(hex::encode);
        let baseline = kind == Kind::TpmBaseline;
        Artefact {
            name: row.name.clone(),
            sha256: digest.clone().filter(|_| !baseline),
            digest: digest.filter(|_| baseline),
            policy_version: row.version,
            staged: row.staged,
        }
    }
}

async fn list(app: &App, paging: &Paging, kind: Kind) -> Answer {
    let rows = app.store.registered(kind, &paging.page()).await?;
    let rows = rows.iter().map(|row| Artefact::of(kind, row)).collect();
    Ok(paging.answer(rows, |row: &Artefact| &row.name))
}

async fn register(app: &App, kind: Kind, row: Registered) -> Answer {
    let outcome = app.store.register(kind, &row).await?;
    added(app, outcome, &row.name, Artefact::of(kind, &row))
}

async fn put_in_force(app: &App, kind: Kind, name: &str) -> Answer {
    let found = app.store.put_in_force(kind, name).await?;
    app.changed();
    match app.store.registered_as(kind, name).await? {
        Some(row) if found => Ok(HttpResponse::Ok().json(Artefact::of(kind, &row))),
        _ => Err(Problem::Missing(name.to_owned())),
    }
}

/// TPM baselines
#[utoipa::path(get, path = "/tpm-baselines", params(Paging), responses((status = 200, body = [Artefact])))]
pub(super) async fn list_baselines(app: Data<App>, paging: Query<Paging>) -> Answer {
    list(&app, &paging, Kind::TpmBaseline).await
}

/// Register a TPM baseline from a .tcglog file
#[utoipa::path(post, path = "/tpm-baselines", request_body = NewFile, responses(
    (status = 201, body = Artefact), (status = 200, description = "registered before", body = Artefact),
    (status = 400, body = Refused), (status = 409, body = Refused)))]
pub(super) async fn add_baseline(app: Data<App>, new: Json<NewFile>) -> Answer {
    let name = valid_name(&new.name)?;
    let log = decode(&new.content)?;
    let baseline = TpmBaseline::from_log(&name, &log)
        .map_err(|error| Problem::Invalid(format!("not usable as a TPM baseline: {error}")))?;
    let body = serde_json::to_string(&baseline).map_err(invalid)?;
    let answer = register(&app, Kind::TpmBaseline, versioned(name.clone(), &new, body)).await?;
    super::review::keep_baseline(&app, &name, &log).await?;
    Ok(answer)
}

/// Remove a TPM baseline
#[utoipa::path(delete, path = "/tpm-baselines/{name}", params(("name" = String, Path)), responses(
    (status = 204), (status = 404, body = Refused)))]
pub(super) async fn remove_baseline(app: Data<App>, name: Path<String>) -> Answer {
    let gone = app.store.unregister(Kind::TpmBaseline, &name).await?;
    if gone {
        evidence::forget(app.store.database(), Subject::Baseline, &name).await?;
    }
    removed(&app, gone, &name)
}

/// Hold hosts against a staged baseline from now on
#[utoipa::path(post, path = "/tpm-baselines/{name}/put-in-force", params(("name" = String, Path)), responses(
    (status = 200, body = Artefact), (status = 404, body = Refused)))]
pub(super) async fn baseline_in_force(app: Data<App>, name: Path<String>) -> Answer {
    put_in_force(&app, Kind::TpmBaseline, &name).await
}

/// Code-integrity policies
#[utoipa::path(get, path = "/ci-policies", params(Paging), responses((status = 200, body = [Artefact])))]
pub(super) async fn list_ci_policies(app: Data<App>, paging: Query<Paging>) -> Answer {
    list(&app, &paging, Kind::CiPolicy).await
}

/// Register a code-integrity policy from its compiled file, signed or not
#[utoipa::path(post, path = "/ci-policies", request_body = NewFile, responses(
    (status = 201, body = Artefact), (status = 200, description = "registered before", body = Artefact),
    (status = 400, body = Refused), (status = 409, body = Refused)))]
pub(super) async fn add_ci_policy(app: Data<App>, new: Json<NewFile>) -> Answer {
    let name = valid_name(&new.name)?;
    let policy = CiPolicy {
        sha256: CiPolicyFile::parse(&decode(&new.content)?).map_err(invalid)?.sha256,
        name: name.clone(),
    };
    let body = serde_json::to_string(&policy).map_err(invalid)?;
    register(&app, Kind::CiPolicy, versioned(name, &new, body)).await
}

/// Remove a code-integrity policy
#[utoipa::path(delete, path = "/ci-policies/{name}", params(("name" = String, Path)), responses(
    (status = 204), (status = 404, body = Refused)))]
pub(super) async fn remove_ci_policy(app: Data<App>, name: Path<String>) -> Answer {
    removed(&app, app.store.unregister(Kind::CiPolicy, &name).await?, &name)
}

/// Hold hosts against a staged code-integrity policy from now on
#[utoipa::path(post, path = "/ci-policies/{name}/put-in-force", params(("name" = String, Path)), responses(
    (status = 200, body = Artefact), (status = 404, body = Refused)))]
pub(super) async fn ci_policy_in_force(app: Data<App>, name: Path<String>) -> Answer {
    put_in_force(&app, Kind::CiPolicy, &name).await
}

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewDumpKey {
    name: String,
    /// A .tcglog of a host with dump encryption, base64
    content: Option<String>,
    /// SHA-256 of the dump key's public half, hex; in place of content
    #[serde(alias = "publicKeyHash", alias = "public_key_hash")]
    sha256: Option<String>,
    #[serde(default)]
    stage: bool,
}

/// Dump encryption keys
#[utoipa::path(get, path = "/dump-keys", params(Paging), responses((status = 200, body = [Artefact])))]
pub(super) async fn list_dump_keys(app: Data<App>, paging: Query<Paging>) -> Answer {
    list(&app, &paging, Kind::DumpKey).await
}

/// Register a dump encryption key from a baseline or its hash
#[utoipa::path(post, path = "/dump-keys", request_body = NewDumpKey, responses(
    (status = 201, body = Artefact), (status = 200, description = "registered before", body = Artefact),
    (status = 400, body = Refused), (status = 409, body = Refused)))]
pub(super) async fn add_dump_key(app: Data<App>, new: Json<NewDumpKey>) -> Answer {
    let name = valid_name(&new.name)?;
    let sha256 = match (&new.content, &new.sha256) {
        (Some(log), None) => dump_key_of(&decode(log)?)?,
        (None, Some(hash)) => digest(hash)?,
        _ => return Err(Problem::Invalid("give either content or sha256".to_owned())),
    };
    let key = DumpKey {
        name: name.clone(),
        sha256,
    };
    let row = Registered {
        name,
        version: None,
        staged: new.stage,
        body: serde_json::to_string(&key).map_err(invalid)?,
    };
    register(&app, Kind::DumpKey, row).await
}

/// Remove a dump encryption key
#[utoipa::path(delete, path = "/dump-keys/{name}", params(("name" = String, Path)), responses(
    (status = 204), (status = 404, body = Refused)))]
pub(super) async fn remove_dump_key(app: Data<App>, name: Path<String>) -> Answer {
    removed(&app, app.store.unregister(Kind::DumpKey, &name).await?, &name)
}

/// Hold hosts against a staged dump encryption key from now on
#[utoipa::path(post, path = "/dump-keys/{name}/put-in-force", params(("name" = String, Path)), responses(
    (status = 200, body = Artefact), (status = 404, body = Refused)))]
pub(super) async fn dump_key_in_force(app: Data<App>, name: Path<String>) -> Answer {
    put_in_force(&app, Kind::DumpKey, &name).await
}

fn versioned(name: String, new: &NewFile, body: String) -> Registered {
    Registered {
        name,
        version: Some(new.policy_version),
        staged: new.stage,
        body,
    }
}

/// The one dump key that a boot log measures.
fn dump_key_of(log: &[u8]) -> Result<[u8; 32], Problem> {
    let unusable = |error: TcgLogError| Problem::Invalid(format!("not usable as a boot log: {error}"));
    let log = BootLog::parse(log).map_err(|error| unusable(error.into()))?;
    let mut measured = MeasuredLog::read(&log, Bank::Sha256);
    if !measured.violations.is_empty() {
        return Err(unusable(measured.violations.swap_remove(0)));
    }
    let mut keys = Facts::read(&measured).dump_keys;
    keys.dedup();
    match keys.as_slice() {
        [key] => key
            .as_slice()
            .try_into()
            .map_err(|_| Problem::Invalid("the log's dump key digest is no SHA-256".to_owned())),
        [] => Err(Problem::Invalid(
            "the log measures no dump key: turn dump encryption on and restart the host first".to_owned(),
        )),
        _ => Err(Problem::Invalid("the log measures two different dump keys".to_owned())),
    }
}
