//! What holds without a browser: who gets in, what nobody gets past, and what the forms do.

use reqwest::StatusCode;

use crate::lab::{Console, Person, client};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_a_token_and_a_reviewer_changes_nothing() {
    let console = Console::start(1, false).await;
    let http = client();
    for path in ["/", "/hosts", "/hosts/host01", "/settings", "/events"] {
        let answer = http.get(format!("{}{path}", console.url)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SEE_OTHER, "{path}");
        assert_eq!(answer.headers()["location"], "/sign-in");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'") && !policy.contains("unsafe"),
            "{policy}"
        );
    }
    let sign_in = http.post(format!("{}/sign-in", console.url));
    let wrong = sign_in
        .header("content-type", "application/x-www-form-urlencoded")
        .body("attestation=00");
    let answer = wrong.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert!(answer.text().await.unwrap().contains("does not know this token"));

    let reviewer = Person::sign_in(&console, &console.reviewer).await;
    let administrator = Person::sign_in(&console, &console.administrator).await;
    let (status, page) = reviewer.get("/hosts/host01").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("Passed") && !page.contains(">Attest now<"), "{page}");
    let changes = [
        "/hosts/host01/attest",
        "/hosts/host01/power",
        "/hosts/host01/dials",
        "/hosts/host01/guardian-service",
        "/settings",
    ];
    for path in changes {
        let (status, page) = reviewer.post(path, "power=off").await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}: {page}");
        // The administrator's own form, without its token, with another, and from a foreign page.
        for (body, headers) in [
            ("power=off".to_owned(), vec![]),
            ("form_token=00&power=off".to_owned(), vec![]),
            (
                format!("form_token={}&power=off", administrator.form_token()),
                vec![("origin", "http://evil.example")],
            ),
            (
                format!("form_token={}&power=off", administrator.form_token()),
                vec![("sec-fetch-site", "cross-site")],
            ),
            (
                format!("form_token={}&power=off", administrator.form_token()),
                vec![("host", "evil.example")],
            ),
        ] {
            let (status, page) = administrator.post_with(path, &body, &headers).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{path} {headers:?}: {page}");
        }
    }
    let (_, page) = administrator.get("/hosts/host01").await;
    assert!(page.contains("Passed"), "nothing was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_urls_were_changed_elsewhere_takes_no_shielded_vm_until_they_match_again() {
    let console = Console::start(1, false).await;
    let person = Person::sign_in(&console, &console.administrator).await;
    let (_, page) = person.get("/hosts/host01").await;
    assert!(page.contains("may be placed here"), "{page}");

    // URLs of its own, one of them wrong: it is told, and nothing is saved.
    let own = |keys: &str| {
        format!(
            "enabled=on&own=on&attestation=http%3A%2F%2Fhgs.bastion.local%2FAttestation&key_protection={keys}&policy="
        )
    };
    let (status, page) = person
        .post(
            "/hosts/host01/guardian-service",
            &own("http%3A%2F%2Felsewhere.local%2FKeyProtection"),
        )
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        page.contains("elsewhere.local") && page.contains("is not in the fabric"),
        "{page}"
    );
    let (status, _) = person
        .post(
            "/hosts/host01/guardian-service",
            &own("http%3A%2F%2Fhgs.bastion.local%2FKeyProtection%2F"),
        )
        .await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let (_, page) = person.get("/hosts/host01").await;
    assert!(
        page.contains("may be placed here") && page.contains("KeyProtection/"),
        "{page}"
    );

    // Somebody changes them on the host itself.
    let fabric = console.fabric.clone();
    fabric
        .set_host_urls("host01", "http://hgs.bastion.local/Attestation", "http://localhost")
        .await
        .unwrap();
    person.post("/hosts/host01/attest", "").await;
    let (_, page) = person.get("/hosts/host01").await;
    assert!(
        page.contains("changed elsewhere") && page.contains("none is placed here"),
        "{page}"
    );
    // OK applies them again.
    person
        .post(
            "/hosts/host01/guardian-service",
            "enabled=on&attestation=&key_protection=&policy=",
        )
        .await;
    let (_, page) = person.get("/hosts/host01").await;
    assert!(page.contains("may be placed here"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_forms_of_both_services_do_what_they_say() {
    let console = Console::start(1, false).await;
    let person = Person::sign_in(&console, &console.administrator).await;

    // A policy that is off counts no more: a host without it passes.
    person.post("/attestation/policies/Hgs_IommuEnabled", "").await;
    let (_, page) = person.get("/attestation").await;
    assert!(page.contains("Hgs_IommuEnabled is disabled for all hosts"), "{page}");
    person
        .post("/hosts/host01/dials", "secure_boot=on&vsm=on&hvci=on&bitlocker=on&pagefile_encryption=on&hibernation_disabled=on&dumps_disabled=on&full_boot=on")
        .await;
    let (_, page) = person.get("/hosts/host01").await;
    assert!(page.contains("may be placed here"), "{page}");
    person
        .post("/attestation/policies/Hgs_IommuEnabled", "enable=yes")
        .await;
    person.post("/hosts/host01/attest", "").await;
    let (_, page) = person.get("/hosts/host01").await;
    assert!(page.contains("Iommu") && page.contains("none is placed here"), "{page}");

    // A certificate takes another's place.
    let make = "do=make&type=Encryption&suite=rsa&common_name=Second";
    person.post("/key-protection/certificates", make).await;
    let (_, page) = person.get("/key-protection").await;
    assert!(page.contains("The certificate is made and enabled"), "{page}");
    let (before, rest) = page.split_once("value=\"primary\"").unwrap();
    assert!(!rest.contains("value=\"primary\""), "one certificate is not primary");
    let thumbprint = before.rsplit("name=\"thumbprint\" value=\"").next().unwrap();
    let thumbprint = thumbprint.split('"').next().unwrap();
    let primary = format!("do=primary&type=Encryption&thumbprint={thumbprint}");
    person.post("/key-protection/certificates", &primary).await;
    let (_, page) = person.get("/key-protection").await;
    assert!(page.contains("The certificate is primary"), "{page}");

    // The record has it, holds, and can be taken away.
    let (_, page) = person.get("/audit?service=key-protection&q=second&verify=yes").await;
    assert!(page.contains("were computed anew, and all hold"), "{page}");
    let (_, lines) = person.get("/audit/key-protection/export").await;
    assert!(
        lines.lines().any(|line| line.contains("certificate-primary")),
        "{lines}"
    );
}
