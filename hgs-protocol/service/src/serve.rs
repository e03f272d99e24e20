//! Listeners: the service's own (HTTP and, if configured, HTTPS) and the administrators'.
//!
//! `/healthz` and `/readyz` answer on both, `/metrics` and `/admin/v1` on the administrators' only.
//! SIGTERM and SIGINT drain: no new connections, requests under way are finished.

use std::{net::TcpListener, sync::Arc};

use actix_web::{
    App, Error, HttpMessage as _, HttpResponse, HttpServer,
    body::{BoxBody, MessageBody},
    dev::{Server, ServerHandle, ServiceRequest, ServiceResponse},
    http::{Method, header},
    middleware::{Next, from_fn},
    web,
};
use anyhow::Context;
use hgs_protocol::env::Clock;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::{
    audit::{Audit, Entry},
    database::Database,
    settings::Settings,
    tls,
    tokens::{Holder, Role, Tokens},
    watch::Watch,
};

const DRAIN_SECONDS: u64 = 20;

/// Counts what a service decided, for `/metrics`.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    decisions: Family<Vec<(String, String)>, Counter>,
}

impl Metrics {
    /// A registry with the one counter `hgs_decisions_total{service,outcome}`.
    pub fn new() -> Metrics {
        Metrics::with(|_| ())
    }

    /// The same, and what `register` adds to it.
    pub fn with(register: impl FnOnce(&mut Registry)) -> Metrics {
        let mut registry = Registry::default();
        register(&mut registry);
        let decisions = Family::default();
        registry.register(
            "hgs_decisions",
            "Replies by service and outcome",
            Family::clone(&decisions),
        );
        Metrics {
            registry: Arc::new(registry),
            decisions,
        }
    }

    /// One reply of `service` with `outcome` (a reply's `__type`, an error code, or `Passed`).
    pub fn decided(&self, service: &str, outcome: &str) {
        let labels = vec![
            ("service".to_owned(), service.to_owned()),
            ("outcome".to_owned(), outcome.to_owned()),
        ];
        self.decisions.get_or_create(&labels).inc();
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

/// Listeners that are open, with their servers not yet running.
pub struct Bound {
    /// `http://ADDRESS` of the service.
    pub service_url: String,
    /// `https://ADDRESS` of the service, if TLS was configured.
    pub tls_url: Option<String>,
    /// URL of the administrators' listener.
    pub admin_url: String,
    public: Server,
    admin: Server,
    watch: Watch,
}

impl Bound {
    /// The one line printed when the service is ready: `NAME ready service=URL [tls=URL] admin=URL`.
    pub fn ready_line(&self, name: &str) -> String {
        let tls = self
            .tls_url
            .as_ref()
            .map(|url| format!(" tls={url}"))
            .unwrap_or_default();
        format!(
            "{name} ready service={}{tls} admin={}",
            self.service_url, self.admin_url
        )
    }

    /// Stops both servers when called upon, for tests.
    pub fn handles(&self) -> [ServerHandle; 2] {
        [self.public.handle(), self.admin.handle()]
    }

    /// Runs until a signal asks to stop and all requests are answered.
    pub async fn run(self) -> anyhow::Result<()> {
        let (public, admin) = tokio::select! {
            ended = async { tokio::join!(self.public, self.admin) } => ended,
            () = self.watch.run() => return Ok(()),
        };
        public.context("the service listener failed")?;
        admin.context("the administrators' listener failed")
    }
}

/// Opens the listeners of a service. `public` and `admin` add routes; those of `admin` stand below
/// `/admin/v1` and are reached with a valid token only (a reviewer's token reads only). Every change that an
/// administrator asks for is recorded before it is tried; handlers find who asks as `ReqData<Holder>`.
pub fn bind<P, A>(
    settings: &Settings,
    clock: Clock,
    database: Database,
    audit: Audit,
    metrics: Metrics,
    public: P,
    admin: A,
) -> anyhow::Result<Bound>
where
    P: Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
    A: Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
{
    let tokens = match &settings.admin_tokens {
        Some(path) => Tokens::from_file(path)?,
        None => Tokens::default(),
    };
    let tls = settings
        .tls
        .as_ref()
        .map(|files| tls::server_config(files, clock.clone()))
        .transpose()?;
    let listen = |address| -> anyhow::Result<(TcpListener, std::net::SocketAddr)> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);

    let (listener, address) = listen(settings.listen)?;
    let service_url = format!("http://{address}");
    let ready = database.clone();
    let mut server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(ready.clone()))
            .configure(probes)
            .configure(public.clone())
    })
    .workers(cores)
    .shutdown_timeout(DRAIN_SECONDS)
    .listen(listener)?;
    let mut tls_url = None;
    if let (Some(address), Some(config)) = (settings.tls_listen, &tls) {
        let (listener, address) = listen(address)?;
        tls_url = Some(format!("https://{address}"));
        server = server.listen_rustls_0_23(listener, config.clone())?;
    }
    if !settings.drained_by_signals {
        server = server.disable_signals();
    }
    let public = server.run();

    let (listener, address) = listen(settings.admin_listen)?;
    let watch = Watch {
        database: database.clone(),
        audit: audit.clone(),
        clock,
    };
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(database.clone()))
            .app_data(web::Data::new(tokens.clone()))
            .app_data(web::Data::new(audit.clone()))
            .app_data(web::Data::new(metrics.clone()))
            .configure(probes)
            .route("/metrics", web::get().to(expose_metrics))
            .service(
                web::scope("/admin/v1")
                    .wrap(from_fn(guard))
                    .route("/role", web::get().to(role))
                    .configure(admin.clone()),
            )
    })
    .workers(1)
    .shutdown_timeout(DRAIN_SECONDS);
    let server = match settings.drained_by_signals {
        true => server,
        false => server.disable_signals(),
    };
    // Loopback stays plain, so that a lab needs no certificate to administer itself.
    let (server, scheme) = match tls {
        Some(config) if !address.ip().is_loopback() => (server.listen_rustls_0_23(listener, config)?, "https"),
        _ => (server.listen(listener)?, "http"),
    };
    Ok(Bound {
        service_url,
        tls_url,
        admin_url: format!("{scheme}://{address}"),
        public,
        admin: server.run(),
        watch,
    })
}

fn probes(app: &mut web::ServiceConfig) {
    app.route("/healthz", web::get().to(HttpResponse::NoContent))
        .route("/readyz", web::get().to(readiness));
}

async fn readiness(database: web::Data<Database>) -> HttpResponse {
    if database.answers().await {
        HttpResponse::NoContent().finish()
    } else {
        HttpResponse::ServiceUnavailable().finish()
    }
}

/// What the holder of the token may do: `{"role": "administrator"}` or `reviewer`, for clients that offer no
/// more than that.
async fn role(holder: web::ReqData<Holder>) -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({ "role": holder.role.word() }))
}

async fn expose_metrics(metrics: web::Data<Metrics>) -> HttpResponse {
    let mut text = String::new();
    match encode(&mut text, &metrics.registry) {
        Ok(()) => HttpResponse::Ok()
            .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
            .body(text),
        Err(_) => HttpResponse::InternalServerError().finish(),
    }
}

async fn guard(
    tokens: web::Data<Tokens>,
    audit: web::Data<Audit>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let holder = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| tokens.holder(value));
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let admitted = match holder {
        Some(holder) if reads || holder.role == Role::Administrator => Ok(holder),
        Some(_) => Err(problem(
            HttpResponse::Forbidden(),
            "a reviewer may only read: use an administrator's token",
        )),
        None => Err(problem(
            HttpResponse::Unauthorized(),
            "no valid admin token: send `Authorization: Bearer TOKEN` with a token whose hash is in --admin-tokens",
        )),
    };
    match admitted {
        Err(refusal) => Ok(request.into_response(refusal).map_into_boxed_body()),
        Ok(holder) => {
            request.extensions_mut().insert(holder);
            if !reads && let Err(error) = audit.record(administration(&request, holder)).await {
                tracing::error!(%error, "an administrator's change was not made");
                let refusal = problem(
                    HttpResponse::ServiceUnavailable(),
                    "the change was not made, because it could not be recorded; try again",
                );
                return Ok(request.into_response(refusal).map_into_boxed_body());
            }
            Ok(next.call(request).await?.map_into_boxed_body())
        }
    }
}

/// What is recorded before an administrator's change is tried. Bodies may hold passwords and stay out.
fn administration(request: &ServiceRequest, by: Holder) -> Entry {
    Entry {
        kind: "administration",
        once: None,
        body: serde_json::json!({
            "method": request.method().as_str(),
            "path": request.path(),
            "by": by.to_string(),
            "from": request.peer_addr().map(|address| address.ip()),
        }),
    }
}

/// The body of every refusal of the admin API: `{"error": "…"}`.
pub fn problem(mut status: actix_web::HttpResponseBuilder, text: &str) -> HttpResponse {
    status.json(serde_json::json!({ "error": text }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{self, AuditError},
        settings::ServiceArgs,
        tokens::new_token,
    };
    use hgs_protocol::env::{Env, OsRandom};
    use sqlx::migrate::{Migration, MigrationType, Migrator};

    fn migrator() -> Migrator {
        let table = "CREATE TABLE audit (writer BLOB NOT NULL, sequence BIGINT NOT NULL, at BIGINT NOT NULL, \
                     kind TEXT NOT NULL, once BLOB UNIQUE, body TEXT NOT NULL, mac BLOB NOT NULL, \
                     PRIMARY KEY (writer, sequence))";
        let migration = Migration::new(
            1,
            "audit".into(),
            MigrationType::Simple,
            sqlx::AssertSqlSafe(table).into_sql_str(),
            false,
        );
        Migrator {
            migrations: vec![migration].into(),
            ..Migrator::DEFAULT
        }
    }
    use sqlx::SqlSafeStr as _;

    async fn service(dir: &std::path::Path) -> (Settings, Database, String, String) {
        let kek = dir.join("kek");
        std::fs::write(&kek, "11".repeat(32)).unwrap();
        let (administrator, first) = new_token(Role::Administrator, &mut OsRandom);
        let (reviewer, second) = new_token(Role::Reviewer, &mut OsRandom);
        let tokens = dir.join("tokens");
        std::fs::write(&tokens, format!("{first}\n{second}\n")).unwrap();
        let settings = ServiceArgs {
            data_dir: Some(dir.join("data")),
            key_encryption_key_file: Some(kek),
            admin_tokens: Some(tokens),
            ..ServiceArgs::default()
        }
        .resolve("test")
        .unwrap();
        let database = Database::open(&settings.database_url, &migrator(), &migrator())
            .await
            .unwrap();
        (settings, database, administrator, reviewer)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_admin_listener_asks_for_a_token_and_a_reviewer_only_reads() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let (settings, database, administrator, reviewer) = service(dir.path()).await;
        let audit = Audit::start(database.clone(), &settings.kek, &Env::system());
        let metrics = Metrics::new();
        metrics.decided("kps", "Passed");
        let bound = bind(
            &settings,
            Clock::system(),
            database.clone(),
            audit,
            metrics,
            |_| (),
            |app| {
                app.route("/thing", web::get().to(HttpResponse::Ok))
                    .route("/thing", web::post().to(HttpResponse::Ok));
            },
        )
        .unwrap();
        let url = format!("{}/admin/v1/thing", bound.admin_url);
        let (service_url, admin_url) = (bound.service_url.clone(), bound.admin_url.clone());
        let handles = bound.handles();
        let running = tokio::spawn(bound.run());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let status = |request: reqwest::RequestBuilder| async { request.send().await.unwrap().status().as_u16() };
        assert_eq!(status(client.get(&url)).await, 401);
        assert_eq!(status(client.get(&url).bearer_auth(&reviewer)).await, 200);
        assert_eq!(status(client.post(&url).bearer_auth(&reviewer)).await, 403);
        assert_eq!(status(client.post(&url).bearer_auth(&administrator)).await, 200);
        let recorded = audit::newest(&database, None, 10).await.unwrap();
        assert_eq!((recorded.len(), recorded[0].kind.as_str()), (1, "administration"));
        assert_eq!(recorded[0].body["path"], "/admin/v1/thing");
        let by = Tokens::from_file(&dir.path().join("tokens")).unwrap();
        let by = by.holder(&format!("Bearer {administrator}")).unwrap();
        assert_eq!(recorded[0].body["by"], by.to_string());
        assert_eq!(
            status(
                client
                    .get(format!("{service_url}/admin/v1/thing"))
                    .bearer_auth(&administrator)
            )
            .await,
            404
        );
        assert_eq!(status(client.get(format!("{service_url}/readyz"))).await, 204);
        let text = client
            .get(format!("{admin_url}/metrics"))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        assert!(
            text.contains("hgs_decisions_total{service=\"kps\",outcome=\"Passed\"} 1"),
            "{text}"
        );
        for handle in handles {
            handle.stop(true).await;
        }
        running.await.unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_whose_answer_was_lost_does_not_stop_the_audit() {
        let dir = tempfile::tempdir().unwrap();
        let (settings, database, ..) = service(dir.path()).await;
        let audit = Audit::start(database.clone(), &settings.kek, &Env::system());
        let entry = |n: u8| Entry {
            kind: "test",
            once: None,
            body: serde_json::json!({ "n": n }),
        };
        audit.record(entry(1)).await.unwrap();
        let Database::Sqlite { write, .. } = &database else {
            unreachable!()
        };
        // The row that the writer means to write next is there already, as after a COMMIT without an answer.
        sqlx::query("INSERT INTO audit SELECT writer, 2, at, kind, once, body, mac FROM audit")
            .execute(write)
            .await
            .unwrap();
        assert_eq!(audit.record(entry(2)).await, Err(AuditError::Unavailable));
        audit.record(entry(3)).await.unwrap();
        let rows = audit::newest(&database, None, 10).await.unwrap();
        assert!(rows.iter().any(|row| row.body["n"] == 3));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_edit_a_gap_and_a_cut_tail_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (settings, database, ..) = service(dir.path()).await;
        let audit = Audit::start(database.clone(), &settings.kek, &Env::system());
        let entry = |n: u8, once| Entry {
            kind: "test",
            once,
            body: serde_json::json!({ "n": n }),
        };
        let all = (1..=5).map(|n| audit.record(entry(n, None)));
        for result in all {
            result.await.unwrap();
        }
        audit.record(entry(6, Some([6; 16]))).await.unwrap();
        assert_eq!(audit.record(entry(7, Some([6; 16]))).await, Err(AuditError::Twice));
        audit.record(entry(8, None)).await.unwrap();
        let good = audit::verify(&database, &settings.kek, &[]).await.unwrap();
        assert_eq!((good.rows, good.faults.len(), good.heads[0].sequence), (7, 0, 7));
        assert_eq!(audit::newest(&database, None, 1).await.unwrap()[0].body["n"], 8);

        let run = |text: &'static str| {
            let database = database.clone();
            async move {
                let Database::Sqlite { write, .. } = database else {
                    unreachable!()
                };
                sqlx::query(text).execute(&write).await.unwrap();
            }
        };
        run("DELETE FROM audit WHERE sequence = 7").await;
        assert_eq!(
            audit::verify(&database, &settings.kek, &[]).await.unwrap().faults.len(),
            0
        );
        let cut = audit::verify(&database, &settings.kek, &good.heads).await.unwrap();
        assert!(cut.faults[0].contains("is gone"), "{:?}", cut.faults);
        run("UPDATE audit SET body = '{\"n\":9}' WHERE sequence = 2").await;
        run("DELETE FROM audit WHERE sequence = 4").await;
        let bad = audit::verify(&database, &settings.kek, &[]).await.unwrap();
        assert_eq!(bad.faults.len(), 2, "{:?}", bad.faults);
        assert!(bad.faults[0].contains("row 2 was changed") && bad.faults[1].contains("4 to 4 are missing"));
    }
}
