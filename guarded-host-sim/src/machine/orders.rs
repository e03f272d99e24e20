//! What the lab and the host's administrator order of a running machine, one after another.

use std::{sync::mpsc, time::Duration};

use anyhow::{bail, ensure};

use super::{
    Machine, boot,
    control::{Control, ControlReply, Order, Place},
    dials::Dials,
    settings::Changes,
    template,
    user::place,
};

/// Whether the machine goes on after an order.
enum After {
    GoesOn,
    Ends,
}

impl Machine {
    /// Boots, says that the host is up, then watches its parts and obeys the lab.
    pub(super) fn live(&mut self, orders: &mpsc::Receiver<Order>) -> anyhow::Result<()> {
        self.turn(self.settings.next_dials()?)?;
        self.boot()?;
        println!("ready {} agent={}", self.name, self.address().unwrap_or_default());
        loop {
            match orders.recv_timeout(WATCH) {
                Ok((order, place)) => match self.obey(order, place)? {
                    After::GoesOn => {}
                    After::Ends => return Ok(()),
                },
                Err(mpsc::RecvTimeoutError::Timeout) => self.watch()?,
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the control socket of {} is gone", self.name),
            }
        }
    }

    fn obey(&mut self, order: Control, place: Place) -> anyhow::Result<After> {
        let reply = match order {
            Control::Status => self.reply("up"),
            Control::Set { dials } => match self.set(&dials) {
                Ok(()) => self.reply(TAKES_EFFECT),
                Err(error) => self.refusal(&format!("not set: {error:#}")),
            },
            Control::ClearTpm => {
                self.settings.next.clear_tpm = true;
                match self.settings.save(&self.dir) {
                    Ok(()) => self.reply(CLEARED_AT_BOOT),
                    Err(error) => self.refusal(&format!("{error:#}")),
                }
            }
            Control::Reboot { dials } => {
                let dials = dials.map_or_else(|| self.settings.next_dials(), |dials| Ok(*dials));
                if let Err(error) = dials.and_then(|dials| self.turn(dials)) {
                    place.answer(&self.refusal(&format!("not rebooted: {error:#}")));
                    return Ok(After::GoesOn);
                }
                return self.or_end(place, "rebooted", Machine::boot);
            }
            Control::Hibernate => match self.can_hibernate() {
                Ok(()) => return self.or_end(place, "resumed from hibernation", Machine::hibernate),
                Err(error) => self.refusal(&format!("not hibernated: {error:#}")),
            },
            Control::FailTpm => {
                self.tpm_failed = true;
                self.tpm.lock().kill()?;
                self.remarks.push(format!(
                    "the TPM of {} has failed; the host goes on without it until it is rebooted",
                    self.name
                ));
                self.reply("the TPM has failed")
            }
            Control::Stop => {
                self.power_off()?;
                // The state is durable without it; this tells the TPM that the end is orderly.
                let mut tpm = self.tpm.lock();
                if tpm.is_running() {
                    tpm.channel().call(&hgs_protocol::tpm::command::shutdown_clear())?;
                }
                drop(tpm);
                place.answer(&self.reply("stopped"));
                return Ok(After::Ends);
            }
        };
        place.answer(&reply);
        Ok(After::GoesOn)
    }

    /// Does what leaves no machine when it fails, and answers either way.
    fn or_end(
        &mut self,
        place: Place,
        done: &str,
        act: impl FnOnce(&mut Machine) -> anyhow::Result<()>,
    ) -> anyhow::Result<After> {
        if let Err(error) = act(self) {
            place.answer(&self.refusal(&format!("{error:#}")));
            return Err(error);
        }
        place.answer(&self.reply(done));
        Ok(After::GoesOn)
    }

    /// Takes dials for the boot that comes now.
    fn turn(&mut self, dials: Dials) -> anyhow::Result<()> {
        dials.ek_certificate.needs(self.maker.as_deref())?;
        (self.template, self.settings.dials) = (template(&dials)?, dials);
        Ok(())
    }

    /// Keeps changes of the dials for the next boot.
    fn set(&mut self, changes: &Changes) -> anyhow::Result<()> {
        let mut settings = self.settings.clone();
        settings.turn(changes)?;
        let dials = settings.next_dials()?;
        dials.ek_certificate.needs(self.maker.as_deref())?;
        template(&dials)?;
        settings.save(&self.dir)?;
        self.settings = settings;
        Ok(())
    }

    fn can_hibernate(&mut self) -> anyhow::Result<()> {
        ensure!(
            !self.settings.dials.hibernation_disabled,
            "hibernation is off on {}; turn the dial hibernation_disabled off and reboot first",
            self.name
        );
        ensure!(
            self.settings.dials.template.is_none(),
            "{} has the shape of another machine's log, which does not tell how that machine resumes",
            self.name
        );
        ensure!(
            self.tpm.lock().is_running(),
            "the TPM of {} has failed; reboot the host",
            self.name
        );
        Ok(())
    }

    /// The host's memory image is its processes, which stand still while the machine is off. The store keeps its way to
    /// the TPM, since it is the same store; the agent gets a new one, since who else runs as its user is not known.
    fn hibernate(&mut self) -> anyhow::Result<()> {
        let Some(running) = &self.running else {
            bail!("{} does not run", self.name);
        };
        self.agent_gate.shut();
        running.agent.pause()?;
        if let Some(store) = &running.store {
            store.pause()?;
        }
        let log = boot::resume(&self.tpm, &self.settings.dials, self.boots)?;
        place(&self.dir.join("agent").join("boot.log"), &log)?;
        self.agent_gate.open();
        if let Some(store) = &running.store {
            store.go_on()?;
        }
        running.agent.go_on()?;
        let remark = format!(
            "{} has resumed from hibernation; its log tells nothing of the system that runs",
            self.name
        );
        if !self.remarks.contains(&remark) {
            eprintln!("{}: {remark}", self.name);
            self.remarks.push(remark);
        }
        Ok(())
    }

    fn refusal(&self, message: &str) -> ControlReply {
        ControlReply {
            ok: false,
            ..self.reply(message)
        }
    }
}

/// What an administrator hears who has turned a dial.
pub(super) const TAKES_EFFECT: &str = "set; it takes effect at the next boot";
/// What an administrator hears who has the TPM cleared.
pub(super) const CLEARED_AT_BOOT: &str = "the TPM is cleared at the next boot";
const WATCH: Duration = Duration::from_millis(50);
