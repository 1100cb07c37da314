//! Writes the man pages and the completions of both commands into a folder: `cargo run --example manuals FOLDER`.
//!
//! What the command line takes is told once, in its definition. `systemd/man` has what else there is to say: sections that go
//! behind the generated ones (`vidcompatd.8.more`), and pages that are prose throughout.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use vidcompatd::cli::Options;
use vidcompatd::observe::command::Command;

/// Where the prose is.
const PROSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/man");

fn main() -> io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(io::Error::other("which folder?"));
    };
    fs::create_dir_all(&folder)?;
    page(&folder, Options::command(), "8")?;
    let command = Command::command().disable_help_subcommand(true);
    for what in command.get_subcommands() {
        let name: &'static str = format!("vidcompat-{}", what.get_name()).leak();
        // As it is typed.
        let typed = format!("vidcompat {}", what.get_name());
        let what = what.clone().name(name).display_name(name).bin_name(typed);
        page(&folder, what.version(env!("CARGO_PKG_VERSION")), "1")?;
    }
    page(&folder, command, "1")?;
    for (name, mut definition) in [
        ("vidcompatd", Options::command()),
        ("vidcompat", Command::command()),
    ] {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut definition, name, &folder)?;
        }
    }
    Ok(())
}

/// One page, `NAME.SECTION`, with the sections of its own that `systemd/man/NAME.SECTION.more` has.
fn page(folder: &Path, definition: clap::Command, section: &str) -> io::Result<()> {
    let name = definition.get_name().to_owned();
    let man = Man::new(definition)
        .title(name.to_uppercase())
        .section(section)
        .source(concat!("vidcompat ", env!("CARGO_PKG_VERSION")))
        .manual(if section == "8" {
            "System Administration"
        } else {
            "User Commands"
        });
    let mut text = Vec::new();
    man.render(&mut text)?;
    match fs::read(Path::new(PROSE).join(format!("{name}.{section}.more"))) {
        Ok(more) => text.extend(more),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::write(folder.join(format!("{name}.{section}")), text)
}
