//! How a host stands, in the words and colours that all pages share.

use crate::{
    live::{ClientView, HostNow},
    settings::{FabricSettings, Urls},
};

/// How good a thing is. A page says it in words too; the colour is an addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Fair,
    Bad,
    Quiet,
}

impl Tone {
    /// The class in the style sheet.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Fair => "fair",
            Tone::Bad => "bad",
            Tone::Quiet => "quiet",
        }
    }

    pub(crate) fn of_status(status: &str) -> Tone {
        match status {
            "Passed" => Tone::Good,
            "TransientError" | "NotAttempted" | "Expired" => Tone::Fair,
            "Off" | "Local" | "NotConfigured" => Tone::Quiet,
            _ => Tone::Bad,
        }
    }
}

/// Whether the URLs that a host has are those that it was given here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UrlMatch {
    /// It is not enabled, or nothing is set.
    NotSet,
    /// As set.
    AsSet,
    /// Somebody changed them elsewhere.
    Differ,
    /// It does not say.
    Unknown,
}

impl UrlMatch {
    pub(crate) fn of(settings: &FabricSettings, host: &str, now: Option<&HostNow>) -> UrlMatch {
        let Some(wanted) = settings.urls_of(host) else {
            return UrlMatch::NotSet;
        };
        match now.map(|now| &now.view) {
            Some(Ok(view)) if urls_of(view) == *wanted => UrlMatch::AsSet,
            Some(Ok(_)) => UrlMatch::Differ,
            _ => UrlMatch::Unknown,
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            UrlMatch::NotSet => "not managed here",
            UrlMatch::AsSet => "as in the settings",
            UrlMatch::Differ => "changed elsewhere",
            UrlMatch::Unknown => "unknown",
        }
    }

    pub(crate) fn tone(self) -> Tone {
        match self {
            UrlMatch::NotSet | UrlMatch::Unknown => Tone::Quiet,
            UrlMatch::AsSet => Tone::Good,
            UrlMatch::Differ => Tone::Bad,
        }
    }
}

/// The URLs that a host has.
pub(crate) fn urls_of(view: &ClientView) -> Urls {
    let text = |url: &Option<String>| url.clone().unwrap_or_default();
    Urls {
        attestation: text(&view.attestation_server_url),
        key_protection: text(&view.key_protection_server_url),
        fallback_attestation: text(&view.fallback_attestation_server_url),
        fallback_key_protection: text(&view.fallback_key_protection_server_url),
    }
}

/// Whether a shielded VM may be placed on the host, or why not.
pub(crate) fn takes_shielded_vms(settings: &FabricSettings, host: &str, now: Option<&HostNow>) -> Result<(), String> {
    let view = match now.map(|now| &now.view) {
        Some(Ok(view)) => view,
        Some(Err(reason)) => return Err(format!("{host} cannot be asked: {reason}")),
        None => return Err(format!("the lab does not run {host}")),
    };
    match UrlMatch::of(settings, host, now) {
        UrlMatch::NotSet => {
            return Err(format!(
                "Host Guardian Hyper-V support is not enabled on {host}: enable it on its Host Guardian Service tab"
            ));
        }
        UrlMatch::Differ | UrlMatch::Unknown => {
            return Err(format!(
                "the URLs of {host} were changed elsewhere and are not those of the settings: apply the settings again"
            ));
        }
        UrlMatch::AsSet => {}
    }
    match view.is_host_guarded {
        true => Ok(()),
        false => Err(format!(
            "{host} is not guarded: {} ({})",
            view.attestation_status, view.attestation_substatus
        )),
    }
}
