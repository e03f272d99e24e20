//! The fabric console: pages on which an administrator sees and steers a guarded fabric.
//!
//! A client like any other of the administrators' interfaces of attestation and key protection, with the token that its
//! user signed in with, and of the hosts' control interfaces. What only the lab can do, such as pressing a power button,
//! it asks of a [`Lab`]. It keeps no token beyond a session, and of the fabric only the settings of [`settings`].
//!
//! Every page and form works without JavaScript; with it, what changes is shown at once.

mod api;
pub mod lab;
mod live;
mod pages;
mod secure;
mod session;
pub mod settings;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use actix_web::{App, HttpServer, dev::Server, middleware::from_fn, web};

pub use self::lab::{Decoded, Exchange, Field, HostPlace, HostPower, Lab, ServicePlace, Told, UrlOf, VmAction};
use self::{live::Live, session::Sessions, settings::SettingsFile};

/// What a console needs to know.
pub struct Plan {
    /// The fabric.
    pub lab: Arc<dyn Lab>,
    /// Where the fabric settings are kept.
    pub settings: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Host names beside `localhost` under which browsers may reach it. A request for another is refused, so that no
    /// foreign page reaches the console by a name of its own.
    pub names: Vec<String>,
}

/// What every page has at hand.
pub(crate) struct Console {
    pub(crate) lab: Arc<dyn Lab>,
    pub(crate) settings: SettingsFile,
    pub(crate) sessions: Sessions,
    pub(crate) live: Live,
    pub(crate) names: Vec<String>,
}

impl Console {
    /// Something was just changed, and the next page is to show it.
    pub(crate) async fn see_now(&self) {
        self.live.see_now(&*self.lab).await;
    }
}

/// A console that listens.
pub struct Bound {
    /// Its addresses.
    pub addresses: Vec<SocketAddr>,
    /// Serves until it is stopped.
    pub server: Server,
}

/// Why a console does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings cannot be read.
    #[error(transparent)]
    Settings(#[from] settings::SettingsError),
    /// It cannot listen.
    #[error("the console cannot listen on {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
}

/// Opens the listener. Call it inside a tokio runtime.
pub fn bind(plan: Plan) -> Result<Bound, StartError> {
    let console = web::Data::new(Console {
        settings: SettingsFile::open(&plan.settings)?,
        sessions: Sessions::default(),
        live: Live::watch(plan.lab.clone()),
        names: plan.names,
        lab: plan.lab,
    });
    let address = plan.listen;
    let server = HttpServer::new(move || {
        App::new()
            .app_data(console.clone())
            .app_data(web::FormConfig::default().limit(LARGEST_FORM))
            .wrap(from_fn(secure::secure))
            .configure(pages::routes)
    })
    .workers(2)
    .shutdown_timeout(1)
    .bind(address)
    .map_err(|error| StartError::Listen { address, error })?;
    Ok(Bound {
        addresses: server.addrs(),
        server: server.run(),
    })
}

/// A form with a boot log in it stays below.
const LARGEST_FORM: usize = 2 * 1024 * 1024;
