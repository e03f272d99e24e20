//! Spoils a run on purpose, so that anybody can see the drill notice. Each is something that a fabric must not do
//! and that no kill makes it do.

use std::{fs, io::Write};

use anyhow::Context;
use serde_json::json;

use super::player::Player;
use crate::{
    ledger::{Event, Instant, Of},
    vm::state::Age,
};

/// What to spoil.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Sabotage {
    /// Set the VM's disk back to an older copy
    Disk,
    /// Set the VM's vTPM back to an older copy of its state
    Vtpm,
    /// Let the ledger of the host that does not own the VM tell that it runs there too
    Ledger,
}

impl Player {
    /// Spoils the field between two rounds. The VM runs before and after.
    pub async fn spoil(&mut self, what: Sabotage) -> anyhow::Result<()> {
        let owner = self.field().owner()?;
        match what {
            Sabotage::Ledger => {
                let field = self.field();
                let generation = field.current()?.generation.number();
                let of = Of::new(field.vm().id, Age::rolled(generation));
                let mut line = serde_json::to_value(Event::Started(of))?;
                line["at"] = json!(Instant::now());
                let mut ledger = fs::OpenOptions::new().append(true).open(field.ledger(owner.other()))?;
                Ok(writeln!(ledger, "{line}")?)
            }
            Sabotage::Disk | Sabotage::Vtpm => {
                let files = self.field().files()?;
                let path = |player: &mut Player| {
                    let current = player.field().current()?;
                    anyhow::Ok(match what {
                        Sabotage::Disk => files.disk_path(&current),
                        _ => files
                            .path()
                            .join("generations")
                            .join(String::from(current.generation))
                            .join("guest-state.bin"),
                    })
                };
                let older = fs::read(path(self)?)?;
                self.count().await?;
                self.field().cut_power(owner, None).await?;
                let newer = path(self)?;
                fs::write(&newer, older).with_context(|| format!("cannot write {}", newer.display()))?;
                self.run().await
            }
        }
    }
}
