use super::*;

async fn contract(url: &str) {
    let database = Database::open(url, &crate::SQLITE, &crate::POSTGRES).await.unwrap();
    let store = Store::new(database);
    hosts(&store).await;
    host_keys(&store).await;
    artefacts(&store).await;
    sealed_keys(&store).await;
    signers::tests::contract(&store).await;
}

async fn hosts(store: &Store) {
    let host = KnownHost {
        name: "contract-host".to_owned(),
        ek_sha256: [7; 32],
        version: PolicyVersion::V1,
        unproven: true,
        vendor: None,
        added_at: UnixTime(5),
    };
    store.remove_host(&host.name).await.unwrap();
    store.remove_host("contract-other").await.unwrap();
    assert_eq!(store.add_host(&host).await.unwrap(), Added::New);
    let later = KnownHost {
        added_at: UnixTime(6),
        ..host.clone()
    };
    assert_eq!(store.add_host(&later).await.unwrap(), Added::Same);
    let other = KnownHost {
        name: "contract-other".to_owned(),
        ..host.clone()
    };
    assert_eq!(
        store.add_host(&other).await.unwrap(),
        Added::Conflict,
        "one key, one host"
    );
    let newer = KnownHost {
        version: PolicyVersion::V2,
        ..other.clone()
    };
    assert_eq!(
        store.add_host(&newer).await.unwrap(),
        Added::New,
        "both versions side by side"
    );
    assert_eq!(
        store.known_hosts(&[7; 32]).await.unwrap(),
        [newer.clone(), host.clone()]
    );
    assert_eq!(store.known_hosts(&[8; 32]).await.unwrap(), []);
    let page = Page {
        after: "contract-host".to_owned(),
        limit: 1,
    };
    assert_eq!(store.hosts(&page).await.unwrap(), [newer]);
    assert!(store.remove_host(&host.name).await.unwrap());
    assert!(!store.remove_host(&host.name).await.unwrap());
    assert!(store.remove_host("contract-other").await.unwrap());
}

async fn host_keys(store: &Store) {
    let key = KnownHostKey {
        name: "contract-key".to_owned(),
        spki_sha256: [9; 32],
        algorithm: "RSA".to_owned(),
        added_at: UnixTime(5),
    };
    store.remove_host_key(&key.name).await.unwrap();
    assert_eq!(store.add_host_key(&key).await.unwrap(), Added::New);
    assert_eq!(store.add_host_key(&key).await.unwrap(), Added::Same);
    let other = KnownHostKey {
        name: "contract-key-2".to_owned(),
        ..key.clone()
    };
    assert_eq!(store.add_host_key(&other).await.unwrap(), Added::Conflict);
    assert_eq!(store.known_host_key(&[9; 32]).await.unwrap(), Some(key.clone()));
    assert!(store.host_keys(&Page::all()).await.unwrap().contains(&key));
    assert!(store.remove_host_key(&key.name).await.unwrap());

    let seen = |at| SeenVsmKey {
        host: "contract-key".to_owned(),
        spki_sha256: [3; 32],
        mode: "HostKey".to_owned(),
        first_seen: UnixTime(at),
    };
    store.saw_vsm_key(&seen(5)).await.unwrap();
    store.saw_vsm_key(&seen(6)).await.unwrap();
    let keys = store.vsm_keys(&Page::all()).await.unwrap();
    assert_eq!(
        keys.iter().filter(|key| key.host == "contract-key").collect::<Vec<_>>(),
        [&seen(5)]
    );
}

async fn artefacts(store: &Store) {
    let policy = crate::baseline::CiPolicy::from_file("contract", b"policy");
    let new = |version, staged| Registered {
        name: "contract".to_owned(),
        version: Some(version),
        staged,
        body: serde_json::to_string(&policy).unwrap(),
    };
    store.unregister(Kind::CiPolicy, "contract").await.unwrap();
    let staged = new(PolicyVersion::V1, true);
    assert_eq!(store.register(Kind::CiPolicy, &staged).await.unwrap(), Added::New);
    assert_eq!(store.register(Kind::CiPolicy, &staged).await.unwrap(), Added::Same);
    assert_eq!(
        store
            .register(Kind::CiPolicy, &new(PolicyVersion::V2, true))
            .await
            .unwrap(),
        Added::Conflict
    );
    assert_eq!(
        store.registered_as(Kind::CiPolicy, "contract").await.unwrap(),
        Some(staged)
    );
    let has = async |version| {
        let baselines = store.baselines(version).await.unwrap();
        baselines.ci_policies.contains(&policy)
    };
    assert!(!has(PolicyVersion::V1).await, "what is staged judges nobody");
    assert!(store.put_in_force(Kind::CiPolicy, "contract").await.unwrap());
    assert!(has(PolicyVersion::V1).await);
    assert!(!has(PolicyVersion::V2).await);
    store
        .replace(Kind::CiPolicy, &new(PolicyVersion::V2, false))
        .await
        .unwrap();
    assert!(has(PolicyVersion::V2).await);
    assert!(store.unregister(Kind::CiPolicy, "contract").await.unwrap());
    assert!(!store.unregister(Kind::CiPolicy, "contract").await.unwrap());
}

async fn sealed_keys(store: &Store) {
    store.forget_sealed_below("contract", "contract0").await.unwrap();
    store.seal_first("contract", b"c", b"first").await.unwrap();
    store.seal_first("contract", b"d", b"second").await.unwrap();
    assert_eq!(
        store.sealed("contract").await.unwrap(),
        Some((b"c".to_vec(), b"first".to_vec()))
    );
    store.forget_sealed_below("contract", "contract0").await.unwrap();
    assert_eq!(store.sealed("contract").await.unwrap(), None);
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract(&format!("sqlite://{}", dir.path().join("a.db").display())).await;
}

#[tokio::test]
async fn postgresql_keeps_the_contract() {
    match std::env::var("TEST_POSTGRES_URL") {
        Ok(url) => contract(&url).await,
        Err(_) => println!("skipped: TEST_POSTGRES_URL is not set"),
    }
}
