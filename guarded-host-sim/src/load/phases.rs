//! What comes before the first attestation: TPMs and keys, power, registration.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::bail;
use tokio::runtime::Handle;

use super::{
    LoadMode, Plan,
    host::{LightHost, Tally},
    pool::{Place, Pool},
    report::{Made, Phase, round},
    services::Services,
};
use crate::{agent::attest::HostSide, machine::dials::Dials};

/// The hosts that could be switched on, and why others could not.
#[derive(Default)]
pub(super) struct SwitchedOn {
    pub(super) hosts: Vec<Arc<LightHost>>,
    pub(super) failures: BTreeMap<String, usize>,
    /// DER certificates of the authorities that vouch for their TPMs.
    makers: Vec<Vec<u8>>,
}

/// Makes what the pool lacks and switches all hosts on. Blocks.
pub(super) fn prepare(
    mode: LoadMode,
    plan: &Plan,
    pool: &Pool,
    tally: &Arc<Tally>,
) -> anyhow::Result<(Made, Phase, SwitchedOn)> {
    let places: Vec<Place> = (1..=plan.hosts).map(|number| pool.place(number)).collect();
    let mut on = SwitchedOn::default();
    let (made, there) = match mode {
        LoadMode::Tpm => {
            let maker = pool.maker()?;
            on.makers = maker.certificates()?;
            on.fill("TPMs made", plan.workers(), places, Place::has_tpm, |place| {
                place.make_tpm(&maker)
            })
        }
        // Keys are arithmetic and nothing else.
        LoadMode::Hostkey => on.fill("keys made", plan.cores, places, Place::has_keys, Place::make_keys),
    };
    let begin = Instant::now();
    let booted = in_parallel("hosts switched on", plan.workers(), &there, |place| match mode {
        LoadMode::Tpm => LightHost::boot(place, plan.sleeps, tally),
        LoadMode::Hostkey => LightHost::with_keys(place, tally),
    });
    for (place, outcome) in there.iter().zip(booted) {
        match outcome {
            Ok(host) => on.hosts.push(Arc::new(host)),
            Err(error) => on.fails(place, &error),
        }
    }
    on.see_that_tpms_are_distinct()?;
    let power_on = Phase {
        hosts: on.hosts.len(),
        seconds: round(begin.elapsed().as_secs_f64()),
    };
    Ok((made, power_on, on))
}

impl SwitchedOn {
    /// Makes what is missing at `places`. Answers what that took, and the places where it is there now.
    fn fill(
        &mut self,
        what: &str,
        workers: usize,
        places: Vec<Place>,
        is_there: impl Fn(&Place) -> bool,
        make: impl Fn(&Place) -> anyhow::Result<()> + Sync,
    ) -> (Made, Vec<Place>) {
        let begin = Instant::now();
        let (mut there, missing): (Vec<Place>, Vec<Place>) = places.into_iter().partition(is_there);
        let kept = there.len();
        let outcomes = in_parallel(what, workers, &missing, |place| {
            let begin = Instant::now();
            make(place).map(|()| begin.elapsed())
        });
        let mut each = 0.0;
        for (place, outcome) in missing.into_iter().zip(outcomes) {
            match outcome {
                Ok(time) => {
                    each += time.as_secs_f64();
                    there.push(place);
                }
                Err(error) => self.fails(&place, &error),
            }
        }
        let made = there.len() - kept;
        let made = Made {
            kept,
            made,
            seconds: round(begin.elapsed().as_secs_f64()),
            seconds_each: round(each / made.max(1) as f64),
        };
        (made, there)
    }

    fn fails(&mut self, place: &Place, error: &anyhow::Error) {
        let folder = place.folder.display().to_string();
        let why = format!("{error:#}")
            .replace(&folder, "its folder")
            .replace(&place.name, "the host");
        *self.failures.entry(why).or_insert(0) += 1;
    }

    /// A copied state is the same TPM twice, and two hosts that are one are not a load.
    fn see_that_tpms_are_distinct(&self) -> anyhow::Result<()> {
        let mut seen = BTreeSet::new();
        for ek in self.hosts.iter().filter_map(|host| host.ek_sha256()) {
            if !seen.insert(ek) {
                bail!(
                    "two hosts of the pool have one TPM (endorsement key {}): a TPM's state was copied. Make the pool \
                     anew",
                    hex::encode(ek)
                );
            }
        }
        Ok(())
    }
}

/// Registers the hosts and what they have in common, as an administrator would. Blocks.
pub(super) fn register(services: &Services, pool: &Pool, on: &SwitchedOn, plan: &Plan) -> anyhow::Result<Phase> {
    let begin = Instant::now();
    let runtime = Handle::current();
    let service = services.attestation();
    if let Some(log) = on.hosts.iter().find_map(|host| host.model()) {
        let policy = Dials::default().ci_policy.unwrap_or_default();
        runtime.block_on(services.register_model(pool.tag(), &on.makers, (log, &policy)))?;
    }
    let registered = in_parallel("hosts registered", plan.workers(), &on.hosts, |host| {
        let key = host.registration();
        runtime.block_on(async {
            match host.ek_sha256() {
                Some(_) => service.register_host(host.name(), &key).await,
                None => service.register_host_key(host.name(), &key).await,
            }
        })
    });
    registered.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
    Ok(Phase {
        hosts: on.hosts.len(),
        seconds: round(begin.elapsed().as_secs_f64()),
    })
}

/// Does `work` for each of `items` on `workers` threads, and says on standard error how far it is.
fn in_parallel<I: Sync, T: Send>(what: &str, workers: usize, items: &[I], work: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let step = items.len().div_ceil(10).max(50);
    thread::scope(|scope| {
        for _ in 0..workers.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(number) else { return };
                    let outcome = work(item);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push((number, outcome));
                    if done.len() % step == 0 {
                        eprintln!("{what}: {} of {}", done.len(), items.len());
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_in_parallel_is_done_once_each_and_answered_in_order() {
        let items: Vec<usize> = (0..500).collect();
        let times = AtomicUsize::new(0);
        let squares = in_parallel("squares", 7, &items, |n| {
            times.fetch_add(1, Ordering::Relaxed);
            n * n
        });
        assert_eq!(times.into_inner(), 500);
        assert_eq!(squares, items.iter().map(|n| n * n).collect::<Vec<_>>());
        assert!(in_parallel("nothing", 7, &Vec::<usize>::new(), |n| *n).is_empty());
    }
}
