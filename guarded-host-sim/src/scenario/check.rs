//! What the types of a scenario cannot say: names that must exist, expectations that an action cannot yield,
//! two sentences that teach.

use super::model::{Action, At, NO_HGS, Scenario, Span, Step, expect::Yield};
use crate::{commit_point::COMMIT_POINTS, vm::VmName};

/// Something wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) span: Span,
    pub(super) message: String,
}

/// Everything that is wrong.
pub(super) fn check(scenario: &Scenario) -> Vec<Found> {
    let mut checks = Checks::of(scenario);
    checks.head();
    checks.parts();
    for step in &scenario.step {
        checks.step(step);
    }
    checks.found
}

/// What is wrong with the parts of the fabric.
pub(super) fn parts(scenario: &Scenario) -> Vec<Found> {
    let mut checks = Checks::of(scenario);
    checks.parts();
    checks.found
}

/// What is wrong with a step on the fabric of `scenario`.
pub(super) fn step(scenario: &Scenario, step: &Step) -> Vec<Found> {
    let mut checks = Checks::of(scenario);
    checks.step(step);
    checks.found
}

struct Checks<'a> {
    scenario: &'a Scenario,
    found: Vec<Found>,
}

impl<'a> Checks<'a> {
    fn of(scenario: &'a Scenario) -> Checks<'a> {
        Checks {
            scenario,
            found: Vec::new(),
        }
    }

    fn say(&mut self, span: &Span, message: String) {
        self.found.push(Found {
            span: span.clone(),
            message,
        });
    }

    fn head(&mut self) {
        let teaches = &self.scenario.teaches;
        let sentence = |text: &String| text.trim().len() > 10 && text.trim().ends_with(['.', '?', '!']);
        if !teaches.iter().all(sentence) {
            let message = "write two whole sentences, each with its full stop, that say what a reader learns";
            self.say(&teaches.span, message.to_owned());
        }
        if self.scenario.step.is_empty() {
            self.say(&(0..0), "a scenario needs a [[step]]".to_owned());
        }
    }

    fn parts(&mut self) {
        let scenario = self.scenario;
        self.distinct("an HGS", scenario.hgs.iter().map(|hgs| &hgs.name));
        self.distinct("a host", scenario.host.iter().map(|host| &host.name));
        self.distinct("a VM", scenario.vm.iter().map(|vm| &vm.name));
        for host in &scenario.host {
            // It becomes a folder.
            if VmName::parse(&host.volume).is_err() {
                let message = format!("{:?} is no name of a volume: use a-z, 0-9 and '-'", host.volume);
                self.say(&host.name.span, message);
            }
        }
        let places = scenario
            .hgs
            .iter()
            .map(|hgs| &hgs.name)
            .chain(scenario.host.iter().map(|host| &host.name));
        for name in places {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if !(1..=32).contains(&name.len()) || !name.chars().all(allowed) || **name == NO_HGS {
                self.say(
                    &name.span,
                    format!("{name:?} is no name here: use 1 to 32 of a-z, 0-9 and '-', and not {NO_HGS:?}"),
                );
            }
        }
        for host in &scenario.host {
            if let Some(hgs) = host.hgs.as_ref().filter(|hgs| ***hgs != NO_HGS) {
                self.hgs(hgs);
            }
        }
        for vm in &scenario.vm {
            if let Err(error) = VmName::parse(&vm.name) {
                self.say(&vm.name.span, error.to_string());
            }
            self.host(&vm.host);
            for hgs in &vm.guardians {
                self.hgs(hgs);
            }
        }
    }

    fn distinct<'n>(&mut self, what: &str, names: impl Iterator<Item = &'n At<String>>) {
        let mut seen: Vec<&str> = Vec::new();
        for name in names {
            if seen.contains(&name.as_str()) {
                self.say(&name.span, format!("{what} of this name was named before"));
            }
            seen.push(name);
        }
    }

    fn step(&mut self, step: &Step) {
        if let Some(expect) = &step.expect {
            let yields = step.action.yields();
            let fields: Vec<&str> = yields.iter().map(|field: &Yield| field.field()).collect();
            for (given, span) in expect.given().iter().filter(|(given, _)| !yields.contains(given)) {
                let allowed = match fields.is_empty() {
                    true => "nothing can be expected of it".to_owned(),
                    false => format!("it yields {}", fields.join(", ")),
                };
                self.say(
                    span,
                    format!("{} yields no {}; {allowed}", step.action.name(), given.field()),
                );
            }
            if let Some(events) = &expect.events {
                for event in events.iter() {
                    if let Some(fault) = event.fault() {
                        self.say(&events.span, fault.to_owned());
                    }
                    if let Some(host) = &event.host {
                        self.host(host);
                    }
                }
            }
        }
        match &step.action {
            Action::Attest(of)
            | Action::Status(of)
            | Action::Hibernate(of)
            | Action::ClearTpm(of)
            | Action::KillHost(of)
            | Action::RemoveHost(of) => self.host(&of.host),
            Action::StartHost(of) => {
                self.host(&of.host);
                if let Some(point) = &of.crash_at {
                    let points: Vec<&str> = COMMIT_POINTS.iter().map(|(name, _)| *name).collect();
                    self.known("commit point", point, &points);
                }
            }
            Action::KeepAttesting(of) => self.hosts(&of.hosts),
            Action::Reboot(reboot) => self.host(&reboot.host),
            Action::StartVm(of)
            | Action::StopVm(of)
            | Action::TurnOffVm(of)
            | Action::SaveVm(of)
            | Action::DiscardSaved(of)
            | Action::ResetVm(of)
            | Action::Prove(of)
            | Action::ShowVm(of)
            | Action::TakeOver(of)
            | Action::RestoreProtector(of)
            | Action::Overload(of) => {
                self.vm(&of.vm);
                self.hosts(&of.host);
            }
            Action::Migrate(of) => {
                self.vm(&of.vm);
                self.hosts(&of.from);
                self.host(&of.to);
            }
            Action::Checkpoint(of) | Action::ApplyCheckpoint(of) => self.vm(&of.vm),
            Action::Look(of) => self.vm(&of.vm),
            Action::ChangeSecurity(of) => {
                self.vm(&of.vm);
                let given = [of.kind.is_some(), of.on.is_some(), of.off.is_some()];
                if given.iter().filter(|given| **given).count() != 1 {
                    self.say(&of.vm.span, "give exactly one of `kind`, `on` and `off`".to_owned());
                }
            }
            Action::ExportTo(of) | Action::Steal(of) => {
                self.vm(&of.vm);
                self.host(&of.to);
            }
            Action::BackUp(of) | Action::PutBack(of) | Action::KeepProtector(of) | Action::SetProtector(of) => {
                self.vm(&of.vm);
            }
            Action::Rekey(of) => {
                self.vm(&of.vm);
                self.services(&of.guardians);
            }
            other => self.step_of_hgs(other),
        }
    }

    fn step_of_hgs(&mut self, action: &Action) {
        match action {
            Action::RegisterHost(of) => {
                self.host(&of.host);
                self.services(&of.hgs);
            }
            Action::RegisterBaseline(of) | Action::RegisterCiPolicy(of) => {
                self.host(&of.host);
                self.services(&of.hgs);
            }
            Action::RemoveBaseline(of) | Action::RemoveCiPolicy(of) => self.services(&of.hgs),
            Action::RegisterDumpKey(of) => self.services(&of.hgs),
            Action::AdvanceClock(clock) => {
                for part in &clock.of {
                    self.clock(part);
                }
            }
            Action::SetPolicy(set) => self.services(&set.hgs),
            Action::SetMode(set) => self.services(&set.hgs),
            Action::RenewSigner(of) => self.services(&of.hgs),
            Action::RotateCertificates(of)
            | Action::DisableOldCertificates(of)
            | Action::EnableOldCertificates(of)
            | Action::RemoveOldCertificates(of)
            | Action::UntrustSigners(of)
            | Action::TrustSigners(of)
            | Action::DenyCertificates(of) => self.services(&of.hgs),
            Action::AllowOffline(of) => self.services(&of.hgs),
            Action::LosePrimary(of) => self.services(&of.hgs),
            Action::Administer(of) => self.services(&of.hgs),
            Action::KillService(of)
            | Action::StartService(of)
            | Action::RestartService(of)
            | Action::VerifyRecord(of) => self.services(&of.hgs),
            Action::Partition(of) => self.between(&of.hosts, &of.hgs),
            Action::Delay(of) => self.between(&of.hosts, &of.hgs),
            Action::Corrupt(of) => self.between(&of.hosts, &of.hgs),
            Action::Send(send) => self.services(&send.hgs),
            Action::Replay(of) => self.between([&of.host], &of.hgs),
            Action::Present(of) => {
                self.vm(&of.vm);
                self.between(&of.host, &of.hgs);
            }
            Action::Together(steps) => {
                for step in steps {
                    self.step(step);
                    // Whose record it is cannot be told apart for steps at once.
                    if let Some(events) = step.expect.as_ref().and_then(|expect| expect.events.as_ref()) {
                        let message = "expect events of the whole `together`, not of one of its steps";
                        self.say(&events.span, message.to_owned());
                    }
                }
            }
            _ => {}
        }
    }

    fn between<'n>(&mut self, hosts: impl IntoIterator<Item = &'n At<String>>, hgs: &Option<At<String>>) {
        self.hosts(hosts);
        self.services(hgs);
    }

    fn host(&mut self, name: &At<String>) {
        let known: Vec<&str> = self.scenario.host.iter().map(|host| host.name.as_str()).collect();
        self.known("host", name, &known);
    }

    fn hosts<'n>(&mut self, names: impl IntoIterator<Item = &'n At<String>>) {
        for name in names {
            self.host(name);
        }
    }

    fn vm(&mut self, name: &At<String>) {
        let known: Vec<&str> = self.scenario.vm.iter().map(|vm| vm.name.as_str()).collect();
        self.known("VM", name, &known);
    }

    fn hgs(&mut self, name: &At<String>) {
        let services = self.scenario.services();
        let known: Vec<&str> = services.iter().map(|hgs| hgs.name.as_str()).collect();
        self.known("HGS", name, &known);
    }

    fn services<'n>(&mut self, names: impl IntoIterator<Item = &'n At<String>>) {
        for name in names {
            self.hgs(name);
        }
    }

    fn known(&mut self, what: &str, name: &At<String>, known: &[&str]) {
        if !known.contains(&name.as_str()) {
            let known = match known.is_empty() {
                true => format!("the file names no {what}"),
                false => format!("there is {}", known.join(", ")),
            };
            self.say(&name.span, format!("there is no {what} {name:?}; {known}"));
        }
    }

    /// A host, `attestation`, `key-protection`, or one of those two behind the name of an HGS.
    fn clock(&mut self, part: &At<String>) {
        let service = |text: &str| matches!(text, "attestation" | "key-protection");
        let known = match part.split_once('/') {
            Some((hgs, name)) => service(name) && self.scenario.services().iter().any(|known| **known.name == *hgs),
            None => service(part) || self.scenario.host.iter().any(|host| *host.name == **part),
        };
        if !known {
            let message = "name a host, `attestation` or `key-protection`, or one of these two of another HGS as \
                           `NAME/attestation`";
            self.say(&part.span, format!("nothing here is called {part:?}: {message}"));
        }
    }
}
