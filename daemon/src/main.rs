//! The daemon's process: options, log, exit status.

use std::process::ExitCode;

use clap::Parser;
use vidcompatd::cli::{self, Options};
use vidcompatd::service;

fn main() -> ExitCode {
    let options = Options::parse();
    cli::init_log(options.log_format);
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
