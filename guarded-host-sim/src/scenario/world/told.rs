//! What the parts of a fabric tell of themselves: the services' records, and the event logs of services and hosts.

use std::fmt;

use hgs_service::events::{Event, Query};
use serde::Serialize;

use super::{HgsHere, HostHere, Recorded, World};
use crate::{event_log, scenario::model::step::ServiceName};

/// An event in the log of a host or of a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Logged {
    /// The host's name, or the service's.
    pub teller: String,
    /// The event.
    pub event: Event,
}

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: event {}", self.teller, self.event.id)
    }
}

/// What was told since the last look, of each teller oldest first.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// Decisions and changes.
    pub recorded: Vec<Recorded>,
    /// Events.
    pub logged: Vec<Logged>,
}

impl World {
    /// What is new. A service that does not answer has nothing to say; the log of a host is read though its power is off.
    pub async fn news(&self) -> News {
        let mut news = News::default();
        for hgs in self.hgs.values() {
            news.recorded.extend(hgs.news().await);
            news.logged.extend(hgs.logged().await);
        }
        for host in self.hosts.values() {
            news.logged.extend(host.logged().await);
        }
        news
    }
}

impl HgsHere {
    async fn logged(&self) -> Vec<Logged> {
        let mut seen = self.seen_events.lock().await;
        let hgs = self.hgs.read().await;
        let mut found = Vec::new();
        for (service, name) in [
            (&hgs.attestation, ServiceName::Attestation),
            (&hgs.kps, ServiceName::KeyProtection),
        ] {
            let events: Vec<Event> = service.admin_get("events?newest=1000").await.unwrap_or_default();
            let new = events.into_iter().rev();
            let new = new.filter(|event| seen.insert((name, event.record_id.clone())));
            found.extend(new.map(|event| Logged {
                teller: name.to_string(),
                event,
            }));
        }
        found
    }
}

impl HostHere {
    async fn logged(&self) -> Vec<Logged> {
        let mut seen = self.seen_events.lock().await;
        let newest = Some(hgs_service::events::MOST.to_string());
        let all = Query {
            newest,
            ..Query::default()
        };
        let events = all.filter().and_then(|all| event_log::read(&self.agent_folder(), &all));
        let mut events = events.unwrap_or_default();
        let number = |event: &Event| event.record_id.parse::<u64>().unwrap_or_default();
        events.retain(|event| number(event) > *seen);
        events.reverse();
        *seen = events.last().map_or(*seen, number);
        events
            .into_iter()
            .map(|event| Logged {
                teller: self.name().to_owned(),
                event,
            })
            .collect()
    }
}
