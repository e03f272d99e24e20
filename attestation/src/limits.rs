//! How often one key or one address may ask. Counts in memory, per process, within fixed bounds: what
//! asks once is forgotten within a minute or two, and a flood of strangers displaces nobody.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use actix_web::HttpRequest;

/// At most so many requests a minute for each key.
pub struct Limiter<K> {
    most: u32,
    state: Mutex<State<K>>,
}

struct State<K> {
    counts: HashMap<K, Count>,
    swept: Instant,
}

struct Count {
    began: Instant,
    requests: u32,
}

impl<K: Hash + Eq> Limiter<K> {
    /// At most `most` in each minute that begins with a first request.
    pub fn new(most: u32) -> Limiter<K> {
        Limiter {
            most,
            state: Mutex::new(State {
                counts: HashMap::new(),
                swept: Instant::now(),
            }),
        }
    }

    /// Counts one request; false when it is one too many.
    pub fn admit(&self, key: K) -> bool {
        self.admit_at(key, Instant::now())
    }

    fn admit_at(&self, key: K, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let full = state.counts.len() >= MOST_KEYS && !state.counts.contains_key(&key);
        if full || now.saturating_duration_since(state.swept) >= MINUTE {
            state
                .counts
                .retain(|_, count| now.saturating_duration_since(count.began) < MINUTE);
            state.swept = now;
        }
        if state.counts.len() >= MOST_KEYS && !state.counts.contains_key(&key) {
            return false;
        }
        let count = state.counts.entry(key).or_insert(Count {
            began: now,
            requests: 0,
        });
        if now.saturating_duration_since(count.began) >= MINUTE {
            *count = Count {
                began: now,
                requests: 0,
            };
        }
        count.requests = count.requests.saturating_add(1);
        count.requests <= self.most
    }
}

/// The address that asks: the peer's, or what a proxy of ours says of it. What others write into the
/// header does not count, nor does anything before the last address in it.
pub fn client_address(request: &HttpRequest, proxies: &[IpAddr]) -> Option<IpAddr> {
    let peer = request.peer_addr()?.ip();
    if !proxies.contains(&peer) {
        return Some(peer);
    }
    let header = request.headers().get_all("x-forwarded-for").last();
    let last = header.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    Some(last.unwrap_or(peer))
}

const MINUTE: Duration = Duration::from_secs(60);
/// About 100 bytes each.
const MOST_KEYS: usize = 131_072;

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn a_key_has_its_minute_and_then_a_new_one() {
        let limiter = Limiter::new(2);
        let now = Instant::now();
        assert!(limiter.admit_at(1, now) && limiter.admit_at(1, now));
        assert!(!limiter.admit_at(1, now));
        assert!(limiter.admit_at(2, now), "another key");
        assert!(!limiter.admit_at(1, now + MINUTE / 2));
        assert!(limiter.admit_at(1, now + MINUTE));
    }

    #[test]
    fn strangers_are_forgotten_and_never_more_than_the_bound() {
        let limiter = Limiter::new(1);
        let now = Instant::now();
        for key in 0..MOST_KEYS {
            assert!(limiter.admit_at(key, now));
        }
        assert!(!limiter.admit_at(MOST_KEYS, now), "full");
        assert!(!limiter.admit_at(0, now), "still counted");
        assert!(limiter.admit_at(MOST_KEYS, now + MINUTE));
        assert_eq!(limiter.state.lock().unwrap().counts.len(), 1);
    }

    #[test]
    fn a_forwarded_address_counts_from_our_proxies_only() {
        let request = TestRequest::default()
            .peer_addr(([10, 0, 0, 1], 99).into())
            .insert_header(("x-forwarded-for", "1.1.1.1, 192.0.2.7"))
            .to_http_request();
        let peer: IpAddr = [10, 0, 0, 1].into();
        assert_eq!(client_address(&request, &[]), Some(peer));
        assert_eq!(client_address(&request, &[peer]), Some([192, 0, 2, 7].into()));
        let odd = TestRequest::default()
            .peer_addr(([10, 0, 0, 1], 99).into())
            .insert_header(("x-forwarded-for", "nonsense"))
            .to_http_request();
        assert_eq!(client_address(&odd, &[peer]), Some(peer));
    }
}
