//! What the system allows one user and one process: raised where it can be, said plainly where it cannot.

use std::{fs, path::PathBuf};

use anyhow::bail;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a run takes at its peak.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// Open files of this process.
    pub(super) files: u64,
    /// Processes and threads.
    pub(super) tasks: u64,
}

impl Need {
    /// Of `tpms` running TPMs and `at_once` attestations under way.
    pub(super) fn of(tpms: usize, at_once: usize) -> Need {
        let (tpms, at_once) = (wide(tpms), wide(at_once));
        Need {
            // A TPM has two channels; an attestation a third one and its connection.
            files: tpms * 2 + at_once * 4 + SPARE,
            // swtpm has one thread; an attestation may block one of ours.
            tasks: tpms + at_once + SPARE,
        }
    }
}

/// Makes room for `need`, or says which limit is in the way and what to do.
pub(super) fn make_room(need: Need) -> anyhow::Result<()> {
    for (resource, what, need, option) in [
        (Resource::Nofile, "open files", need.files, "n"),
        (Resource::Nproc, "processes", need.tasks, "u"),
    ] {
        // The system does not hold root to a number of processes.
        if resource == Resource::Nproc && rustix::process::getuid().is_root() {
            continue;
        }
        let present = getrlimit(resource);
        match room(present, need) {
            Room::There => {}
            Room::Raise(limit) => {
                setrlimit(resource, limit).map_err(|e| anyhow::anyhow!("the limit of {what} cannot be raised: {e}"))?;
            }
            Room::None(most) => bail!(
                "this run takes {need} {what}, and this user may have {most}: raise the limit (ulimit -H{option} as \
                 root), or let fewer TPMs run at once (--tpms)"
            ),
        }
    }
    if let Some((most, used)) = group_tasks()
        && most.saturating_sub(used) < need.tasks
    {
        bail!(
            "this run takes {} processes and threads, and its control group allows {most}, of which {used} are used: \
             raise pids.max, or let fewer TPMs run at once (--tpms)",
            need.tasks
        );
    }
    Ok(())
}

enum Room {
    There,
    Raise(Rlimit),
    None(u64),
}

fn room(present: Rlimit, need: u64) -> Room {
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= need);
    match present.maximum {
        _ if enough(present.current) => Room::There,
        Some(most) if most < need => Room::None(most),
        maximum => Room::Raise(Rlimit {
            current: Some(need),
            maximum,
        }),
    }
}

/// The control group's limit of tasks and how many it has, where there is a limit.
fn group_tasks() -> Option<(u64, u64)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            "pids" => "/sys/fs/cgroup/pids",
            _ => return None,
        };
        let folder = PathBuf::from(format!("{root}{path}"));
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok();
        Some((read("pids.max")?, read("pids.current")?))
    })
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX / 8)
}

/// For the services, the runtime and what else there is.
const SPARE: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(current: u64, maximum: u64) -> Rlimit {
        Rlimit {
            current: Some(current),
            maximum: Some(maximum),
        }
    }

    #[test]
    fn a_limit_is_raised_as_far_as_needed_and_no_further() {
        assert!(matches!(room(limit(1024, 4096), 1024), Room::There));
        assert!(matches!(room(limit(1024, 4096), 4097), Room::None(4096)));
        match room(limit(1024, 4096), 3000) {
            Room::Raise(raised) => assert_eq!((raised.current, raised.maximum), (Some(3000), Some(4096))),
            _ => panic!("not raised"),
        }
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        assert!(matches!(room(unlimited, u64::MAX), Room::There));
    }

    #[test]
    fn a_run_beyond_every_limit_says_what_to_do() {
        let need = Need {
            files: u64::MAX - 1,
            tasks: 1,
        };
        if getrlimit(Resource::Nofile).maximum.is_none() {
            eprintln!("SKIPPED a_run_beyond_every_limit_says_what_to_do: this user's open files have no limit");
            return;
        }
        let refused = make_room(need).unwrap_err().to_string();
        assert!(
            refused.contains("open files") && refused.contains("--tpms"),
            "{refused}"
        );
    }
}
