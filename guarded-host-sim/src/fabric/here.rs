//! Services in this process, on loopback. The one place of this crate that knows the services as
//! libraries: it starts and stops them. Whoever uses them speaks HTTP with them, as with any other.

use std::path::Path;

use actix_web::dev::ServerHandle;
use anyhow::bail;
use clap::Parser;
use hgs_protocol::env::Clock;
use hgs_service::{lab_clock, serve::Bound, settings::ServiceArgs};
use tokio::{runtime::Handle, task::JoinHandle};

/// A service that runs in this process. It ends with this value.
pub(super) struct Here {
    handles: [ServerHandle; 2],
    runtime: Handle,
    clock: JoinHandle<()>,
    task: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Here {
    /// Starts the service `name` with the arguments of its own command line, and gives where it listens: service,
    /// administrators, TLS. `clock` is its clock and the socket over which the lab moves it. Blocks.
    pub(super) fn start(
        name: &str,
        runtime: &Handle,
        service: ServiceArgs,
        arguments: &[String],
        (clock, socket): (&Clock, &Path),
    ) -> anyhow::Result<(Here, [Option<String>; 3])> {
        let mut settings = service.resolve(name)?;
        // Signals are for this process, which may be anything: a test, say.
        settings.drained_by_signals = false;
        let (bound, clock) = runtime.block_on(async {
            let listening = lab_clock::listen(socket, clock.clone())?;
            let bound = match name {
                "attestation" => {
                    let line = AttestationLine::try_parse_from(arguments)?;
                    attestation::start(&settings, &line.options, clock.clone()).await?
                }
                "kps" => {
                    let line = KpsLine::try_parse_from(arguments)?;
                    kps::start(&settings, &line.options, clock.clone()).await?
                }
                other => bail!("there is no service {other}"),
            };
            Ok((bound, listening))
        })?;
        let urls = [
            Some(bound.service_url.clone()),
            Some(bound.admin_url.clone()),
            bound.tls_url.clone(),
        ];
        let handles = bound.handles();
        let task = runtime.spawn(Bound::run(bound));
        let here = Here {
            handles,
            runtime: runtime.clone(),
            clock,
            task: Some(task),
        };
        Ok((here, urls))
    }

    /// Closes the listeners and every connection without waiting for the requests on them, and waits until that is
    /// done. Blocks.
    pub(super) fn stop(&mut self) {
        self.clock.abort();
        for handle in &self.handles {
            drop(handle.stop(false));
        }
        if let Some(task) = self.task.take() {
            // What it ended with says nothing: it was told to.
            let _ = self.runtime.block_on(task);
        }
    }

    /// Whether it has ended.
    pub(super) fn ended(&self) -> bool {
        self.task.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.clock.abort();
        for handle in &self.handles {
            drop(handle.stop(false));
        }
    }
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct AttestationLine {
    #[command(flatten)]
    options: attestation::Options,
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct KpsLine {
    #[command(flatten)]
    options: kps::Options,
}
