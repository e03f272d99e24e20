//! The published schema of scenario files, made from the types that read them.

use schemars::schema_for;

use super::model::Scenario;

/// JSON Schema (2020-12) of a scenario file, read as JSON; the text ends with a newline.
pub fn text() -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(&schema_for!(Scenario))? + "\n")
}
