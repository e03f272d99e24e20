//! The lab's names: one table in a file, which hosts read for each request. A name leads to every node of the HGS.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::hgs::Cluster;
use crate::client::NameTable;

/// The table.
pub(super) struct Network {
    path: PathBuf,
    names: NameTable,
    hidden: bool,
}

impl Network {
    /// A table with nothing in it, below `folder`.
    pub(super) fn new(folder: &Path) -> anyhow::Result<Network> {
        let network = Network {
            path: folder.join("names.json"),
            names: NameTable::default(),
            hidden: false,
        };
        network.write()?;
        Ok(network)
    }

    /// Its file.
    pub(super) fn table(&self) -> &Path {
        &self.path
    }

    /// The names of an HGS as it is now.
    pub(super) fn publish(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        self.names.0 = cluster.names();
        self.write()
    }

    /// No names any more.
    pub(super) fn withdraw(&mut self) -> anyhow::Result<()> {
        self.names.0.clear();
        self.write()
    }

    /// Nobody finds the names, or everybody again.
    pub(super) fn hide(&mut self, hidden: bool) -> anyhow::Result<()> {
        self.hidden = hidden;
        self.write()
    }

    pub(super) fn resolve(&self, name: &str, port: u16) -> Vec<SocketAddr> {
        let key = format!("{}:{port}", name.to_ascii_lowercase());
        match self.hidden {
            true => Vec::new(),
            false => self.names.0.get(&key).cloned().unwrap_or_default(),
        }
    }

    /// All or nothing: a host may read it at any time.
    fn write(&self) -> anyhow::Result<()> {
        let none = NameTable::default();
        let shown = if self.hidden { &none } else { &self.names };
        let beside = self.path.with_extension("new");
        fs::write(&beside, serde_json::to_vec_pretty(shown)?)
            .and_then(|()| fs::rename(&beside, &self.path))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}
