//! What other policies would decide about every host, by the last boot log of each. Certifies nothing.
//!
//! A fabric may have many thousands of hosts, so an answer is one page, a page is read and judged in small
//! batches on threads of their own, and a service works on few pages at a time: attestations never wait
//! for it, and a client that goes away ends the work at the next batch.

use std::{collections::BTreeMap, sync::Arc};

use actix_web::{
    HttpResponse,
    web::{self, Data, Json, Query},
};
use hgs_protocol::env::UnixTime;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Answer, App, NewFile, Paging, Problem, Refused, decode, invalid};
use crate::{
    baseline::{Baselines, CiPolicy, Switches, TpmBaseline},
    ci_file::CiPolicyFile,
    evidence::{self, Evidence},
    policy::{Evaluated, Evaluation, Verdict},
    replay::TcgLogError,
    store::{Kind, KnownHost, PolicyVersion},
};

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

/// Which hosts would pass or fail under a changed policy set, judged by the last boot log of each; one page
#[utoipa::path(post, path = "/what-if", params(Paging), request_body = WhatIf,
    responses((status = 200, description = "would_pass, would_fail, newly_failing, without_a_log, next_after, hosts: of this page"),
    (status = 400, body = Refused), (status = 503, description = "as many are tried already as may be", body = Refused)))]
pub(super) async fn what_if(app: Data<App>, paging: Query<Paging>, change: Json<WhatIf>) -> Answer {
    let Ok(_permit) = app.trials.try_acquire() else {
        return Err(Problem::Busy("other policies are being tried: ask again in a moment"));
    };
    let standing = app.standing().await?;
    let present = PolicySet {
        baselines: standing.baselines.clone(),
        switches: standing.switches.clone(),
    };
    let tried = change.apply(&app, &present).await?;
    let policies = Arc::new((present, tried));
    let mut outcome = Outcome::default();
    let limit = usize::try_from(paging.limit()).unwrap_or(usize::MAX);
    let mut page = app.store.hosts(&paging.page()).await?;
    let more = page.len() > limit;
    page.truncate(limit);
    outcome.next_after = page.last().filter(|_| more).map(|host| host.name.clone());
    let mut after = paging.page().after;
    for batch in page.chunks(BATCH) {
        let Some(last) = batch.last().map(|host| host.name.clone()) else {
            break;
        };
        let mut versions: BTreeMap<[u8; 32], Vec<PolicyVersion>> = BTreeMap::new();
        for (key, version) in app.store.versions_between(&after, &last).await? {
            versions.entry(key).or_default().push(version);
        }
        let logs = evidence::last_between(app.store.database(), &after, &last).await?;
        let (hosts, policies) = (batch.to_vec(), policies.clone());
        let judged = web::block(move || outcomes(hosts, &versions, logs, &policies));
        outcome.add(judged.await.map_err(invalid)?);
        after = last;
    }
    Ok(HttpResponse::Ok().json(outcome))
}

/// Judges a batch, with its logs.
fn outcomes(
    hosts: Vec<KnownHost>,
    versions: &BTreeMap<[u8; 32], Vec<PolicyVersion>>,
    mut logs: BTreeMap<String, (Evidence, UnixTime)>,
    (present, tried): &(PolicySet, PolicySet),
) -> Outcome {
    let mut outcome = Outcome::default();
    for host in hosts {
        let Some((evidence, at)) = logs.remove(&host.name) else {
            outcome.without_a_log.push(host.name);
            continue;
        };
        let of_host = versions.get(&host.ek_sha256).map_or(&[][..], Vec::as_slice);
        let (now, then) = (present.judge(of_host, &evidence), tried.judge(of_host, &evidence));
        outcome.note(host, &at.to_string(), &now, &then);
    }
    outcome
}

/// Hosts judged at a time: some megabytes of boot logs, and a fraction of a second of one thread.
const BATCH: usize = 32;

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
    fn add(&mut self, batch: Outcome) {
        self.would_pass += batch.would_pass;
        self.would_fail += batch.would_fail;
        self.newly_failing.extend(batch.newly_failing);
        self.without_a_log.extend(batch.without_a_log);
        self.hosts.extend(batch.hosts);
    }

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
