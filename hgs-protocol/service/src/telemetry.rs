//! Logs: structured, on standard error, text or JSON. Level by `HGS_LOG` (a tracing filter; default `info`).

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging for this process. A second call does nothing.
pub fn init(format: LogFormat) {
    // The PKCS#11 library reports each mechanism of a token that it has no name for as an error.
    let filter = EnvFilter::try_from_env("HGS_LOG").unwrap_or_else(|_| EnvFilter::new("info,cryptoki::mechanism=off"));
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => base
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
        LogFormat::Json => base.json().try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging had been started before");
    }
}
