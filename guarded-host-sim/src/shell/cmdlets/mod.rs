//! The product's cmdlets. Each module has a list of [`Implementation`]s, and [`MODULES`] joins them; nothing else has to
//! be told of a new one.

use hgs_shell::{
    cmdlets::{Implementation, Registry},
    error::{Category, ErrorRecord},
    world::World,
};

use super::lab::Lab;

/// All cmdlets: the language's own and the product's.
pub fn registry() -> Registry {
    MODULES.into_iter().fold(Registry::builtin(), Registry::with)
}

/// The fabric behind a call: `let world = call.world(); let lab = lab(&*world)?`.
///
/// # Errors
/// The shell runs without one.
pub fn lab(world: &dyn World) -> Result<&Lab, ErrorRecord> {
    world.as_any().downcast_ref().ok_or_else(|| {
        ErrorRecord::new(
            Category::ResourceUnavailable,
            "NoFabric",
            "This shell has no fabric. Start it with 'guarded-host-sim shell'.",
        )
    })
}

/// Module by module.
const MODULES: [&[Implementation]; 0] = [];
