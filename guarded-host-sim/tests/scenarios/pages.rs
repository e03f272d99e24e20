//! The pages of a report: complete, self-contained, and shown by a browser without a network.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use super::missing_tools;

/// Looks at the pages of the run that `report` tells of.
pub(crate) fn are_good(folder: &Path, report: &Value) {
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (index, coverage) = (read("index.html"), read("coverage.html"));
    is_self_contained(folder, &index);
    is_self_contained(folder, &coverage);
    for group in report["coverage"].as_array().unwrap() {
        for item in group["items"].as_array().unwrap() {
            assert!(coverage.contains(item["name"].as_str().unwrap()), "{item}");
        }
    }
    assert!(coverage.contains("not built: Active Directory mode"));
    for scenario in report["scenarios"].as_array().unwrap() {
        let name = scenario["name"].as_str().unwrap();
        let page = read(&format!("scenario-{name}.html"));
        assert!(index.contains(&format!("scenario-{name}.html")), "{name}");
        assert!(page.contains("<svg"), "{name} has no timeline");
        is_self_contained(folder, &page);
        let messages = scenario["messages"].as_array().unwrap();
        for (number, message) in messages.iter().enumerate() {
            // What stands on the page is the begin of what lies beside it.
            let kept = fs::metadata(folder.join(format!("messages/{name}/{}-request", number + 1)));
            let length = message["request_bytes"].as_u64().unwrap();
            assert_eq!(
                kept.map(|file| file.len()).unwrap_or(0),
                length,
                "{name}: message {}",
                number + 1
            );
        }
    }
    opens_in_a_browser(folder);
}

/// Links lead to the pages' own folder, and nothing is loaded.
fn is_self_contained(folder: &Path, page: &str) {
    assert!(page.contains("default-src 'none'"));
    for loading in [
        "<script",
        "<img",
        "<link",
        "<iframe",
        "<object",
        "src=",
        "@import",
        "url(",
        "http-equiv=\"refresh",
    ] {
        assert!(!page.contains(loading), "{loading}");
    }
    for link in page.split("href=\"").skip(1) {
        let target = link.split('"').next().unwrap();
        let file = target.split('#').next().unwrap();
        assert!(target.starts_with('#') || folder.join(file).is_file(), "{target}");
    }
}

fn opens_in_a_browser(folder: &Path) {
    if missing_tools("the report in a browser", &["chromium"]) {
        return;
    }
    let profile = tempfile::tempdir().unwrap();
    for page in ["index.html", "coverage.html", "scenario-happy-tpm.html"] {
        let seen = browse(&folder.join(page), profile.path());
        let (shown, log) = (seen.shown, seen.log);
        assert!(
            shown.contains("</html>") && shown.contains("<table>"),
            "{page}: {shown} {log}"
        );
        assert!(!log.contains("CONSOLE"), "{page}: {log}");
        assert!(seen.asked.is_empty(), "{page} asks for {:?}", seen.asked);
    }
    // A page that loads something is found out.
    let loading = profile.path().join("loading.html");
    fs::write(
        &loading,
        "<html><body><img src=\"http://example.invalid/x.png\"></body></html>",
    )
    .unwrap();
    let asked = browse(&loading, profile.path()).asked;
    assert!(
        asked.iter().all(|url| url == "http://example.invalid/x.png") && !asked.is_empty(),
        "{asked:?}"
    );
}

/// What a browser made of a page.
struct Seen {
    shown: String,
    log: String,
    /// The addresses that the page asked for.
    asked: Vec<String>,
}

fn browse(page: &Path, profile: &Path) -> Seen {
    let net_log = profile.join("net-log.json");
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"])
        // No name resolves, and what the page says of itself goes to the log.
        .args(["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"])
        .arg(format!("--log-net-log={}", net_log.display()))
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let log: Value = serde_json::from_slice(&fs::read(net_log).unwrap()).unwrap();
    let parameters = log["events"].as_array().unwrap().iter().map(|event| &event["params"]);
    // What the browser asks for by itself is no page's.
    let of_a_page = |parameters: &&Value| parameters["initiator"].as_str().is_some_and(|by| by != "not an origin");
    let urls = parameters
        .filter(of_a_page)
        .filter_map(|parameters| parameters["url"].as_str());
    Seen {
        shown: String::from_utf8_lossy(&output.stdout).into_owned(),
        log: String::from_utf8_lossy(&output.stderr).into_owned(),
        asked: urls
            .filter(|url| !url.starts_with("file:"))
            .map(str::to_owned)
            .collect(),
    }
}
