//! Clients: the administrators' interface of a service, and the control interface of a host.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::lab::ServicePlace;

/// Why a part of the fabric gave no answer that could be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Its own refusal.
    #[error("{error}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// In its words.
        error: String,
    },
    /// Nothing was heard of it.
    #[error("{url} does not answer: {reason}")]
    Silent {
        /// What was asked.
        url: String,
        /// Why.
        reason: String,
    },
    /// The answer is none that the console knows.
    #[error("{0}")]
    Form(String),
}

/// A service's administrators' interface, with a token.
#[derive(Clone, Copy)]
pub(crate) struct Admin<'a> {
    pub(crate) place: &'a ServicePlace,
    pub(crate) token: &'a str,
}

/// A page of a listing that comes by name.
pub(crate) const LARGEST_PAGE: usize = 1000;

impl Admin<'_> {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/admin/v1/{path}", self.place.admin_url);
        self.place.http.request(method, url).bearer_auth(self.token)
    }

    /// GET below `/admin/v1`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        answer(self.request(Method::GET, path)).await
    }

    /// A request that changes something; the answer, or null.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        let request = self.request(method, path);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        answer(request).await
    }

    /// All rows of a listing that comes by name, page after page.
    pub(crate) async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ApiError> {
        let mut rows: Vec<T> = Vec::new();
        let mut after = String::new();
        loop {
            let request = self.request(Method::GET, &format!("{path}?limit={LARGEST_PAGE}&after={after}"));
            let (next, page) = heard(request, |response| {
                let next = response
                    .headers()
                    .get("next-after")
                    .and_then(|value| value.to_str().ok());
                next.map(str::to_owned)
            })
            .await?;
            rows.extend(read::<Vec<T>>(&page)?);
            match next {
                Some(next) => after = next,
                None => return Ok(rows),
            }
        }
    }
}

/// A host's control interface.
#[derive(Clone, Copy)]
pub(crate) struct Agent<'a> {
    pub(crate) url: &'a str,
    pub(crate) http: &'a reqwest::Client,
}

impl Agent<'_> {
    /// GET below `/v1`, within a second or so: somebody waits for the page.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        answer(self.http.get(format!("{}/v1/{path}", self.url)).timeout(A_LOOK)).await
    }

    /// POST or PUT below `/v1`.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        answer(self.http.request(method, format!("{}/v1/{path}", self.url)).json(body)).await
    }
}

async fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, ApiError> {
    let ((), body) = heard(request, |_| ()).await?;
    read(&body)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // A change may be answered by nothing.
    let body = if body.is_empty() { b"null" } else { body };
    serde_json::from_slice(body).map_err(|error| ApiError::Form(format!("an answer has an unknown form: {error}")))
}

async fn heard<H>(
    request: RequestBuilder,
    head: impl FnOnce(&reqwest::Response) -> H,
) -> Result<(H, Vec<u8>), ApiError> {
    let silent = |error: reqwest::Error| {
        let url = error.url().map(ToString::to_string).unwrap_or_default();
        ApiError::Silent {
            url,
            reason: cause(&error),
        }
    };
    let response = request.send().await.map_err(silent)?;
    let (status, head) = (response.status(), head(&response));
    let body = response.bytes().await.map_err(silent)?;
    if status.is_success() {
        return Ok((head, body.to_vec()));
    }
    #[derive(serde::Deserialize)]
    struct Refusal {
        error: String,
    }
    let error = match serde_json::from_slice::<Refusal>(&body) {
        Ok(refusal) => refusal.error,
        Err(_) => format!("it answered {status}"),
    };
    Err(ApiError::Refused { status, error })
}

/// The innermost reason, which names what happened.
fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

const A_LOOK: Duration = Duration::from_secs(2);
