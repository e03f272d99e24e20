//! How the hosts are, looked at every other second; pages that show it are told when it changes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix_web::{HttpResponse, web};
use futures_util::{StreamExt, future::join_all, stream};
use serde::Deserialize;
use tokio::sync::{Notify, watch};

use crate::{
    api::Agent,
    lab::{HostPlace, Lab},
    session::Visitor,
};

/// Of a host's Get-HgsClientConfiguration what the pages show.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ClientView {
    pub(crate) is_host_guarded: bool,
    pub(crate) mode: String,
    pub(crate) attestation_server_url: Option<String>,
    pub(crate) key_protection_server_url: Option<String>,
    pub(crate) fallback_attestation_server_url: Option<String>,
    pub(crate) fallback_key_protection_server_url: Option<String>,
    pub(crate) is_fallback_in_use: bool,
    pub(crate) attestation_operation_mode: String,
    pub(crate) attestation_status: String,
    pub(crate) attestation_substatus: String,
    #[serde(rename = "error")]
    pub(crate) error: Option<String>,
    #[serde(rename = "detail")]
    pub(crate) detail: String,
    #[serde(rename = "remedy")]
    pub(crate) remedy: String,
    #[serde(rename = "certificate")]
    pub(crate) certificate: Option<CertificateView>,
}

/// A health certificate in short. What is left of it changes each second and is not compared.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct CertificateView {
    pub(crate) serial: String,
    pub(crate) not_before: String,
    pub(crate) not_after: String,
}

/// A VM as one of the hosts shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct VmView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) owner_host: String,
    pub(crate) generation: u64,
    pub(crate) security: Option<SecurityView>,
    pub(crate) protector: Option<ProtectorView>,
}

/// Its kind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct SecurityView {
    pub(crate) kind: String,
    pub(crate) switches: BTreeMap<String, bool>,
}

/// Its protector in short.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ProtectorView {
    pub(crate) owner: Option<String>,
    pub(crate) guardians: usize,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostNow {
    pub(crate) place: HostPlace,
    /// What it says, or why it says nothing.
    pub(crate) view: Result<ClientView, String>,
}

impl HostNow {
    /// In a word: `Passed`, another attestation status, `Local` or `Off`.
    pub(crate) fn status(&self) -> &str {
        match (&self.place.agent, &self.view) {
            (None, _) => "Off",
            (_, Err(_)) => "NoAnswer",
            (_, Ok(view)) if view.mode == "Local" => "Local",
            (_, Ok(view)) => &view.attestation_status,
        }
    }
}

/// All of it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) hosts: BTreeMap<String, HostNow>,
    pub(crate) vms: BTreeMap<String, VmView>,
}

/// The picture, kept up.
pub(crate) struct Live {
    picture: Arc<watch::Sender<Arc<Picture>>>,
    again: Arc<Notify>,
}

impl Live {
    /// Begins to look, until nobody has the value any more.
    pub(crate) fn watch(lab: Arc<dyn Lab>) -> Live {
        let picture = Arc::new(watch::Sender::new(Arc::default()));
        let again = Arc::new(Notify::new());
        let (kept, asked) = (Arc::downgrade(&picture), again.clone());
        tokio::spawn(async move {
            loop {
                let seen = look(&*lab).await;
                let Some(picture) = kept.upgrade() else { return };
                show(&picture, seen);
                drop(picture);
                let _ = tokio::time::timeout(BETWEEN_LOOKS, asked.notified()).await;
            }
        });
        Live { picture, again }
    }

    /// How things were when last looked at.
    pub(crate) fn picture(&self) -> Arc<Picture> {
        self.picture.borrow().clone()
    }

    /// Something was just changed: look again now.
    pub(crate) async fn see_now(&self, lab: &dyn Lab) {
        show(&self.picture, look(lab).await);
        self.again.notify_one();
    }
}

fn show(picture: &watch::Sender<Arc<Picture>>, seen: Picture) {
    picture.send_if_modified(|known| {
        let changed = **known != seen;
        if changed {
            *known = Arc::new(seen);
        }
        changed
    });
}

/// Everything of one moment, each host by itself: one that hangs costs the others nothing but the wait.
async fn look(lab: &dyn Lab) -> Picture {
    let http = lab.http();
    let places = lab.hosts().await;
    let seen = join_all(places.into_iter().map(|place| async move {
        let Some(url) = place.agent.as_deref() else {
            let view = Err("its power is off".to_owned());
            return (HostNow { place, view }, Vec::new());
        };
        let agent = Agent { url, http };
        let view = agent
            .get::<ClientView>("status")
            .await
            .map_err(|error| error.to_string());
        // A host without virtual secure mode has no VMs to tell of.
        let vms = match view.is_ok() {
            true => agent.get::<Vec<VmView>>("volume/vms").await.unwrap_or_default(),
            false => Vec::new(),
        };
        (HostNow { place, view }, vms)
    }))
    .await;
    let mut picture = Picture::default();
    for (host, vms) in seen {
        for vm in vms {
            let better = vm.owner_host == host.place.name || !picture.vms.contains_key(&vm.name);
            if better {
                picture.vms.insert(vm.name.clone(), vm);
            }
        }
        picture.hosts.insert(host.place.name.clone(), host);
    }
    picture
}

/// Server-sent events: `changed` whenever the picture has.
pub(crate) async fn events(visitor: Visitor) -> HttpResponse {
    let picture = visitor.console.live.picture.subscribe();
    let told = stream::unfold(picture, |mut picture| async move {
        let line = match tokio::time::timeout(BETWEEN_SIGNS, picture.changed()).await {
            Ok(Ok(())) => "event: changed\ndata: hosts\n\n",
            Ok(Err(_)) => return None,
            // A comment, so that a connection that nobody listens on is noticed.
            Err(_) => ": here\n\n",
        };
        Some((
            Ok::<_, actix_web::Error>(web::Bytes::from_static(line.as_bytes())),
            picture,
        ))
    });
    let first = stream::once(async { Ok(web::Bytes::from_static(b"retry: 2000\n\n")) });
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .streaming(first.chain(told))
}

const BETWEEN_LOOKS: Duration = Duration::from_secs(2);
const BETWEEN_SIGNS: Duration = Duration::from_secs(15);
