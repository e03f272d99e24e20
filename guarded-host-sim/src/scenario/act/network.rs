//! Steps about the network between hosts and their HGS.

use std::time::Duration;

use super::{Came, World, name};
use crate::scenario::{
    model::{Action, At},
    weather::{Kind, Trouble},
};

/// Carries `action` out, if it is one of these.
pub(super) fn carry_out(world: &World, action: &Action) -> Option<Came> {
    let add = |hosts: &[At<String>], hgs: &Option<At<String>>, services: &[_], kind| {
        world.weather.add(Trouble {
            hosts: hosts.iter().map(ToString::to_string).collect(),
            hgs: name(hgs).unwrap_or(&world.first).to_owned(),
            services: services.to_vec(),
            kind,
        });
    };
    Some(match action {
        Action::Partition(cut) => {
            add(&cut.hosts, &cut.hgs, &cut.services, Kind::Cut);
            Came::done("the network is cut")
        }
        Action::Delay(of) => {
            let by = of.by.0.min(LONGEST_DELAY);
            add(&of.hosts, &of.hgs, &of.services, Kind::Delay(by));
            Came::done("messages come late")
        }
        Action::Corrupt(of) => {
            add(&of.hosts, &of.hgs, &[], Kind::Damage(of.what, of.times));
            Came::done("messages are changed")
        }
        Action::Heal(_) => {
            world.weather.heal();
            Came::done("the network is whole")
        }
        _ => return None,
    })
}

const LONGEST_DELAY: Duration = Duration::from_secs(10);
