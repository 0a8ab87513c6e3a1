//! What documents a tool's command line: man pages, and completions for shells.

use std::{
    env, fs,
    io::{self, Write as _},
    path::Path,
    process,
};

use clap::Command;
use clap_complete::Shell;

/// Writes pages and completions where `UNDERPASS_PAGES` names a directory, and ends the program.
pub(crate) fn write_if_asked(cli: &Command) {
    let Some(directory) = env::var_os("UNDERPASS_PAGES") else { return };
    process::exit(match write(cli.clone(), Path::new(&directory)) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "cannot write {}: {error}", directory.display());
            1
        }
    });
}

/// Each where a system looks for it below `/usr/share`.
fn write(mut cli: Command, share: &Path) -> io::Result<()> {
    let name = cli.get_name().to_owned();
    for (shell, place) in [
        (Shell::Bash, "bash-completion/completions"),
        (Shell::Fish, "fish/vendor_completions.d"),
        (Shell::Zsh, "zsh/site-functions"),
    ] {
        fs::create_dir_all(share.join(place))?;
        clap_complete::generate_to(shell, &mut cli, &name, share.join(place))?;
    }
    let manual = share.join("man/man1");
    fs::create_dir_all(&manual)?;
    // A subcommand's page is TOOL-SUBCOMMAND(1).
    clap_mangen::generate_to(cli.disable_help_subcommand(true), manual)
}
