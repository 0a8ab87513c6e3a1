//! Whether the maps are of the form that this program knows.

use anyhow::{Result, ensure};
use bpf_lb_abi::{Config, LAYOUT};

use crate::{maps::mapped, pins::Pins};

/// Refuses maps that another version made in another form.
///
/// # Errors
/// Also when there are none, of which [`crate::maps::are_missing`] can tell.
pub fn check(pins: &Pins) -> Result<()> {
    let found = match mapped::<Config>(&pins.maps(), "config") {
        Ok(config) => config.get(0).map(|config| config.layout.load()),
        Err(error) if error.is_of_another_form() => None,
        Err(error) => return Err(pins.explain(error)),
    };
    ensure!(
        found == Some(LAYOUT),
        "the pinned maps have layout {}, this bpf-lb-load knows {LAYOUT}: run unload, load and apply; connections that are \
         open go on, new ones take the host path in between",
        found.map_or_else(|| "of an unknown kind".into(), |layout| layout.to_string())
    );
    Ok(())
}
