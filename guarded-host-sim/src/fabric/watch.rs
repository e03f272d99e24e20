//! Notices when a process of the fabric has ended, and says why from its log.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::child::last_words;

/// The processes that must not end. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Watch(Arc<Mutex<Vec<Watched>>>);

#[derive(Clone, Debug)]
struct Watched {
    name: String,
    process: u32,
    log: PathBuf,
}

impl Watch {
    /// Watches one more process, if it is a child of ours.
    pub fn add(&self, name: &str, process: Option<u32>, log: &Path) {
        let Some(process) = process else { return };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Watched {
            name: name.to_owned(),
            process,
            log: log.to_path_buf(),
        });
    }

    /// A process that is about to be ended on purpose.
    pub fn forget(&self, process: Option<u32>) {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|w| Some(w.process) != process);
    }

    /// Which process has ended, if one has, and its last words.
    pub fn gone(&self) -> Option<String> {
        let watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = watched.iter().find(|w| !is_running(w.process))?;
        Some(format!("{} has ended: {}", gone.name, last_words(&gone.log)))
    }

    /// Waits until a process has ended.
    pub async fn until_gone(&self) -> String {
        loop {
            if let Some(reason) = self.gone() {
                return reason;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A zombie has ended too: its parent has not looked yet.
fn is_running(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything; the state follows it.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::Plan;

    #[tokio::test]
    async fn an_ended_process_is_named_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(
            &log,
            "first\nError: the TPM does not answer\n\nStack backtrace:\n  0: main\n",
        )
        .unwrap();
        let mut child = Plan::new("sleep", dir.path()).arg("600").spawn().unwrap();
        let watch = Watch::default();
        watch.add("host01", Some(child.id()), &log);
        assert_eq!(watch.gone(), None);
        child.kill().unwrap();
        assert_eq!(watch.until_gone().await, "host01 has ended: the TPM does not answer");
    }
}
