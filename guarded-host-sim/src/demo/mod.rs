//! The demonstration: a guarded fabric from set-up to refusal, told one line per step.
//!
//! Real processes on loopback: two services of the HGS, four hosts, and the HGS of a thief. A step
//! passes when its outcome is the expected one; a refusal must be the protocol's own, for its reason.

pub mod narrator;
mod refusals;
mod story;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use self::narrator::Narrator;

/// Options of the demonstration.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DemoArgs {
    /// Print one JSON document about all steps, and nothing else, on standard output
    #[arg(long)]
    pub json: bool,
    /// Keep everything in this directory, which must be new or empty [default: a temporary one, removed at the end]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Let the hosts speak HTTPS with the services
    #[arg(long)]
    pub https: bool,
    /// Let the key protection service keep its private keys in a PKCS#11 token (SoftHSM)
    #[arg(long, conflicts_with = "attach")]
    pub pkcs11: bool,
    /// SoftHSM's module, where it is not in a usual place
    #[arg(long, requires = "pkcs11", value_name = "FILE")]
    pub pkcs11_module: Option<PathBuf>,
    /// Tell the story on the services and hosts that this file (written by `prepare`) describes
    #[arg(long, conflicts_with = "https")]
    pub attach: Option<PathBuf>,
}

/// After Ctrl-C or SIGTERM: ends the processes, removes the temporary directory, ends with 130. A
/// SIGKILL leaves the directory; the processes end with it in any case.
pub(crate) async fn clear_up_when_interrupted(dir: PathBuf) {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    // A process that ends may still write, and the story may just be starting another one.
    for _ in 0..50 {
        end_children();
        let _ = std::fs::remove_dir_all(&dir);
        std::thread::sleep(Duration::from_millis(50));
        if !dir.exists() {
            break;
        }
    }
    eprintln!("interrupted; the temporary directory is removed");
    std::process::exit(130);
}

/// Kills the children of this process; theirs follow them.
fn end_children() {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for task in tasks {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for id in children.split_whitespace() {
            if let Some(id) = id.parse().ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
            }
        }
    }
}

/// The folder that a user named, which must be new or empty, or a temporary one; and whether it is to be removed.
pub(crate) fn working_folder(named: Option<&Path>) -> anyhow::Result<(PathBuf, bool)> {
    let Some(dir) = named else {
        return Ok((crate::swtpm::short_private_dir()?, true));
    };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let used = std::fs::read_dir(dir)?.next().is_some();
    anyhow::ensure!(!used, "the directory {} is not empty: name a new one", dir.display());
    Ok((dir.canonicalize()?, false))
}

/// Tells the story. Answers whether every step passed.
pub fn run(args: &DemoArgs) -> anyhow::Result<bool> {
    let (dir, remove) = working_folder(args.dir.as_deref())?;
    let mut narrator = Narrator::new(args.json);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if remove {
        runtime.spawn(clear_up_when_interrupted(dir.clone()));
    }
    runtime.block_on(story::tell(&mut narrator, &dir, args));
    let good = narrator.finish()?;
    if remove {
        let _ = std::fs::remove_dir_all(&dir);
    } else if !args.json {
        println!("Everything of this run is in {}.", dir.display());
    }
    Ok(good)
}
