//! What an administrator looks back at and tries out: a host's history, what changed since a baseline, and
//! what other policies would decide. Certifies nothing.

use std::collections::BTreeMap;

use actix_web::{
    HttpResponse,
    web::{self, Data, Json, Path, Query},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::wire::boot_log::BootLog;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Answer, App, NewFile, Paging, Problem, Refused, added, decode, invalid, valid_name};
use crate::{
    baseline::{Baselines, CiPolicy, Switches, TpmBaseline},
    ci_file::CiPolicyFile,
    compare::compare,
    evidence::{self, Evidence, PastDecision, Subject},
    policy::{Evaluated, Evaluation, Verdict},
    replay::TcgLogError,
    store::{Kind, KnownHost, Page, PolicyVersion, Registered},
};

/// Keeps a baseline's own log, so that hosts can be compared with it.
pub(super) async fn keep_baseline(app: &App, name: &str, log: &[u8]) -> Result<(), sqlx::Error> {
    let database = app.store.database();
    evidence::keep(database, Subject::Baseline, name, &Evidence::of_log(log), app.env.now()).await
}

/// Which part of a history.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Back {
    /// Only decisions older than this cursor
    before: Option<String>,
    /// At most so many, 1 to 500; 50 unless given
    limit: Option<i64>,
}

/// A host's attestations, newest first
#[utoipa::path(get, path = "/tpm-hosts/{name}/attestations", params(("name" = String, Path), Back),
    responses((status = 200, body = [PastDecision])))]
pub(super) async fn history(app: Data<App>, name: Path<String>, back: Query<Back>) -> Answer {
    let most = back.limit.unwrap_or(50).clamp(1, 500);
    let rows = evidence::history(app.store.database(), &name, back.before.as_deref(), most).await?;
    Ok(HttpResponse::Ok().json(rows))
}

async fn of_host(app: &App, name: &str) -> Result<Evidence, Problem> {
    let found = evidence::last(app.store.database(), Subject::Host, name).await?;
    let text = || format!("a boot log of {name}, which is kept when a registered host attests,");
    found
        .map(|(evidence, _)| evidence)
        .ok_or_else(|| Problem::Missing(text()))
}

/// A host's last boot log
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct LastLog {
    host: String,
    /// Base64
    log: String,
}

/// A host's last boot log
#[utoipa::path(get, path = "/tpm-hosts/{name}/log", params(("name" = String, Path)),
    responses((status = 200, body = LastLog), (status = 404, body = Refused)))]
pub(super) async fn last_log(app: Data<App>, name: Path<String>) -> Answer {
    let log = STANDARD.encode(of_host(&app, &name).await?.log());
    let host = name.into_inner();
    Ok(HttpResponse::Ok().json(LastLog { host, log }))
}

/// What a host is compared with.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Against {
    /// Name of a registered baseline
    baseline: String,
}

fn read_log(evidence: &Evidence) -> Result<BootLog, Problem> {
    BootLog::parse(evidence.log()).map_err(|error| Problem::Conflict(format!("the kept log does not parse: {error}")))
}

/// What changed, event by event, from a registered baseline to the host's last boot log
#[utoipa::path(get, path = "/tpm-hosts/{name}/compare", params(("name" = String, Path), Against),
    responses((status = 200, description = "same, differingPcrs, notes, changes"), (status = 404, body = Refused)))]
pub(super) async fn drift(app: Data<App>, name: Path<String>, against: Query<Against>) -> Answer {
    let after = read_log(&of_host(&app, &name).await?)?;
    let baseline = &against.baseline;
    let before = evidence::last(app.store.database(), Subject::Baseline, baseline).await?;
    let (before, _) = before.ok_or_else(|| Problem::Missing(format!("a baseline {baseline} with its log")))?;
    let before = read_log(&before)?;
    let comparison = web::block(move || compare(&before, &after)).await.map_err(invalid)?;
    Ok(HttpResponse::Ok().json(json!({ "host": *name, "baseline": baseline, "comparison": comparison })))
}

/// How a host's last boot log is registered.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Adopted {
    /// The new baseline's name
    name: String,
    /// `v1` or `v2`, the default
    #[serde(default)]
    policy_version: PolicyVersion,
    /// Keep it without holding any host against it yet
    #[serde(default)]
    stage: bool,
}

/// Register a host's last boot log as a new baseline
#[utoipa::path(post, path = "/tpm-hosts/{name}/baseline", params(("name" = String, Path)), request_body = Adopted,
    responses((status = 201), (status = 200, description = "registered before"), (status = 404, body = Refused),
    (status = 409, body = Refused)))]
pub(super) async fn adopt(app: Data<App>, host: Path<String>, new: Json<Adopted>) -> Answer {
    let name = valid_name(&new.name)?;
    let evidence = of_host(&app, &host).await?;
    let baseline = TpmBaseline::from_log(&name, evidence.log())
        .map_err(|error| Problem::Conflict(format!("the host's last log is not usable as a baseline: {error}")))?;
    let row = Registered {
        name: name.clone(),
        version: Some(new.policy_version),
        staged: new.stage,
        body: serde_json::to_string(&baseline).map_err(invalid)?,
    };
    let outcome = app.store.register(Kind::TpmBaseline, &row).await?;
    let view = json!({ "name": name, "digest": hex::encode(baseline.digest()), "from_host": *host });
    let answer = added(&app, outcome, &name, view)?;
    keep_baseline(&app, &name, evidence.log()).await?;
    Ok(answer)
}

/// A changed policy set. Everything left out stays as it is.
#[derive(Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WhatIf {
    /// `Hgs_*` policies to enable
    #[serde(default)]
    enable: Vec<String>,
    /// `Hgs_*` policies to disable
    #[serde(default)]
    disable: Vec<String>,
    /// Baselines and code-integrity policies to take away, by name
    #[serde(default)]
    remove: Vec<String>,
    /// Baselines to add, as their logs
    #[serde(default)]
    add_baselines: Vec<NewFile>,
    /// Code-integrity policies to add, as their files
    #[serde(default)]
    add_ci_policies: Vec<NewFile>,
    /// Staged artefacts to put in force, by name
    #[serde(default)]
    put_in_force: Vec<String>,
}

/// What hosts are held against, and which policies count.
#[derive(Clone)]
struct PolicySet {
    baselines: BTreeMap<PolicyVersion, Baselines>,
    switches: Switches,
}

impl PolicySet {
    /// The evaluation that decides: of the first version that passes, or of the first there is.
    fn judge(&self, versions: &[PolicyVersion], evidence: &Evidence) -> Result<(Evaluation, bool), TcgLogError> {
        let none = Baselines::default();
        let mut first = None;
        for version in PolicyVersion::TRIED.iter().filter(|version| versions.contains(version)) {
            let evaluation = evidence.judge(self.baselines.get(version).unwrap_or(&none), &self.switches)?;
            if evaluation.clone().into_healthy().is_ok() {
                return Ok((evaluation, true));
            }
            first.get_or_insert(evaluation);
        }
        let judged = first.map_or_else(|| evidence.judge(&none, &self.switches), Ok)?;
        Ok((judged, false))
    }
}

impl WhatIf {
    async fn apply(&self, app: &App, present: &PolicySet) -> Result<PolicySet, Problem> {
        let mut tried = present.clone();
        for (names, enabled) in [(&self.enable, true), (&self.disable, false)] {
            for name in names {
                tried.switches.set(name, enabled).map_err(invalid)?;
            }
        }
        for name in &self.put_in_force {
            let mut found = false;
            if let Some(row) = app.store.registered_as(Kind::TpmBaseline, name).await? {
                let baselines = tried.baselines.entry(row.version.unwrap_or_default()).or_default();
                baselines.tpm.push(serde_json::from_str(&row.body).map_err(invalid)?);
                found = true;
            }
            if let Some(row) = app.store.registered_as(Kind::CiPolicy, name).await? {
                let baselines = tried.baselines.entry(row.version.unwrap_or_default()).or_default();
                baselines
                    .ci_policies
                    .push(serde_json::from_str(&row.body).map_err(invalid)?);
                found = true;
            }
            if !found {
                return Err(Problem::Missing(name.clone()));
            }
        }
        for baselines in tried.baselines.values_mut() {
            baselines.tpm.retain(|baseline| !self.remove.contains(&baseline.name));
            baselines
                .ci_policies
                .retain(|policy| !self.remove.contains(&policy.name));
        }
        for file in &self.add_baselines {
            let baseline = TpmBaseline::from_log(&file.name, &decode(&file.content)?).map_err(invalid)?;
            tried
                .baselines
                .entry(file.policy_version)
                .or_default()
                .tpm
                .push(baseline);
        }
        for file in &self.add_ci_policies {
            let policy = CiPolicy {
                name: file.name.clone(),
                sha256: CiPolicyFile::parse(&decode(&file.content)?).map_err(invalid)?.sha256,
            };
            tried
                .baselines
                .entry(file.policy_version)
                .or_default()
                .ci_policies
                .push(policy);
        }
        Ok(tried)
    }
}

/// Which hosts would pass or fail under a changed policy set, judged by the last boot log of each
#[utoipa::path(post, path = "/what-if", params(Paging), request_body = WhatIf,
    responses((status = 200, description = "would_pass, would_fail, newly_failing, without_a_log, hosts"),
    (status = 400, body = Refused)))]
pub(super) async fn what_if(app: Data<App>, paging: Query<Paging>, change: Json<WhatIf>) -> Answer {
    let standing = app.standing().await?;
    let present = PolicySet {
        baselines: standing.baselines.clone(),
        switches: standing.switches.clone(),
    };
    let tried = change.apply(&app, &present).await?;
    // A host may be registered once per version, under names of its own; the key says which are one host.
    let mut versions: BTreeMap<[u8; 32], Vec<PolicyVersion>> = BTreeMap::new();
    for host in app.store.hosts(&Page::all()).await? {
        versions.entry(host.ek_sha256).or_default().push(host.version);
    }
    let policies = (present, tried);
    let mut outcome = Outcome::default();
    let limit = usize::try_from(paging.limit()).unwrap_or(usize::MAX);
    let mut page = app.store.hosts(&paging.page()).await?;
    outcome.next_after = (page.len() > limit)
        .then(|| page.get(limit.saturating_sub(1)).map(|host| host.name.clone()))
        .flatten();
    page.truncate(limit);
    for host in page {
        let found = evidence::last(app.store.database(), Subject::Host, &host.name).await?;
        let Some((evidence, at)) = found else {
            outcome.without_a_log.push(host.name);
            continue;
        };
        let of_host = versions.get(&host.ek_sha256).cloned().unwrap_or_default();
        let policies = policies.clone();
        let judged = web::block(move || {
            (
                policies.0.judge(&of_host, &evidence),
                policies.1.judge(&of_host, &evidence),
            )
        });
        let (now, then) = judged.await.map_err(invalid)?;
        outcome.note(host, &at.to_string(), &now, &then);
    }
    Ok(HttpResponse::Ok().json(outcome))
}

#[derive(Default, Serialize)]
struct Outcome {
    would_pass: usize,
    would_fail: usize,
    newly_failing: Vec<String>,
    without_a_log: Vec<String>,
    /// Give it as `after` for the next page.
    next_after: Option<String>,
    hosts: Vec<Value>,
}

type Judged = Result<(Evaluation, bool), TcgLogError>;

impl Outcome {
    fn note(&mut self, host: KnownHost, at: &str, now: &Judged, then: &Judged) {
        let passes = |judged: &Judged| judged.as_ref().is_ok_and(|(_, passes)| *passes);
        let (passes_now, would_pass) = (passes(now), passes(then));
        match would_pass {
            true => self.would_pass += 1,
            false => self.would_fail += 1,
        }
        let (failures, error): (Vec<Value>, _) = match then {
            Ok((evaluation, _)) => (evaluation.failures().map(failure).collect(), None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        self.hosts.push(json!({
            "host": host.name,
            "log_from": at,
            "passes_now": passes_now,
            "would_pass": would_pass,
            "failures": failures,
            "log_error": error,
        }));
        if passes_now && !would_pass {
            self.newly_failing.push(host.name);
        }
    }
}

fn failure(evaluated: &Evaluated) -> Value {
    let reason = evaluated.verdict.reason();
    json!({
        "policy": evaluated.policy.name,
        "switch": evaluated.policy.switch,
        "substatus": evaluated.policy.substatus,
        "verdict": match evaluated.verdict {
            Verdict::Pass(_) => "pass",
            Verdict::Fail(_) => "fail",
            Verdict::NotMeasured(_) => "not measured",
        },
        "decided_by": reason.decided_by,
        "expected": reason.expected,
        "seen": reason.seen,
        "remedy": reason.remedy,
    })
}
