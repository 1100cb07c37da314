//! The command for people: what vidcompatd does, and why; and programs run on its nodes.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use vidcompatd::observe::command::{Command, run};

fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            // Who reads us may be gone.
            let _ = error.print();
            // The exit status of a program may be 2: `run` has 125 for itself, as env(1) has.
            let is_run = std::env::args_os().nth(1).is_some_and(|first| first == "run");
            return match error.exit_code() {
                0 => ExitCode::SUCCESS,
                _ if is_run => ExitCode::from(125),
                _ => ExitCode::from(2),
            };
        }
    };
    match run(&command) {
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
