//! The daemon's process: options, log, exit status.

use std::process::ExitCode;

use clap::Parser;
use vidcompatd::cli::{self, Options};
use vidcompatd::{keeper, service};

fn main() -> ExitCode {
    let options = Options::parse();
    cli::init_log(options.log_format);
    if options.keep {
        return keeper::run();
    }
    match service::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vidcompatd: {error}");
            ExitCode::FAILURE
        }
    }
}
