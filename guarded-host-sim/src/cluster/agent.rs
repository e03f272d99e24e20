//! A host's agent, as drills speak with it: over its published port, or from inside its container while it
//! is cut off from everything else.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{counts::End, engine::Engine};
use crate::fabric::service::http_client;

/// The agent of one host.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) host: String,
    url: String,
    http: reqwest::Client,
}

/// HTTP status and JSON.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Agent {
    pub(super) fn at(host: &str, address: SocketAddr) -> anyhow::Result<Agent> {
        Ok(Agent {
            host: host.to_owned(),
            url: format!("http://{address}/v1"),
            http: http_client(120, None)?,
        })
    }

    pub(super) async fn post(&self, path: &str) -> anyhow::Result<Answer> {
        let request = self.http.post(format!("{}/{path}", self.url)).json(&json!({}));
        self.answer(request).await
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.answer(self.http.get(format!("{}/{path}", self.url))).await
    }

    /// A file of the host's administrator.
    pub(super) async fn artefact(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let url = format!("{}/artefacts/{name}", self.url);
        let answer = self.http.get(url).send().await?.error_for_status()?;
        Ok(answer.bytes().await?.to_vec())
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Answer> {
        let answer = request.send().await;
        let answer = answer.with_context(|| format!("the agent of {} does not answer", self.host))?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await?;
        Ok(Answer {
            status,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        })
    }

    /// The same from inside the host's container, which needs no network.
    pub(super) async fn post_inside(&self, engine: &Engine, path: &str) -> anyhow::Result<Answer> {
        let talk = "exec 3<>/dev/tcp/127.0.0.1/8700; cat >&3; cat <&3";
        let request = format!(
            "POST /v1/{path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        let program = ["bash", "-c", talk];
        let told = engine.run_in(&self.host, &program, Some(request.as_bytes())).await?;
        let Some((head, body)) = told.split_once("\r\n\r\n") else {
            bail!(
                "the agent of {} answered no HTTP inside its container: {told:?}",
                self.host
            );
        };
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(Answer {
            status: status.with_context(|| format!("no status in {head:?}"))?,
            body: serde_json::from_str(body).unwrap_or(Value::Null),
        })
    }
}

impl Answer {
    /// What `attest` came to. The agent has made the attempts that MS-HGSA 3.2.5 allows, and does not tell how many.
    pub(super) fn attested(&self) -> End {
        let text = |name: &str| self.body.get(name).and_then(Value::as_str).unwrap_or("nothing");
        match (
            text("AttestationStatus"),
            self.body.get("error").and_then(Value::as_str),
        ) {
            ("Passed", _) => End::Done { again: None },
            // Refusals that the protocol marks as worth repeating, and no answer at all.
            (_, Some(error @ ("UnavailableErrorReply" | "RtpmErrorReply"))) => End::Later(error.to_owned()),
            ("TransientError", None) if text("detail").contains("does not answer") => {
                End::Later("no answer".to_owned())
            }
            (status, error) => End::Refused(format!(
                "{status}: {} ({})",
                error.unwrap_or("no reply"),
                text("detail")
            )),
        }
    }

    /// The serial of the certificate that `attest` brought.
    pub(super) fn serial(&self) -> Option<String> {
        let serial = self.body.get("certificate")?.get("serial")?;
        Some(serial.as_str()?.to_owned())
    }

    /// What an operation on a VM came to: the agent's 502 says that nothing answered or could.
    pub(super) fn done(&self) -> End {
        match self.status {
            200 => End::Done { again: None },
            502 => End::Later("no contact".to_owned()),
            status => End::Refused(format!("HTTP {status}: {}", self.reason())),
        }
    }

    pub(super) fn reason(&self) -> &str {
        self.body.get("error").and_then(Value::as_str).unwrap_or("no reason")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_tried_again_is_told_from_a_refusal() {
        let attested = |status: &str, error: Value| {
            let body = json!({ "AttestationStatus": status, "error": error, "detail": "http://x does not answer: y" });
            Answer { status: 200, body }.attested()
        };
        assert_eq!(attested("Passed", Value::Null), End::Done { again: None });
        assert!(matches!(attested("TransientError", Value::Null), End::Later(_)));
        assert!(matches!(
            attested("TransientError", json!("UnavailableErrorReply")),
            End::Later(_)
        ));
        assert!(matches!(
            attested("UnauthorizedHost", json!("UnauthorizedErrorReply")),
            End::Refused(_)
        ));
        assert!(matches!(attested("TpmError", Value::Null), End::Refused(_)));
        let done = |status| {
            Answer {
                status,
                body: Value::Null,
            }
            .done()
        };
        assert!(matches!(done(502), End::Later(_)) && matches!(done(403), End::Refused(_)));
    }
}
