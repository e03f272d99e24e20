//! What an administrator does in a browser.

use std::path::PathBuf;

use crate::{browser::Browser, lab::Console};

/// Everything that a person can open.
const PAGES: [&str; 13] = [
    "/",
    "/hosts",
    "/hosts/host01",
    "/hosts/host01/guardian-service",
    "/vms",
    "/vms/books",
    "/attestation",
    "/key-protection",
    "/audit",
    "/audit?service=key-protection&verify=yes",
    "/wire",
    "/wire/3",
    "/settings",
];

#[tokio::test(flavor = "multi_thread")]
async fn hosts_become_guarded_by_the_settings_window_and_a_dial_tells_why_one_is_not() {
    let console = Console::start(2, true).await;
    let Some(browser) = Browser::open(&console.url).await else {
        return;
    };
    browser.sign_in(&console.administrator).await;
    browser.go("/hosts/host01").await;
    browser.wait_for("#status", "Local").await;

    // A wrong URL is told before anything is saved.
    browser.go("/settings").await;
    browser.fill("#attestation", "http://hgs.bastion.local/Wrong").await;
    browser
        .fill("#key_protection", "http://hgs.bastion.local/KeyProtection")
        .await;
    browser.click("input[name=enabled][value=host01]").await;
    browser.click("input[name=enabled][value=host02]").await;
    browser.press("Finish").await;
    browser.wait_for("#attestation-error", "is the path right?").await;
    browser.go("/hosts/host01").await;
    browser.wait_for("#status", "Local").await;
    // The browser itself remarks on the status 422 of the page that said so.
    let complaints = browser.complaints().await;
    assert!(complaints.iter().all(|line| line.contains("422")), "{complaints:?}");

    browser.go("/settings").await;
    browser
        .fill("#attestation", "http://hgs.bastion.local/Attestation")
        .await;
    browser
        .fill("#key_protection", "http://hgs.bastion.local/KeyProtection")
        .await;
    browser.click("input[name=enabled][value=host01]").await;
    browser.click("input[name=enabled][value=host02]").await;
    browser.press("Finish").await;
    browser
        .wait_for("main", "host01 took the settings over and is guarded")
        .await;
    browser
        .wait_for("main", "host02 took the settings over and is guarded")
        .await;
    browser.go("/hosts/host01").await;
    browser.wait_for("#status", "Passed").await;
    browser
        .wait_for("#status", "http://hgs.bastion.local/Attestation")
        .await;

    // A dial, and why the host fails.
    browser.click("input[name=secure_boot]").await;
    browser.press("Set and restart").await;
    browser.wait_for("#status", "InsecureHostConfiguration").await;
    browser.wait_for("#status", "SecureBoot").await;
    browser.wait_for("#verdicts tbody tr:first-child", "Secure").await;
    browser.wait_for("#verdicts tbody tr:first-child", "fail").await;
    browser.click("input[name=secure_boot]").await;
    browser.press("Set and restart").await;
    browser.wait_for("#status", "Passed").await;

    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{complaints:?}");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reviewer_sees_every_page_and_finds_nothing_to_press() {
    let console = Console::start(1, false).await;
    let Some(browser) = Browser::open(&console.url).await else {
        return;
    };
    browser.sign_in(&console.reviewer).await;
    for page in PAGES {
        browser.go(page).await;
        let script = "return [...document.querySelectorAll('main form[method=post] button, main form[method=post] input, \
                      main form[method=post] select, main form[method=post] textarea')].filter(e => e.type != 'hidden' \
                      && !e.matches(':disabled')).length";
        assert_eq!(browser.script(script).await, 0, "{page}");
    }
    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{complaints:?}");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_starts_moves_to_a_guarded_host_only_and_what_was_said_is_on_the_ladder() {
    let console = Console::start(3, false).await;
    let Some(browser) = Browser::open(&console.url).await else {
        return;
    };
    browser.sign_in(&console.administrator).await;
    // One host is no longer guarded.
    browser.go("/hosts/host03").await;
    browser.click("input[name=iommu]").await;
    browser.press("Set and restart").await;
    browser.wait_for("#status", "Iommu").await;

    browser.go("/vms/books").await;
    browser.press("Start").await;
    browser.wait_for("#state", "Running").await;
    browser.choose("#to", "host03").await;
    browser.press("Migrate").await;
    browser.wait_for("main", "not placed: host03 is not guarded").await;
    browser.choose("#to", "host02").await;
    browser.press("Migrate").await;
    browser.wait_for("main", "books moved from host01 to host02").await;
    browser.wait_for("#state", "host02").await;

    browser.go("/wire?party=host02").await;
    browser.wait_for("#ladder", "RollTransportKeyRequest").await;
    let script = "return [...document.querySelectorAll('.ladder a')].filter(a => \
                  a.textContent.includes('RollTransportKeyRequest')).at(-1).getAttribute('href')";
    let exchange = browser.script(script).await;
    browser.go(exchange.as_str().unwrap()).await;
    browser.wait_for("main", "RollTransportKeyResponse").await;
    browser.wait_for("main", "MS-KPS").await;
    browser.wait_for("main", "EgressProtector").await;
    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{complaints:?}");
    browser.close().await;
}

/// With `LAB_AXE`, the path of axe-core's `axe.min.js`; without, it is said that the check was left out.
#[tokio::test(flavor = "multi_thread")]
async fn axe_finds_nothing_serious() {
    let Some(axe) = std::env::var_os("LAB_AXE") else {
        eprintln!("SKIPPED: LAB_AXE does not name axe-core's axe.min.js");
        return;
    };
    let axe = std::fs::read_to_string(axe).unwrap();
    let console = Console::start(2, false).await;
    let Some(browser) = Browser::open(&console.url).await else {
        return;
    };
    browser.go("/sign-in").await;
    let mut found = browser.serious(&axe, "/sign-in").await;
    browser.sign_in(&console.administrator).await;
    for dark in [false, true] {
        browser.look(1280, dark).await;
        for page in PAGES {
            browser.go(page).await;
            found.extend(browser.serious(&axe, page).await);
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    browser.close().await;
}

/// With `LAB_SCREENSHOTS` a picture of each page goes into that folder.
#[tokio::test(flavor = "multi_thread")]
async fn every_page_fits_wide_and_narrow_light_and_dark() {
    let console = Console::start(3, false).await;
    let Some(browser) = Browser::open(&console.url).await else {
        return;
    };
    let pictures = std::env::var_os("LAB_SCREENSHOTS").map(PathBuf::from);
    browser.sign_in(&console.administrator).await;
    for page in PAGES {
        for (width, dark) in [(1280, false), (1280, true), (400, false), (400, true)] {
            browser.look(width, dark).await;
            browser.go(page).await;
            let over = browser
                .script("return document.documentElement.scrollWidth - window.innerWidth")
                .await;
            assert!(
                over.as_i64().unwrap() <= 0,
                "{page} is {over} pixels too wide for {width}"
            );
            if let Some(folder) = &pictures {
                let name = if page == "/" {
                    "fabric".to_owned()
                } else {
                    page[1..].replace(['/', '?', '=', '&'], "-")
                };
                let scheme = if dark { "dark" } else { "light" };
                browser
                    .screenshot(&folder.join(format!("{name}-{width}-{scheme}.png")))
                    .await;
            }
        }
    }
    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{complaints:?}");
    browser.close().await;
}
