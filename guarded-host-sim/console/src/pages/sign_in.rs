//! Signing in with the tokens of the administrators' interfaces, and out again.

use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{HTML, Shown, Trouble, html, see};
use crate::{
    Console,
    api::{Admin, ApiError},
    session::{self, Role, role_of},
};

#[derive(Template)]
#[template(path = "sign_in.html")]
struct Page {
    error: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Tokens {
    attestation: Zeroizing<String>,
    /// Empty where both services take the same one.
    #[serde(default)]
    key_protection: Zeroizing<String>,
}

pub(super) async fn form() -> Shown {
    html(&Page { error: None })
}

/// Opens a session when both services take the tokens. It may do what the weaker of the two may.
pub(super) async fn open(console: web::Data<Console>, tokens: web::Form<Tokens>) -> Shown {
    let given = |text: &Zeroizing<String>| Zeroizing::new(text.trim().to_owned());
    let attestation = given(&tokens.attestation);
    let key_protection = match tokens.key_protection.trim().is_empty() {
        true => attestation.clone(),
        false => given(&tokens.key_protection),
    };
    let places = [
        ("attestation service", console.lab.attestation(), &attestation),
        ("key protection service", console.lab.key_protection(), &key_protection),
    ];
    let mut role = Role::Administrator;
    for (name, place, token) in places {
        match role_of(&Admin { place, token }).await {
            Ok(Role::Administrator) => {}
            Ok(Role::Reviewer) => role = Role::Reviewer,
            Err(ApiError::Refused { status, .. }) if status.as_u16() == 401 => {
                return refuse(&format!("The {name} does not know this token."));
            }
            Err(error) => return refuse(&format!("The {name}: {error}")),
        }
    }
    tracing::info!(role = role.word(), "signed in");
    let cookie = console.sessions.open(role, attestation, key_protection);
    let mut answer = see("/");
    cookie.put(&mut answer);
    Ok(answer)
}

fn refuse(error: &str) -> Shown {
    let page = Page {
        error: Some(error.to_owned()),
    };
    let text = page.render().map_err(|error| Trouble::Failed(error.to_string()))?;
    Ok(HttpResponse::Unauthorized().content_type(HTML).body(text))
}

/// Needs no token of its own: a foreign page cannot send it, and there is nothing to gain.
pub(super) async fn close(console: web::Data<Console>, request: HttpRequest) -> Shown {
    let cookie = session::sign_out(&console, &request);
    let mut answer = see("/sign-in");
    cookie.put(&mut answer);
    Ok(answer)
}
