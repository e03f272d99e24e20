//! Who has signed in: sessions in memory, each with the tokens it was opened with.
//!
//! A session's cookie is SameSite=Strict and out of reach of scripts; its forms carry a token of their own.

use std::{
    collections::HashMap,
    future::{Ready, ready},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use actix_web::{
    FromRequest, HttpRequest, HttpResponse,
    dev::Payload,
    http::header::{self, HeaderValue},
    web,
};
use futures_util::future::LocalBoxFuture;
use hgs_protocol::{
    crypto::same,
    env::{OsRandom, Random},
};
use zeroize::Zeroizing;

use crate::{
    Console,
    api::{Admin, ApiError},
    pages::Trouble,
};

/// What its user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Everything.
    Administrator,
    /// Look.
    Reviewer,
}

impl Role {
    pub(crate) fn parse(word: &str) -> Option<Role> {
        match word {
            "administrator" => Some(Role::Administrator),
            "reviewer" => Some(Role::Reviewer),
            _ => None,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Role::Administrator => "administrator",
            Role::Reviewer => "reviewer",
        }
    }
}

/// A line that a form left for the page that is shown next.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) good: bool,
    pub(crate) text: String,
}

/// A session.
pub(crate) struct Session {
    pub(crate) role: Role,
    /// What its forms carry.
    pub(crate) form_token: String,
    attestation: Zeroizing<String>,
    key_protection: Zeroizing<String>,
    notices: Mutex<Vec<Notice>>,
    used: Mutex<Instant>,
}

/// All sessions, by the cookie's value.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<String, Arc<Session>>>);

impl Sessions {
    /// A new session for whoever holds these tokens; gives the cookie.
    pub(crate) fn open(&self, role: Role, attestation: Zeroizing<String>, key_protection: Zeroizing<String>) -> Cookie {
        let id = random();
        let session = Session {
            role,
            form_token: random(),
            attestation,
            key_protection,
            notices: Mutex::default(),
            used: Mutex::new(Instant::now()),
        };
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| !session.is_over());
        if sessions.len() >= MOST
            && let Some(oldest) = sessions.iter().max_by_key(|(_, session)| session.idle())
        {
            let oldest = oldest.0.clone();
            sessions.remove(&oldest);
        }
        sessions.insert(id.clone(), Arc::new(session));
        Cookie(id)
    }

    fn find(&self, id: &str) -> Option<Arc<Session>> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| !session.is_over());
        let session = sessions.get(id)?.clone();
        *session.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Some(session)
    }

    fn close(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Session {
    fn idle(&self) -> Duration {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn is_over(&self) -> bool {
        self.idle() > LONGEST_IDLE
    }
}

/// Whoever looks at a page, signed in.
#[derive(Clone)]
pub(crate) struct Visitor {
    pub(crate) session: Arc<Session>,
    pub(crate) console: web::Data<Console>,
    /// A page that refreshes itself takes no notices: they are for the one that a person opens.
    refreshes: bool,
}

impl Visitor {
    fn of(request: &HttpRequest) -> Result<Visitor, Trouble> {
        let console = request.app_data::<web::Data<Console>>().cloned();
        let console = console.ok_or_else(|| Trouble::Failed("the console is not set up".to_owned()))?;
        let cookie = cookie_of(request).ok_or(Trouble::SignIn)?;
        let session = console.sessions.find(cookie).ok_or(Trouble::SignIn)?;
        Ok(Visitor {
            session,
            refreshes: request.headers().contains_key(REFRESH),
            console,
        })
    }

    pub(crate) fn is_administrator(&self) -> bool {
        self.session.role == Role::Administrator
    }

    /// The attestation service, with the visitor's token.
    pub(crate) fn attestation(&self) -> Admin<'_> {
        Admin {
            place: self.console.lab.attestation(),
            token: &self.session.attestation,
        }
    }

    /// The key protection service, with the visitor's token.
    pub(crate) fn key_protection(&self) -> Admin<'_> {
        Admin {
            place: self.console.lab.key_protection(),
            token: &self.session.key_protection,
        }
    }

    /// Leaves a line for the next page.
    pub(crate) fn tell(&self, good: bool, text: impl Into<String>) {
        let mut notices = self.session.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.push(Notice {
            good,
            text: text.into(),
        });
    }

    pub(crate) fn take_notices(&self) -> Vec<Notice> {
        if self.refreshes {
            return Vec::new();
        }
        std::mem::take(&mut *self.session.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl FromRequest for Visitor {
    type Error = Trouble;
    type Future = Ready<Result<Visitor, Trouble>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Visitor::of(request))
    }
}

/// A form that an administrator sent from a page of their own session. There is no other way to a change.
pub(crate) struct Posted {
    pub(crate) visitor: Visitor,
    fields: Vec<(String, String)>,
}

impl Posted {
    /// The field's text, trimmed; empty when it is not there.
    pub(crate) fn text(&self, name: &str) -> String {
        let found = self.fields.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    }

    /// Whether a box is ticked.
    pub(crate) fn ticked(&self, name: &str) -> bool {
        self.fields.iter().any(|(key, _)| key == name)
    }

    /// All values of a field that may come several times, empty ones included.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        let mine = self.fields.iter().filter(|(key, _)| key == name);
        mine.map(|(_, value)| value.trim().to_owned()).collect()
    }
}

impl FromRequest for Posted {
    type Error = Trouble;
    type Future = LocalBoxFuture<'static, Result<Posted, Trouble>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let visitor = Visitor::of(request);
        let form = web::Form::<Vec<(String, String)>>::from_request(request, payload);
        Box::pin(async move {
            let visitor = visitor?;
            let fields = form
                .await
                .map_err(|error| Trouble::Invalid(error.to_string()))?
                .into_inner();
            let posted = Posted { visitor, fields };
            let token = posted.text(FORM_TOKEN);
            if !same(token.as_bytes(), posted.visitor.session.form_token.as_bytes()) {
                return Err(Trouble::Forbidden(
                    "the form is not from a page of this session: open the page again and repeat it".to_owned(),
                ));
            }
            // Asked anew each time: a token that was withdrawn changes nothing any more.
            match role_of(&posted.visitor.attestation()).await? {
                Role::Administrator => Ok(posted),
                Role::Reviewer => Err(Trouble::Forbidden(
                    "a reviewer may look at everything and change nothing: sign in with an administrator's token"
                        .to_owned(),
                )),
            }
        })
    }
}

/// What a token's holder may do at a service.
pub(crate) async fn role_of(service: &Admin<'_>) -> Result<Role, ApiError> {
    #[derive(serde::Deserialize)]
    struct Held {
        role: String,
    }
    let held: Held = service.get("role").await?;
    Role::parse(&held.role).ok_or_else(|| ApiError::Form(format!("the role {} is not known", held.role)))
}

/// Ends the session of a request, if it has one; gives the cookie that makes the browser forget it.
pub(crate) fn sign_out(console: &Console, request: &HttpRequest) -> Cookie {
    if let Some(id) = cookie_of(request) {
        console.sessions.close(id);
    }
    Cookie(String::new())
}

/// A session's cookie; an empty one is forgotten by the browser.
pub(crate) struct Cookie(String);

impl Cookie {
    /// Sends it with an answer.
    pub(crate) fn put(&self, answer: &mut HttpResponse) {
        let ends = if self.0.is_empty() { "; Max-Age=0" } else { "" };
        let text = format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict{ends}", self.0);
        if let Ok(value) = HeaderValue::from_str(&text) {
            answer.headers_mut().insert(header::SET_COOKIE, value);
        }
    }
}

fn cookie_of(request: &HttpRequest) -> Option<&str> {
    let lines = request.headers().get_all(header::COOKIE);
    let pairs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'));
    pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, id)| id)
}

fn random() -> String {
    let rng: &mut dyn Random = &mut OsRandom;
    hex::encode(rng.bytes::<32>())
}

/// The field of a form that carries its session's token.
pub(crate) const FORM_TOKEN: &str = "form_token";
/// The header with which a page that refreshes itself asks.
pub(crate) const REFRESH: &str = "x-refresh";
const COOKIE: &str = "fabric_console";
const MOST: usize = 1000;
const LONGEST_IDLE: Duration = Duration::from_secs(8 * 3600);
