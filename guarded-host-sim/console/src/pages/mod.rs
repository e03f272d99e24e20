//! The pages. Each reads what it shows with its visitor's tokens; a form is answered by a redirection to the page that
//! shows what came of it.

mod audit;
mod fields;
mod hosts;
mod overview;
mod services;
mod settings;
mod sign_in;
mod standing;
mod vms;
mod wire;

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
    web,
};
use askama::Template;

use crate::{
    api::ApiError,
    live,
    session::{FORM_TOKEN, Notice, Visitor},
    settings::SettingsError,
};

/// Every route.
pub(crate) fn routes(app: &mut web::ServiceConfig) {
    app.route("/sign-in", web::get().to(sign_in::form))
        .route("/sign-in", web::post().to(sign_in::open))
        .route("/sign-out", web::post().to(sign_in::close))
        .route("/static/style.css", web::get().to(style))
        .route("/static/live.js", web::get().to(script))
        .route("/favicon.ico", web::get().to(HttpResponse::NoContent))
        .route("/events", web::get().to(live::events))
        .route("/", web::get().to(overview::show))
        .route("/hosts", web::get().to(hosts::list))
        .route("/hosts/{name}", web::get().to(hosts::show))
        .route("/hosts/{name}/attest", web::post().to(hosts::attest))
        .route("/hosts/{name}/power", web::post().to(hosts::power))
        .route("/hosts/{name}/dials", web::post().to(hosts::dials))
        .route("/hosts/{name}/guardian-service", web::get().to(settings::show_tab))
        .route("/hosts/{name}/guardian-service", web::post().to(settings::save_tab))
        .route("/hosts/{name}/registration", web::post().to(services::registration))
        .route("/vms", web::get().to(vms::list))
        .route("/vms/{name}", web::get().to(vms::show))
        .route("/vms/{name}", web::post().to(vms::act))
        .route("/attestation", web::get().to(services::attestation))
        .route("/attestation/mode", web::post().to(services::set_mode))
        .route("/attestation/policies/{switch}", web::post().to(services::set_policy))
        .route("/attestation/signers", web::post().to(services::signer))
        .route("/attestation/{kind}/{name}", web::post().to(services::artefact))
        .route("/key-protection", web::get().to(services::key_protection))
        .route("/key-protection/certificates", web::post().to(services::certificate))
        .route("/key-protection/signers", web::post().to(services::trusted_signer))
        .route("/audit", web::get().to(audit::show))
        .route("/audit/{service}/export", web::get().to(audit::export))
        .route("/wire", web::get().to(wire::list))
        .route("/wire/{number}", web::get().to(wire::show))
        .route("/settings", web::get().to(settings::show))
        .route("/settings", web::post().to(settings::finish))
        .default_service(web::to(nowhere));
}

/// Why a page is not shown or a form not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// There is no session.
    #[error("sign in first")]
    SignIn,
    /// Whoever asks may not.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such thing.
    #[error("{0}")]
    Missing(String),
    /// The form is no form.
    #[error("{0}")]
    Invalid(String),
    /// A part of the fabric refused or is silent.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The settings could not be kept.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The console itself.
    #[error("{0}")]
    Failed(String),
}

impl ResponseError for Trouble {
    fn status_code(&self) -> StatusCode {
        match self {
            Trouble::SignIn => StatusCode::SEE_OTHER,
            Trouble::Forbidden(_) => StatusCode::FORBIDDEN,
            Trouble::Missing(_) => StatusCode::NOT_FOUND,
            Trouble::Invalid(_) => StatusCode::BAD_REQUEST,
            Trouble::Api(ApiError::Refused { status, .. }) if *status == StatusCode::UNAUTHORIZED.as_u16() => {
                StatusCode::SEE_OTHER
            }
            Trouble::Api(_) => StatusCode::BAD_GATEWAY,
            Trouble::Settings(_) | Trouble::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let status = self.status_code();
        // A token that was withdrawn is as good as none.
        if status == StatusCode::SEE_OTHER {
            return see("/sign-in");
        }
        let page = TroublePage {
            title: status.canonical_reason().unwrap_or("Trouble").to_owned(),
            text: self.to_string(),
        };
        match page.render() {
            Ok(text) => HttpResponse::build(status).content_type(HTML).body(text),
            Err(_) => HttpResponse::build(status).body(self.to_string()),
        }
    }
}

pub(crate) type Shown = Result<HttpResponse, Trouble>;

#[derive(Template)]
#[template(path = "trouble.html")]
struct TroublePage {
    title: String,
    text: String,
}

/// What every page of a session has around it.
pub(crate) struct Frame {
    title: String,
    section: &'static str,
    role: &'static str,
    administrator: bool,
    form_token: String,
    notices: Vec<Notice>,
}

impl Frame {
    /// `section` is the entry of the navigation that the page belongs to.
    pub(crate) fn new(visitor: &Visitor, section: &'static str, title: impl Into<String>) -> Frame {
        Frame {
            title: title.into(),
            section,
            role: visitor.session.role.word(),
            administrator: visitor.is_administrator(),
            form_token: visitor.session.form_token.clone(),
            notices: visitor.take_notices(),
        }
    }

    /// The entries of the navigation: section, address, words.
    fn entries(&self) -> &'static [(&'static str, &'static str, &'static str)] {
        &[
            ("fabric", "/", "Fabric"),
            ("hosts", "/hosts", "Hosts"),
            ("vms", "/vms", "VMs"),
            ("attestation", "/attestation", "Attestation"),
            ("keys", "/key-protection", "Key protection"),
            ("audit", "/audit", "Audit"),
            ("wire", "/wire", "Wire inspector"),
            ("settings", "/settings", "Settings"),
        ]
    }

    fn token_field(&self) -> &'static str {
        FORM_TOKEN
    }
}

/// A rendered page.
pub(crate) fn html(page: &impl Template) -> Shown {
    let text = page
        .render()
        .map_err(|error| Trouble::Failed(format!("the page cannot be shown: {error}")))?;
    Ok(HttpResponse::Ok().content_type(HTML).body(text))
}

/// A redirection to a page of the console.
pub(crate) fn see(path: &str) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((header::LOCATION, path))
        .finish()
}

async fn nowhere() -> Shown {
    Err(Trouble::Missing("the console has no such page".to_owned()))
}

async fn style() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/css; charset=utf-8")
        .body(include_str!("../../assets/style.css"))
}

async fn script() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/javascript; charset=utf-8")
        .body(include_str!("../../assets/live.js"))
}

/// A segment of a path, or a value of a query.
pub(crate) fn in_url(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let quote = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(quote).collect()
}

const HTML: &str = "text/html; charset=utf-8";
