//! `renew-signer`: the one command of a lab that holds the credentials of both services, to be run by a
//! timer. It registers the attestation service's pending signer with key protection, and lets it sign once
//! clients have had time to see it published. A client of the two administrators' interfaces, nothing more:
//! the services never call each other.
//!
//! Each step is harmless when repeated, and what is left to do is read from the services each time, so the
//! command may be killed anywhere and run again.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use zeroize::Zeroizing;

use crate::fabric::service::{administrator_token, http_client};

/// Where both administrators' interfaces are. Exit codes: 0 done, waiting or nothing to do; 1 failed, run it
/// again; 2 wrong options.
#[derive(Clone, Debug, clap::Args)]
pub struct RenewSignerArgs {
    /// URL of the attestation service's administrators' listener
    #[arg(long)]
    pub attestation_admin: String,
    /// File with an administrator's token for it (one line)
    #[arg(long)]
    pub attestation_token_file: PathBuf,
    /// PEM file with the root certificate of its HTTPS listener
    #[arg(long)]
    pub attestation_root: Option<PathBuf>,
    /// URL of the key protection service's administrators' listener
    #[arg(long)]
    pub kps_admin: String,
    /// File with an administrator's token for it (one line)
    #[arg(long)]
    pub kps_token_file: PathBuf,
    /// PEM file with the root certificate of its HTTPS listener
    #[arg(long)]
    pub kps_root: Option<PathBuf>,
    /// Make a new signer though none is due, unless the active one is less than a day old (so a repeated run
    /// makes no second one)
    #[arg(long)]
    pub now: bool,
    /// Let the pending signer sign though clients may not have seen it published
    #[arg(long)]
    pub at_once: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Outcome {
    /// No signer is pending.
    NothingToDo {
        /// The active signer, SHA-256 of its certificate.
        active: String,
        /// When it ends.
        not_after: String,
    },
    /// The pending signer is registered with key protection and published; it may sign later.
    Waiting {
        /// The pending signer.
        pending: String,
        /// For so long.
        seconds: i64,
    },
    /// It signs.
    Renewed {
        /// The new active signer.
        active: String,
        /// When it ends.
        not_after: String,
    },
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::NothingToDo { active, not_after } => {
                write!(
                    f,
                    "nothing to do: the signer {active} is active until {not_after}, and none is pending"
                )
            }
            Outcome::Waiting { pending, seconds } => write!(
                f,
                "waiting: the signer {pending} is registered with key protection and published; it may sign in \
                 {seconds} s. Run this again then"
            ),
            Outcome::Renewed { active, not_after } => {
                write!(
                    f,
                    "renewed: the signer {active}, registered with key protection, signs until {not_after}"
                )
            }
        }
    }
}

/// Does what is due and prints it.
pub fn run(args: &RenewSignerArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut steps = Vec::new();
    let outcome = runtime.block_on(renew(args, &mut steps));
    // What was done before a failure is said too.
    match (&outcome, args.json) {
        (Ok(outcome), true) => println!("{}", json!({ "outcome": outcome, "steps": steps })),
        (_, true) => {}
        (outcome, false) => {
            steps.iter().for_each(|step| println!("{step}"));
            outcome.iter().for_each(|outcome| println!("{outcome}"));
        }
    }
    outcome.map(|_| ())
}

/// Does what is due; `steps` gets a line for each thing done.
pub async fn renew(args: &RenewSignerArgs, steps: &mut Vec<String>) -> anyhow::Result<Outcome> {
    let attestation = Admin::open(
        "the attestation service",
        &args.attestation_admin,
        &args.attestation_token_file,
        args.attestation_root.as_deref(),
    )?;
    let kps = Admin::open(
        "the key protection service",
        &args.kps_admin,
        &args.kps_token_file,
        args.kps_root.as_deref(),
    )?;
    let signers: Vec<Signer> = attestation.get("attestation-signers").await?;
    let in_state = |state: &str| signers.iter().find(|signer| signer.state == state).cloned();
    let active = in_state("active").context("the attestation service has no active signer")?;
    let pending = match in_state("pending") {
        Some(pending) => pending,
        None if args.now && active.age >= DAY => {
            let made: Signer = attestation.post("attestation-signers", &json!({})).await?;
            steps.push(format!("made the signer {}", made.sha256));
            made
        }
        None => {
            if args.now {
                steps.push("the active signer is less than a day old: none is made".to_owned());
            }
            return Ok(Outcome::NothingToDo {
                active: active.sha256,
                not_after: active.not_after,
            });
        }
    };
    let trusted: Trusted = kps
        .post("attestation-signers", &json!({ "certificate": pending.certificate }))
        .await?;
    ensure!(
        trusted.thumbprint.eq_ignore_ascii_case(&pending.sha256),
        "key protection registered {} instead of the pending signer {}: nothing was activated",
        trusted.thumbprint,
        pending.sha256
    );
    steps.push(format!(
        "the signer {} is registered with key protection",
        pending.sha256
    ));
    let seconds = pending.seconds_to_wait.unwrap_or(0);
    if seconds > 0 && !args.at_once {
        return Ok(Outcome::Waiting {
            pending: pending.sha256,
            seconds,
        });
    }
    let activate = format!("attestation-signers/{}/activate", pending.sha256);
    let body = json!({ "registered_with_key_protection": true, "at_once": args.at_once });
    let now: Signer = attestation.post(&activate, &body).await?;
    ensure!(
        now.state == "active",
        "the attestation service calls the signer {}",
        now.state
    );
    Ok(Outcome::Renewed {
        active: now.sha256,
        not_after: now.not_after,
    })
}

/// A signer as the attestation service shows it.
#[derive(Clone, Debug, Deserialize)]
struct Signer {
    state: String,
    sha256: String,
    certificate: String,
    not_after: String,
    age: i64,
    seconds_to_wait: Option<i64>,
}

/// A signer as key protection shows it.
#[derive(Deserialize)]
struct Trusted {
    thumbprint: String,
}

/// One service's administrators' interface.
struct Admin {
    name: &'static str,
    url: String,
    token: Zeroizing<String>,
    http: reqwest::Client,
}

impl Admin {
    fn open(name: &'static str, url: &str, token: &Path, root: Option<&Path>) -> anyhow::Result<Admin> {
        let token = administrator_token(name, url, token)?;
        Ok(Admin {
            name,
            url: url.trim_end_matches('/').to_owned(),
            token,
            http: http_client(30, root)?,
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.answer(path, self.http.get(self.address(path))).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.answer(path, self.http.post(self.address(path)).json(body)).await
    }

    async fn answer<T: DeserializeOwned>(&self, path: &str, request: reqwest::RequestBuilder) -> anyhow::Result<T> {
        let answer = request.bearer_auth(self.token.as_str()).send().await;
        let answer = answer.with_context(|| format!("{} does not answer at {}", self.name, self.url))?;
        let status = answer.status();
        let bytes = answer.bytes().await?;
        ensure!(
            status.is_success(),
            "{} answered {path} with {status}: {}",
            self.name,
            String::from_utf8_lossy(&bytes)
        );
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{}: the answer to {path} is another than known", self.name))
    }

    fn address(&self, path: &str) -> String {
        format!("{}/admin/v1/{path}", self.url)
    }
}

const DAY: i64 = 86_400;
