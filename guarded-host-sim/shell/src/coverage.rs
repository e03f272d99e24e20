//! What the shell carries out of each cmdlet, parameter by parameter. Made from the implementations
//! themselves: what none is bound to is not built.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    cmdlets::{Registry, State},
    table::{Cmdlet, Table},
};

/// One cmdlet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its module.
    pub module: String,
    /// Its name.
    pub cmdlet: String,
    /// Whether only guides name it, not the module reference.
    pub beyond_reference: bool,
    /// Whether an implementation is bound to it.
    pub state: State,
    /// Its own parameters.
    pub parameters: Vec<Cell>,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cell {
    /// Its name.
    pub parameter: String,
    /// What becomes of it.
    #[serde(flatten)]
    pub state: State,
    /// Whether only guides name it, not the module reference.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub beyond_reference: bool,
}

/// The whole table, in the order of the modules, and the parameters that cmdlets share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Coverage {
    /// Cmdlet by cmdlet.
    pub cmdlets: Vec<Row>,
    /// Parameters that all cmdlets of a kind share.
    pub shared: Vec<Cell>,
}

/// Makes the table.
pub fn coverage(table: &Table, registry: &Registry) -> Coverage {
    let mut shared: Vec<Cell> = Vec::new();
    for parameter in table.cmdlets().iter().flat_map(|c| &c.parameters).filter(|p| p.common) {
        if !shared.iter().any(|cell| cell.parameter == parameter.name) {
            shared.push(Cell {
                parameter: parameter.name.clone(),
                state: registry.shared(&parameter.name),
                beyond_reference: false,
            });
        }
    }
    Coverage {
        cmdlets: table.cmdlets().iter().map(|cmdlet| row(cmdlet, registry)).collect(),
        shared,
    }
}

fn row(cmdlet: &Cmdlet, registry: &Registry) -> Row {
    let own = cmdlet.parameters.iter().filter(|parameter| !parameter.common);
    Row {
        module: cmdlet.module.clone(),
        cmdlet: cmdlet.name.clone(),
        beyond_reference: cmdlet.beyond,
        state: registry.cmdlet(&cmdlet.name),
        parameters: own
            .map(|parameter| Cell {
                parameter: parameter.name.clone(),
                state: registry.parameter(&cmdlet.name, &parameter.name),
                beyond_reference: parameter.beyond || cmdlet.beyond,
            })
            .collect(),
    }
}

impl Coverage {
    /// For people: module by module, then sums.
    pub fn report(&self) -> String {
        let mut text = String::new();
        let mut module = "";
        for row in &self.cmdlets {
            if row.module != module {
                module = &row.module;
                let _ = writeln!(text, "{}{module}", if text.is_empty() { "" } else { "\n" });
            }
            let mark = if row.beyond_reference { " +" } else { "" };
            let _ = writeln!(text, "  {}{mark}: {}", row.cmdlet, row.state);
            if row.state == State::NotBuilt {
                continue;
            }
            for cell in &row.parameters {
                let mark = if cell.beyond_reference && !row.beyond_reference {
                    " +"
                } else {
                    ""
                };
                let _ = writeln!(text, "    -{}{mark}: {}", cell.parameter, cell.state);
            }
        }
        let _ = writeln!(text, "\nShared parameters");
        for cell in &self.shared {
            let _ = writeln!(text, "  -{}: {}", cell.parameter, cell.state);
        }
        let cells = || self.cmdlets.iter().flat_map(|row| &row.parameters);
        let count = |wanted: fn(&State) -> bool| cells().filter(|cell| wanted(&cell.state)).count();
        let _ = writeln!(
            text,
            "\n{} cmdlets, {} built; {} parameters: {} implemented, {} without effect, {} rejected, {} not built yet.\n\
             + stands in guides, not in the module reference.",
            self.cmdlets.len(),
            self.cmdlets.iter().filter(|row| row.state != State::NotBuilt).count(),
            cells().count(),
            count(|state| *state == State::Implemented),
            count(|state| matches!(state, State::WithoutEffect { .. })),
            count(|state| matches!(state, State::Rejected { .. })),
            count(|state| *state == State::NotBuilt),
        );
        text
    }
}
