//! The daemon's process: options, log, exit status.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use vidcompatd::cli::{self, Options};
use vidcompatd::{confine, keeper, service};

fn main() -> ExitCode {
    let options = Options::parse();
    if options.confine_list {
        // Who reads it may have seen enough.
        let written = std::io::stdout().write_all(confine::list().as_bytes());
        return written.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    cli::init_log(options.log_format);
    if options.keep {
        return keeper::run();
    }
    confine::confine(options.confine);
    let outcome = match options.check_config {
        true => service::check(&options).map(|page| print!("{page}")),
        false => service::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vidcompatd: {error}");
            ExitCode::FAILURE
        }
    }
}
