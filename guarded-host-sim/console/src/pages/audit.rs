//! The records of both services: searched, verified, exported.

use actix_web::{
    HttpResponse,
    http::header,
    web::{Path, Query},
};
use askama::Template;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Frame, Shown, Trouble,
    fields::{self, FieldRow},
    html,
};
use crate::{
    api::{Admin, ApiError},
    session::Visitor,
};

/// Which rows.
#[derive(Clone, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    service: String,
    kind: String,
    q: String,
    verify: Option<String>,
}

impl Default for Asked {
    fn default() -> Asked {
        Asked {
            service: "attestation".to_owned(),
            kind: String::new(),
            q: String::new(),
            verify: None,
        }
    }
}

/// A row as a service gives it out.
#[derive(Deserialize, Serialize)]
struct Row {
    writer: String,
    sequence: i64,
    at: Value,
    kind: String,
    body: Value,
}

impl Row {
    fn has(&self, words: &str) -> bool {
        words.is_empty() || self.body.to_string().to_lowercase().contains(words)
    }

    fn time(&self) -> String {
        match self.at.as_i64() {
            Some(seconds) => hgs_protocol::env::UnixTime(seconds).to_string(),
            None => fields::plain(&self.at),
        }
    }

    /// The decision in a few words.
    fn outcome(&self) -> String {
        let of = |name: &str| self.body.get(name).map(fields::plain).filter(|text| !text.is_empty());
        ["reply", "outcome", "result", "event", "method", "code"]
            .into_iter()
            .find_map(of)
            .unwrap_or_default()
    }

    fn about(&self) -> String {
        let of = |name: &str| self.body.get(name).map(fields::plain).filter(|text| !text.is_empty());
        ["host", "path", "name", "thumbprint", "sha256"]
            .into_iter()
            .find_map(of)
            .unwrap_or_default()
    }

    fn fields(&self) -> Vec<FieldRow> {
        fields::of_json(&self.body)
    }
}

#[derive(Deserialize)]
struct Verified {
    rows: usize,
    faults: Vec<String>,
    heads: Vec<Value>,
}

#[derive(Template)]
#[template(path = "audit.html")]
struct Page {
    frame: Frame,
    asked: Asked,
    kinds: Vec<String>,
    rows: Vec<Row>,
    read: usize,
    verified: Option<Result<Verified, String>>,
}

fn service<'a>(visitor: &'a Visitor, name: &str) -> Result<Admin<'a>, Trouble> {
    match name {
        "attestation" => Ok(visitor.attestation()),
        "key-protection" => Ok(visitor.key_protection()),
        other => Err(Trouble::Missing(format!("there is no service {other}"))),
    }
}

async fn rows(visitor: &Visitor, name: &str) -> Result<Vec<Row>, Trouble> {
    let path = if name == "attestation" {
        "audit"
    } else {
        "audit?limit=200"
    };
    Ok(service(visitor, name)?.get(path).await?)
}

/// The newest rows that match, and the chains' verification when it was asked for.
pub(super) async fn show(visitor: Visitor, asked: Query<Asked>) -> Shown {
    let asked = asked.into_inner();
    let rows = rows(&visitor, &asked.service).await?;
    let read = rows.len();
    let mut kinds: Vec<String> = rows.iter().map(|row| row.kind.clone()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let words = asked.q.trim().to_lowercase();
    let wanted = |row: &Row| (asked.kind.is_empty() || row.kind == asked.kind) && row.has(&words);
    let verified = match asked.verify {
        Some(_) => Some(
            verify(&visitor, &asked.service)
                .await
                .map_err(|error| error.to_string()),
        ),
        None => None,
    };
    html(&Page {
        frame: Frame::new(&visitor, "audit", "Audit"),
        kinds,
        rows: rows.into_iter().filter(wanted).collect(),
        read,
        verified,
        asked,
    })
}

/// A reviewer may let the chains of key protection be verified; attestation takes it as a change.
async fn verify(visitor: &Visitor, name: &str) -> Result<Verified, ApiError> {
    match name {
        "attestation" => {
            let told = visitor
                .attestation()
                .send(Method::POST, "audit/verify", Some(&json!([])))
                .await?;
            serde_json::from_value(told).map_err(|error| ApiError::Form(error.to_string()))
        }
        _ => visitor.key_protection().get("audit/verify").await,
    }
}

/// The newest rows as JSON lines.
pub(super) async fn export(visitor: Visitor, name: Path<String>) -> Shown {
    let mut text = String::new();
    for row in rows(&visitor, &name).await? {
        text += &serde_json::to_string(&row).map_err(|error| Trouble::Failed(error.to_string()))?;
        text.push('\n');
    }
    let disposition = format!("attachment; filename=\"audit-{name}.jsonl\"");
    Ok(HttpResponse::Ok()
        .content_type("application/jsonl")
        .insert_header((header::CONTENT_DISPOSITION, disposition))
        .body(text))
}
