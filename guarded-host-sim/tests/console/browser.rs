//! A real browser, driven over WebDriver: Debian's chromium and chromium-driver.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use guarded_host_sim::child::{Child, Output, Plan};
use reqwest::{Client, Method};
use serde_json::{Value, json};

/// A browser window.
pub(crate) struct Browser {
    http: Client,
    session: String,
    console: String,
    _driver: Child,
    _folder: tempfile::TempDir,
}

impl Browser {
    /// A window on the console; nothing where there is no browser, which is said.
    pub(crate) async fn open(console: &str) -> Option<Browser> {
        let (driver, chromium) = ("/usr/bin/chromedriver", "/usr/bin/chromium");
        if !Path::new(driver).exists() || !Path::new(chromium).exists() {
            eprintln!("SKIPPED: no {driver} and {chromium} here (Debian: chromium, chromium-driver)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan::new(driver, folder.path())
            .args(["--port=0"])
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path())
            .output(Output::Pipe)
            .errors(Output::Null);
        let mut driver = plan.spawn().unwrap();
        let mut lines = BufReader::new(driver.take_output().unwrap()).lines();
        let port = lines
            .find_map(|line| {
                let line = line.unwrap();
                let port = line.split("started successfully on port ").nth(1)?;
                Some(port.trim_end_matches('.').to_owned())
            })
            .unwrap();
        // It goes on to write there.
        std::thread::spawn(move || lines.count());
        let http = Client::builder().no_proxy().build().unwrap();
        let options = json!({
            "binary": chromium,
            "args": [
                "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,900",
                "--disable-background-networking", "--disable-component-update", "--no-first-run",
            ],
        });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        let url = format!("http://127.0.0.1:{port}/session");
        let made = ask(&http, Method::POST, &url, &wanted).await.unwrap();
        let browser = Browser {
            session: format!("{url}/{}", made["sessionId"].as_str().unwrap()),
            http,
            console: console.to_owned(),
            _driver: driver,
            _folder: folder,
        };
        // A busy machine takes its time over a long page.
        browser.post("/timeouts", &json!({ "script": 300_000 })).await;
        Some(browser)
    }

    async fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value, String> {
        ask(&self.http, method, &format!("{}{path}", self.session), body).await
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        self.ask(Method::POST, path, body).await.unwrap()
    }

    pub(crate) async fn go(&self, path: &str) {
        self.post("/url", &json!({ "url": format!("{}{path}", self.console) }))
            .await;
    }

    pub(crate) async fn sign_in(&self, token: &str) {
        self.go("/sign-in").await;
        self.fill("#attestation", token).await;
        self.press("Sign in").await;
        self.wait_for("h1", "Fabric").await;
    }

    async fn find(&self, using: &str, value: &str) -> Result<String, String> {
        let found = self
            .ask(Method::POST, "/element", &json!({ "using": using, "value": value }))
            .await?;
        let id = found.as_object().and_then(|found| found.values().next()?.as_str());
        Ok(id.unwrap().to_owned())
    }

    /// Writes into a field, in place of what is there.
    pub(crate) async fn fill(&self, css: &str, text: &str) {
        let id = self.find("css selector", css).await.unwrap();
        self.post(&format!("/element/{id}/clear"), &json!({})).await;
        self.post(&format!("/element/{id}/value"), &json!({ "text": text }))
            .await;
    }

    pub(crate) async fn click(&self, css: &str) {
        let id = self.find("css selector", css).await.unwrap();
        self.post(&format!("/element/{id}/click"), &json!({})).await;
    }

    /// Presses the button with this text.
    pub(crate) async fn press(&self, text: &str) {
        let path = format!("//button[normalize-space()='{text}']");
        let id = self
            .find("xpath", &path)
            .await
            .unwrap_or_else(|e| panic!("no button {text}: {e}"));
        self.post(&format!("/element/{id}/click"), &json!({})).await;
    }

    /// Takes an entry of a list.
    pub(crate) async fn choose(&self, list: &str, value: &str) {
        self.click(&format!("{list} option[value='{value}']")).await;
    }

    /// What axe-core finds on the page that is open, of its levels serious and critical.
    pub(crate) async fn serious(&self, axe: &str, page: &str) -> Vec<String> {
        let script = format!(
            "{axe}; const done = arguments[0]; axe.run().then(r => done(r.violations.filter(v => ['serious', \
             'critical'].includes(v.impact)).map(v => v.id + ': ' + v.nodes.map(n => n.target + ' ' + \
             n.failureSummary).join('; '))))"
        );
        let found = self
            .post("/execute/async", &json!({ "script": script, "args": [] }))
            .await;
        let found = found.as_array().unwrap().iter();
        found.map(|one| format!("{page}: {}", one.as_str().unwrap())).collect()
    }

    /// What a script in the page gives.
    pub(crate) async fn script(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
            .await
    }

    pub(crate) async fn text(&self, css: &str) -> String {
        match self.find("css selector", css).await {
            Ok(id) => {
                let text = self
                    .ask(Method::GET, &format!("/element/{id}/text"), &Value::Null)
                    .await;
                text.ok()
                    .and_then(|text| Some(text.as_str()?.to_owned()))
                    .unwrap_or_default()
            }
            Err(_) => String::new(),
        }
    }

    /// Waits until the element's text has these words.
    pub(crate) async fn wait_for(&self, css: &str, words: &str) {
        let begun = Instant::now();
        loop {
            let text = self.text(css).await;
            if text.contains(words) {
                return;
            }
            assert!(
                begun.elapsed() < LONGEST_WAIT,
                "{css} does not come to say {words:?}: {text}\n{}",
                self.text("body").await
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
            .await
    }

    /// The window's width in pixels, and whether the person prefers dark pages.
    pub(crate) async fn look(&self, width: u32, dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features }))
            .await;
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// The whole page as PNG.
    pub(crate) async fn screenshot(&self, file: &Path) {
        let shot = self
            .devtools("Page.captureScreenshot", json!({ "captureBeyondViewport": true }))
            .await;
        std::fs::write(file, STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()).unwrap();
    }

    /// What the browser complains of and what it asked of anybody but the console, since this was asked last.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let logs = self.post("/se/log", &json!({ "type": "browser" })).await;
        let mut found: Vec<String> = logs
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line["message"].to_string())
            .collect();
        let events = self.post("/se/log", &json!({ "type": "performance" })).await;
        for line in events.as_array().unwrap() {
            let event: Value = serde_json::from_str(line["message"].as_str().unwrap()).unwrap();
            let message = &event["message"];
            if message["method"] == "Network.requestWillBeSent" {
                let url = message["params"]["request"]["url"].as_str().unwrap().to_owned();
                let ours = url
                    .strip_prefix(&self.console)
                    .is_some_and(|path| path.starts_with('/'));
                if !ours && !url.starts_with("data:") && !url.starts_with("chrome:") {
                    found.push(format!("it asked {url}"));
                }
            }
        }
        found
    }

    /// Ends it in order.
    pub(crate) async fn close(self) {
        let _ = self.ask(Method::DELETE, "", &Value::Null).await;
    }
}

async fn ask(http: &Client, method: Method, url: &str, body: &Value) -> Result<Value, String> {
    let request = http.request(method.clone(), url).timeout(Duration::from_secs(300));
    let request = if method == Method::POST {
        request.json(body)
    } else {
        request
    };
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    match answer["value"].get("error") {
        Some(error) if !error.is_null() => Err(format!("{error}: {}", answer["value"]["message"])),
        _ => Ok(answer["value"].clone()),
    }
}

/// Something is wrong when a page takes longer, on a busy machine too.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
