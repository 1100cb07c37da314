//! The daemon's process: options, log, exit status.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use vidcompatd::cli::{self, Options};
use vidcompatd::service::ServiceError;
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
        let code = keeper::run();
        // The last daemon has left everything as it was, for one that does not come.
        let _ = service::give_back();
        return code;
    }
    if options.give_back {
        return service::give_back();
    }
    let outcome = if options.check_config {
        // Who reads it may have seen enough.
        service::check(&options).map(|page| drop(std::io::stdout().write_all(page.as_bytes())))
    } else {
        confine::confine(options.confine);
        service::run(&options)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vidcompatd: {error}");
            match error {
                // EX_CONFIG of sysexits(3): it does not become right by trying again, which the unit knows.
                ServiceError::Config(_) => ExitCode::from(78),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
