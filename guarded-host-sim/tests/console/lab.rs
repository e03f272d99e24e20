//! A console with its fabric, and a client without a browser.

use std::sync::Arc;

use guarded_host_sim::console::{ConsoleArgs, OwnFabric, Running, start};
use reqwest::{
    Client, StatusCode,
    header::{COOKIE, SET_COOKIE},
};

/// A console that serves for as long as the value lives.
pub(crate) struct Console {
    pub(crate) url: String,
    pub(crate) administrator: String,
    pub(crate) reviewer: String,
    pub(crate) fabric: Arc<OwnFabric>,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Console {
    pub(crate) async fn start(hosts: u8, blank: bool) -> Console {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let args = ConsoleArgs {
            listen: ([127, 0, 0, 1], 0).into(),
            allow_remote: false,
            names: Vec::new(),
            blank,
            hosts,
            settings: None,
        };
        let running: Running = start(&args).await.unwrap();
        Console {
            url: format!("http://localhost:{}", running.bound.addresses[0].port()),
            administrator: running.administrator.to_string(),
            reviewer: running.reviewer.to_string(),
            fabric: running.fabric.clone(),
            serving: tokio::spawn(running.serve()),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Somebody signed in, without a browser.
pub(crate) struct Person {
    pub(crate) http: Client,
    url: String,
    cookie: String,
    form_token: String,
}

/// A client that follows no redirection.
pub(crate) fn client() -> Client {
    let none = reqwest::redirect::Policy::none();
    Client::builder().no_proxy().redirect(none).build().unwrap()
}

impl Person {
    pub(crate) async fn sign_in(console: &Console, token: &str) -> Person {
        let http = client();
        let answer = http
            .post(format!("{}/sign-in", console.url))
            .header("content-type", FORM)
            .body(format!("attestation={token}&key_protection="))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        let cookie = answer.headers()[SET_COOKIE].to_str().unwrap().to_owned();
        assert!(
            cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
            "{cookie}"
        );
        let mut person = Person {
            http,
            url: console.url.clone(),
            cookie: cookie.split(';').next().unwrap().to_owned(),
            form_token: String::new(),
        };
        let (_, page) = person.get("/hosts/host01").await;
        // A reviewer's pages have no form with a token; theirs is then any text.
        let token = page
            .split("name=\"form_token\" value=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        person.form_token = token.unwrap_or("none").to_owned();
        person
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        let request = self
            .http
            .get(format!("{}{path}", self.url))
            .header(COOKIE, &self.cookie);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    /// Sends a form with the session's token.
    pub(crate) async fn post(&self, path: &str, fields: &str) -> (StatusCode, String) {
        self.post_with(path, &format!("form_token={}&{fields}", self.form_token), &[])
            .await
    }

    pub(crate) async fn post_with(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
        let mut request = self
            .http
            .post(format!("{}{path}", self.url))
            .header(COOKIE, &self.cookie)
            .header("content-type", FORM);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.body(body.to_owned()).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    pub(crate) fn form_token(&self) -> &str {
        &self.form_token
    }
}

const FORM: &str = "application/x-www-form-urlencoded";
