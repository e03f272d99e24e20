//! What the network between hosts and services does to messages: who does not reach whom, what comes late, what is
//! changed on its way.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::model::step::{Damage, ServiceName};

/// The troubles in force. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Weather(Arc<Mutex<Vec<Trouble>>>);

/// What befalls the messages between some hosts and some services of an HGS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The hosts; all when empty.
    pub hosts: Vec<String>,
    /// The HGS.
    pub hgs: String,
    /// Its services; both when empty.
    pub services: Vec<ServiceName>,
    /// What befalls them.
    pub kind: Kind,
}

/// What befalls a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It does not arrive.
    Cut,
    /// It comes late.
    Delay(Duration),
    /// It is changed, in so many messages more; in all when there is no number.
    Damage(Damage, Option<u32>),
}

impl Trouble {
    fn is_for(&self, host: &str, hgs: &str, service: ServiceName) -> bool {
        (self.hosts.is_empty() || self.hosts.iter().any(|name| name == host))
            && self.hgs == hgs
            && (self.services.is_empty() || self.services.contains(&service))
    }
}

impl Weather {
    /// One more.
    pub fn add(&self, trouble: Trouble) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(trouble);
    }

    /// No trouble any more.
    pub fn heal(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether `host` does not reach this service.
    pub fn is_cut(&self, host: &str, hgs: &str, service: ServiceName) -> bool {
        let troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        troubles
            .iter()
            .any(|trouble| trouble.kind == Kind::Cut && trouble.is_for(host, hgs, service))
    }

    /// How late a message of `host` to this service comes.
    pub fn delay(&self, host: &str, hgs: &str, service: ServiceName) -> Duration {
        let troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let delay = |trouble: &Trouble| match trouble.kind {
            Kind::Delay(by) if trouble.is_for(host, hgs, service) => Some(by),
            _ => None,
        };
        troubles.iter().filter_map(delay).sum()
    }

    /// Changes a message between `host` and this service: `change` gives the changed body where a damage is for it.
    /// Gives the damages done, and counts them.
    pub fn damage(
        &self,
        (host, hgs, service): (&str, &str, ServiceName),
        mut change: impl FnMut(Damage) -> bool,
    ) -> Vec<Damage> {
        let mut troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = Vec::new();
        for trouble in troubles.iter_mut() {
            if !trouble.is_for(host, hgs, service) {
                continue;
            }
            if let Kind::Damage(damage, left) = &mut trouble.kind
                && *left != Some(0)
                && change(*damage)
            {
                *left = left.map(|left| left.saturating_sub(1));
                done.push(*damage);
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(kind: Kind) -> Trouble {
        Trouble {
            hosts: vec!["host01".to_owned()],
            hgs: "hgs".to_owned(),
            services: vec![ServiceName::KeyProtection],
            kind,
        }
    }

    #[test]
    fn a_cut_is_for_whom_it_names() {
        let weather = Weather::default();
        weather.add(trouble(Kind::Cut));
        assert!(weather.is_cut("host01", "hgs", ServiceName::KeyProtection));
        assert!(!weather.is_cut("host01", "hgs", ServiceName::Attestation));
        assert!(!weather.is_cut("host02", "hgs", ServiceName::KeyProtection));
        assert!(!weather.is_cut("host01", "other", ServiceName::KeyProtection));
        weather.heal();
        assert!(!weather.is_cut("host01", "hgs", ServiceName::KeyProtection));
    }

    #[test]
    fn delays_add_up_and_damages_are_counted() {
        let weather = Weather::default();
        let place = ("host01", "hgs", ServiceName::KeyProtection);
        weather.add(trouble(Kind::Delay(Duration::from_secs(1))));
        weather.add(trouble(Kind::Delay(Duration::from_secs(2))));
        weather.add(trouble(Kind::Damage(Damage::WrappedKey, Some(1))));
        assert_eq!(weather.delay(place.0, place.1, place.2), Duration::from_secs(3));
        assert_eq!(
            weather.damage(place, |_| false),
            [],
            "a message that it is not for does not count"
        );
        assert_eq!(weather.damage(place, |_| true), [Damage::WrappedKey]);
        assert_eq!(weather.damage(place, |_| true), []);
    }
}
