//! Host keys, the VSM keys seen for hosts and those denied, and the host groups of Active Directory.

use actix_web::web::{Data, Json, Path, Query};
use hgs_protocol::health::AttestationMode;
use serde::{Deserialize, Serialize};

use super::{Answer, App, Paging, Problem, Refused, added, decode, digest, invalid, removed, valid_name};
use crate::{
    host_key::HostKey,
    store::{Added, Kind, KnownHostKey, Registered, SeenVsmKey},
};

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewHostKey {
    /// The host's FQDN, or another name of it
    name: String,
    /// Certificate (DER or PEM), SubjectPublicKeyInfo, RSA1 or ECS1 blob, base64. Of a certificate only the key counts
    content: String,
}

/// A registered host key.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct HostKeyView {
    #[serde(flatten)]
    key: KnownHostKey,
    /// Set while another mode is in force
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
}

/// Registered host keys
#[utoipa::path(get, path = "/host-keys", params(Paging), responses((status = 200, body = [KnownHostKey])))]
pub(super) async fn list(app: Data<App>, paging: Query<Paging>) -> Answer {
    let rows = app.store.host_keys(&paging.page()).await?;
    Ok(paging.answer(rows, |key| &key.name))
}

/// Register a host by its host key
#[utoipa::path(post, path = "/host-keys", request_body = NewHostKey, responses(
    (status = 201, body = HostKeyView), (status = 200, description = "registered before", body = HostKeyView),
    (status = 400, body = Refused), (status = 409, body = Refused)))]
pub(super) async fn add(app: Data<App>, new: Json<NewHostKey>) -> Answer {
    let name = valid_name(&new.name)?;
    let host_key = HostKey::from_registration(&decode(&new.content)?).map_err(invalid)?;
    let key = KnownHostKey {
        name: name.clone(),
        spki_sha256: host_key.sha256(),
        algorithm: host_key.algorithm().to_owned(),
        added_at: app.env.now(),
    };
    let outcome = app.store.add_host_key(&key).await?;
    if outcome == Added::Conflict {
        return Err(Problem::Conflict(format!(
            "a host key named {name}, or this key under another name, is registered already"
        )));
    }
    let other_mode = app.standing().await?.mode != AttestationMode::HostKey;
    let warning = other_mode.then_some("host keys have no effect until the operation mode is HostKey");
    added(&app, outcome, &name, HostKeyView { key, warning })
}

/// Remove a host key
#[utoipa::path(delete, path = "/host-keys/{name}", params(("name" = String, Path)), responses(
    (status = 204), (status = 404, body = Refused)))]
pub(super) async fn remove(app: Data<App>, name: Path<String>) -> Answer {
    removed(&app, app.store.remove_host_key(&name).await?, &name)
}

/// Every VSM key that was certified, by host, with the time when it was first seen
#[utoipa::path(get, path = "/vsm-keys", params(Paging), responses((status = 200, body = [SeenVsmKey])))]
pub(super) async fn list_seen(app: Data<App>, paging: Query<Paging>) -> Answer {
    let mut rows = app.store.vsm_keys(&paging.page()).await?;
    // A page counts hosts: all keys of one stand together.
    let mut hosts: Vec<&str> = rows.iter().map(|row| row.host.as_str()).collect();
    hosts.dedup();
    let limit = usize::try_from(paging.limit()).unwrap_or(usize::MAX);
    let next = hosts
        .get(limit)
        .and(hosts.get(limit.saturating_sub(1)))
        .map(|host| (*host).to_owned());
    let mut response = actix_web::HttpResponse::Ok();
    if let Some(last) = next {
        rows.retain(|row| row.host <= last);
        response.insert_header(("next-after", super::url_encoded(&last)));
    }
    Ok(response.json(rows))
}

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewDenial {
    /// SHA-256 of the VSM key's SubjectPublicKeyInfo, hex, as `/vsm-keys` shows it
    sha256: String,
    /// For the next administrator
    #[serde(default)]
    reason: String,
}

/// A VSM key that is never certified, in no mode.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Denial {
    sha256: String,
    reason: String,
}

/// Denied VSM keys
#[utoipa::path(get, path = "/denied-keys", params(Paging), responses((status = 200, body = [Denial])))]
pub(super) async fn list_denied(app: Data<App>, paging: Query<Paging>) -> Answer {
    let rows = app.store.registered(Kind::DeniedKey, &paging.page()).await?;
    let view = |row: Registered| Denial {
        sha256: row.name,
        reason: row.body,
    };
    let rows = rows.into_iter().map(view).collect();
    Ok(paging.answer(rows, |row: &Denial| &row.sha256))
}

/// Deny a VSM key, in every mode. Certificates issued before stay valid until they expire
#[utoipa::path(post, path = "/denied-keys", request_body = NewDenial, responses(
    (status = 201, body = Denial), (status = 200, description = "denied before", body = Denial),
    (status = 400, body = Refused)))]
pub(super) async fn deny(app: Data<App>, new: Json<NewDenial>) -> Answer {
    let sha256 = hex::encode(digest(&new.sha256)?);
    let denial = Registered::plain(&sha256, new.reason.chars().take(1000).collect::<String>());
    let outcome = match app.store.register(Kind::DeniedKey, &denial).await? {
        Added::Conflict => {
            app.store.replace(Kind::DeniedKey, &denial).await?;
            Added::Same
        }
        outcome => outcome,
    };
    let view = Denial {
        sha256: sha256.clone(),
        reason: denial.body,
    };
    added(&app, outcome, &sha256, view)
}

/// Lift a denial
#[utoipa::path(delete, path = "/denied-keys/{sha256}", params(("sha256" = String, Path)), responses(
    (status = 204), (status = 404, body = Refused)))]
pub(super) async fn allow(app: Data<App>, sha256: Path<String>) -> Answer {
    let name = sha256.to_ascii_lowercase();
    removed(&app, app.store.unregister(Kind::DeniedKey, &name).await?, &name)
}

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewGroup {
    name: String,
    /// The group's SID, `S-1-5-21-…`
    identifier: String,
}

/// A host group of Active Directory.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Group {
    name: String,
    identifier: String,
    warning: &'static str,
}

impl Group {
    fn of(row: Registered) -> Group {
        Group {
            name: row.name,
            identifier: row.body,
            warning: "kept, but without effect: attestation by Active Directory is not built",
        }
    }
}

/// Host groups of Active Directory
#[utoipa::path(get, path = "/host-groups", params(Paging), responses((status = 200, body = [Group])))]
pub(super) async fn list_groups(app: Data<App>, paging: Query<Paging>) -> Answer {
    let rows = app.store.registered(Kind::HostGroup, &paging.page()).await?;
    let rows = rows.into_iter().map(Group::of).collect();
    Ok(paging.answer(rows, |row: &Group| &row.name))
}

/// Keep a host group of Active Directory
#[utoipa::path(post, path = "/host-groups", request_body = NewGroup, responses(
    (status = 201, body = Group), (status = 200, description = "kept before", body = Group),
    (status = 400, body = Refused), (status = 409, body = Refused)))]
pub(super) async fn add_group(app: Data<App>, new: Json<NewGroup>) -> Answer {
    let name = valid_name(&new.name)?;
    let sid = new.identifier.trim().to_ascii_uppercase();
    if !is_sid(&sid) {
        return Err(Problem::Invalid(format!(
            "{} is no security identifier; it looks like S-1-5-21-1-2-3-1105",
            new.identifier
        )));
    }
    let row = Registered::plain(&name, sid);
    let outcome = app.store.register(Kind::HostGroup, &row).await?;
    added(&app, outcome, &name, Group::of(row))
}

/// Forget a host group
#[utoipa::path(delete, path = "/host-groups/{name}", params(("name" = String, Path)), responses(
    (status = 204), (status = 404, body = Refused)))]
pub(super) async fn remove_group(app: Data<App>, name: Path<String>) -> Answer {
    removed(&app, app.store.unregister(Kind::HostGroup, &name).await?, &name)
}

/// `S-1-AUTHORITY-SUB…`, at most fifteen 32-bit sub-authorities.
fn is_sid(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("S-1-") else {
        return false;
    };
    let mut parts = rest.split('-');
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let authority = parts
        .next()
        .is_some_and(|part| digits(part) && part.parse::<u64>().is_ok_and(|n| n < 1 << 48));
    let subs: Vec<&str> = parts.collect();
    authority && (1..=15).contains(&subs.len()) && subs.iter().all(|part| digits(part) && part.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_identifiers() {
        for good in ["S-1-5-32-544", "S-1-5-21-1004336348-1177238915-682003330-1105"] {
            assert!(is_sid(good), "{good}");
        }
        for bad in [
            "",
            "S-1-5",
            "S-1-5-",
            "S-2-5-32",
            "S-1-5-21-4294967296",
            "S-1-5-+1",
            "Domain Computers",
        ] {
            assert!(!is_sid(bad), "{bad}");
        }
    }
}
