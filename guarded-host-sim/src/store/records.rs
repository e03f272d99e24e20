//! The store as the vault of its VMs: their records are part of the sealed, counted state.

use hgs_protocol::{crypto::RsaPrivateKey, env::Random};
use zeroize::Zeroizing;

use super::state::Store;
use crate::vm::started::Vault;

impl Vault for Store {
    fn vsm_key(&self) -> &RsaPrivateKey {
        &self.secrets().encryption
    }

    fn record(&self, name: &str) -> Option<&[u8]> {
        self.secrets().records.get(name).map(|value| value.as_slice())
    }

    fn count(&self) -> usize {
        self.secrets().records.len()
    }

    fn put(&mut self, name: &str, value: Zeroizing<Vec<u8>>, rng: &mut dyn Random) -> Result<(), String> {
        self.change(|records| drop(records.insert(name.to_owned(), value)), rng)
            .map_err(|e| e.to_string())
    }
}
