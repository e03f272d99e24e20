//! What the network between hosts and services does to messages: who does not reach whom.

use std::sync::{Arc, Mutex, PoisonError};

use super::model::step::ServiceName;

/// The troubles in force. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Weather(Arc<Mutex<Vec<Cut>>>);

/// Some hosts do not reach some services of an HGS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The hosts; all when empty.
    pub hosts: Vec<String>,
    /// The HGS.
    pub hgs: String,
    /// Its services; both when empty.
    pub services: Vec<ServiceName>,
}

impl Weather {
    /// One more.
    pub fn cut(&self, cut: Cut) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(cut);
    }

    /// No trouble any more.
    pub fn heal(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether `host` does not reach this service.
    pub fn is_cut(&self, host: &str, hgs: &str, service: ServiceName) -> bool {
        let cuts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cuts.iter().any(|cut| {
            (cut.hosts.is_empty() || cut.hosts.iter().any(|name| name == host))
                && cut.hgs == hgs
                && (cut.services.is_empty() || cut.services.contains(&service))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_for_whom_it_names() {
        let weather = Weather::default();
        weather.cut(Cut {
            hosts: vec!["host01".to_owned()],
            hgs: "hgs".to_owned(),
            services: vec![ServiceName::KeyProtection],
        });
        assert!(weather.is_cut("host01", "hgs", ServiceName::KeyProtection));
        assert!(!weather.is_cut("host01", "hgs", ServiceName::Attestation));
        assert!(!weather.is_cut("host02", "hgs", ServiceName::KeyProtection));
        assert!(!weather.is_cut("host01", "other", ServiceName::KeyProtection));
        weather.heal();
        assert!(!weather.is_cut("host01", "hgs", ServiceName::KeyProtection));
    }
}
