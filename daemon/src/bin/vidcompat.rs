//! The command for people: what vidcompatd does, and why.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use vidcompatd::observe::command::{Command, run};

fn main() -> ExitCode {
    match run(&Command::parse()) {
        // Who reads us may have seen enough.
        Ok((page, status)) => io::stdout()
            .write_all(page.as_bytes())
            .map_or(ExitCode::FAILURE, |()| status),
        Err((reason, status)) => {
            eprintln!("vidcompat: {reason}");
            status
        }
    }
}
