//! The Docker engine, as far as drills need it: containers of one compose project by the names of their
//! services, stopped, killed, started, cut off from a network, and looked into. Every order is one call of
//! `docker`; what it says when it fails is the error.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, anyhow, bail, ensure};
use tokio::{io::AsyncWriteExt, process::Command, time::Instant};

/// One compose project.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    project: String,
}

/// Where a container stood in a network.
#[derive(Clone, Debug)]
pub(super) struct Place {
    network: String,
    address: String,
}

impl Engine {
    pub(super) fn of(project: &str) -> Engine {
        Engine {
            project: project.to_owned(),
        }
    }

    /// The id of a service's container.
    pub(super) async fn container(&self, service: &str) -> anyhow::Result<String> {
        let (project, service_label) = (
            format!("label=com.docker.compose.project={}", self.project),
            format!("label=com.docker.compose.service={service}"),
        );
        let arguments = [
            "ps",
            "-a",
            "-q",
            "--no-trunc",
            "--filter",
            &project,
            "--filter",
            &service_label,
        ];
        let found = docker(&arguments, None).await?;
        let mut ids = found.split_whitespace();
        match (ids.next(), ids.next()) {
            (Some(id), None) => Ok(id.to_owned()),
            (None, _) => bail!(
                "the project {} has no container of {service}: is the lab up?",
                self.project
            ),
            _ => bail!("the project {} has several containers of {service}", self.project),
        }
    }

    /// `ADDRESS:PORT` on this machine where a port of a service is published.
    pub(super) async fn published(&self, service: &str, port: u16) -> anyhow::Result<std::net::SocketAddr> {
        let id = self.container(service).await?;
        let told = docker(&["port", &id, &port.to_string()], None).await?;
        let first = told.lines().next().unwrap_or_default();
        first
            .parse()
            .with_context(|| format!("port {port} of {service} is published at {first:?}"))
    }

    /// Asks a service's process to end and waits until it has.
    pub(super) async fn stop(&self, service: &str, grace: Duration) -> anyhow::Result<()> {
        let id = self.container(service).await?;
        docker(&["stop", "-t", &grace.as_secs().to_string(), &id], None).await?;
        Ok(())
    }

    /// Kills a service's process, as a power cut would.
    pub(super) async fn kill(&self, service: &str) -> anyhow::Result<()> {
        docker(&["kill", "-s", "KILL", &self.container(service).await?], None).await?;
        Ok(())
    }

    pub(super) async fn start(&self, service: &str) -> anyhow::Result<()> {
        docker(&["start", &self.container(service).await?], None).await?;
        Ok(())
    }

    /// Waits until a service's own health check passes.
    pub(super) async fn until_healthy(&self, service: &str, most: Duration) -> anyhow::Result<()> {
        let id = self.container(service).await?;
        let form = "{{.State.Health.Status}}";
        let healthy = async || Ok(docker(&["inspect", "-f", form, &id], None).await?.trim() == "healthy");
        until(&format!("{service} is healthy"), most, healthy).await
    }

    /// Takes a service out of a network of the project; answers where it stood.
    pub(super) async fn cut_off(&self, service: &str, network: &str) -> anyhow::Result<Place> {
        let network = self.network(network).await?;
        let id = self.container(service).await?;
        let form = format!("{{{{with index .NetworkSettings.Networks \"{network}\"}}}}{{{{.IPAddress}}}}{{{{end}}}}");
        let address = docker(&["inspect", "-f", &form, &id], None).await?.trim().to_owned();
        ensure!(!address.is_empty(), "{service} is not in the network {network}");
        docker(&["network", "disconnect", &network, &id], None).await?;
        Ok(Place { network, address })
    }

    /// Puts a service back where it stood.
    pub(super) async fn put_back(&self, service: &str, place: &Place) -> anyhow::Result<()> {
        let id = self.container(service).await?;
        let Place { network, address } = place;
        docker(&["network", "connect", "--ip", address, network, &id], None).await?;
        Ok(())
    }

    /// Runs a program in a service's container, with `input`; answers what it printed.
    pub(super) async fn run_in(&self, service: &str, program: &[&str], input: Option<&[u8]>) -> anyhow::Result<String> {
        let id = self.container(service).await?;
        let mut arguments = vec!["exec", "-i", id.as_str()];
        arguments.extend(program);
        docker(&arguments, input).await
    }

    /// Runs a program beside what runs: in a new container of the image and with the volumes of `like`, in the
    /// network `network` of the project or in none.
    pub(super) async fn run_beside(
        &self,
        like: &str,
        network: Option<&str>,
        program: &[&str],
    ) -> anyhow::Result<String> {
        let id = self.container(like).await?;
        let image = docker(&["inspect", "-f", "{{.Config.Image}}", &id], None).await?;
        let network = match network {
            Some(name) => self.network(name).await?,
            None => "none".to_owned(),
        };
        let mut arguments = vec!["run", "--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"];
        arguments.extend(["--security-opt", "no-new-privileges:true", "--network", &network]);
        arguments.extend(["--volumes-from", &id, image.trim()]);
        arguments.extend(program);
        docker(&arguments, None).await
    }

    async fn network(&self, name: &str) -> anyhow::Result<String> {
        let (project, label) = (
            format!("label=com.docker.compose.project={}", self.project),
            format!("label=com.docker.compose.network={name}"),
        );
        let arguments = [
            "network",
            "ls",
            "--filter",
            &project,
            "--filter",
            &label,
            "--format",
            "{{.Name}}",
        ];
        let found = docker(&arguments, None).await?;
        let found = found.trim();
        ensure!(!found.is_empty(), "the project {} has no network {name}", self.project);
        Ok(found.to_owned())
    }
}

/// Asks again until `true_now`, at most for `most`. Who gives no answer is asked again, too: much is going on.
pub(super) async fn until(
    what: &str,
    most: Duration,
    mut true_now: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + most;
    loop {
        let now = true_now().await;
        if matches!(now, Ok(true)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let told = format!("after {} s it is not so that {what}", most.as_secs());
            return Err(match now {
                Ok(_) => anyhow!(told),
                Err(error) => error.context(told),
            });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn docker(arguments: &[&str], input: Option<&[u8]>) -> anyhow::Result<String> {
    let mut command = Command::new("docker");
    command
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().context("the program docker cannot be run")?;
    if let (Some(bytes), Some(mut pipe)) = (input, child.stdin.take()) {
        pipe.write_all(bytes).await?;
    }
    let output = child.wait_with_output().await?;
    ensure!(
        output.status.success(),
        "docker {} failed ({}): {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
