//! Whether the maps are of the form that this program knows.

use anyhow::{Result, ensure};
use bpf_lb_abi::{Config, LAYOUT};

use crate::{maps::mapped, pins::Pins, sys::Mapped};

/// Refuses maps that another version made in another form.
pub fn check(pins: &Pins) -> Result<()> {
    let config: Result<Mapped<Config>, _> = mapped(&pins.maps(), "config");
    let found = config.as_ref().ok().and_then(|config| config.get(0)).map(|config| config.layout.load());
    ensure!(
        found == Some(LAYOUT),
        "the pinned maps have layout {}, this bpf-lb-load knows {LAYOUT}: run unload, load and apply; connections that are \
         open go on, new ones take the host path in between",
        found.map_or_else(|| "of an unknown kind".into(), |layout| layout.to_string())
    );
    Ok(())
}
