//! The `vidcompat` command: what can be asked, and its exit status.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use super::explain::{Question, explain};
use super::page::printable;
use super::scrape::{METRICS, scrape};
use super::screenshot::{ScreenshotOptions, screenshot};
use super::watch::watch;
use super::{CONTROL, ask, bug_report, doctor, show, show_explain};
use crate::cli::parse_size;
use crate::resolve::{Access, Importer, Policy, Rule};
use crate::run::{self, RunOptions};

/// Shows what vidcompatd does.
#[derive(Clone, Debug, Parser)]
#[command(name = "vidcompat", version, about)]
pub struct Command {
    /// What is asked.
    #[command(subcommand)]
    pub what: What,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// Shows the devices, open files, queues and buffers of a running vidcompatd, how each buffer is served, and how fast
    /// and how late frames come. Exit status: 1 if no vidcompatd answers.
    ///
    /// The columns of the table: the buffers of a queue by how they are served; frames in a second; bytes copied in a second;
    /// and how long clients waited for a frame that was there, half of them and 99 of 100. That time begins when both the
    /// frame (by the device's timestamp, where it is one of CLOCK_MONOTONIC and of the frame's end, else by the moment when
    /// the daemon was told) and the client's DQBUF were there, and ends when DQBUF is answered. It is a class's upper bound.
    ///
    /// imported: the device has the client's own memory. adopted: the same, where the client shim has exchanged it. lent: the
    /// client has mapped the device's own buffers by the client shim. dmabuf: the client brought dma-bufs itself. copied: the
    /// bytes are copied once.
    Status(StatusOptions),
    /// Looks whether a legacy program, one that insists on USERPTR, would work on every video device and framebuffer here,
    /// and says what is to be done where it would not: one line each, `ok`, `warning` or `problem`. Exit status: 0 if
    /// there is no problem, 1 if there is one.
    ///
    /// It needs no daemon and no privilege, but says what it could not see. Devices are opened, and asked what memory they
    /// take by REQBUFS for no buffers; one that is in use is left alone.
    Doctor(DoctorOptions),
    /// Prints a running vidcompatd's metrics as OpenMetrics text, e.g. for node-exporter's textfile collector: frames by how
    /// they were served, bytes copied, latency, open files, restarts. Exit status: 1 if no vidcompatd answers.
    ///
    /// The same can be read by `curl --unix-socket /run/vidcompat/metrics.sock http://localhost/metrics`, by root and
    /// members of the group video.
    Metrics(MetricsOptions),
    /// Writes one text that a bug report should have: versions, what doctor and status say, the configuration, the last lines
    /// of vidcompatd's log and of the kernel's about video, modules, and what each video device says of itself.
    ///
    /// Of persons it has the names of processes and what is written in the configuration; no host name, no users, no serial
    /// numbers. It works without vidcompatd; as root it sees more.
    BugReport(BugReportOptions),
    /// Shows what stands behind a stretch of a process's memory, whether the kernel itself would take it as USERPTR,
    /// and what vidcompatd would do with it. Exit status: 0 if it would be served, 1 if it would be EFAULT, 2 if it
    /// could not be looked at.
    Explain(ExplainOptions),
    /// Writes what is to be seen on a framebuffer that vidcompatd serves as a PNG file: of a real one, of one on a graphics
    /// card, whether or not it is shown at the moment, and of one that is shown nowhere. Exit status: 1 if there is none.
    Screenshot(ScreenshotOptions),
    /// Runs a program with our nodes in the place of the real ones, for this program only, and with the client shim, which
    /// brings MMAP, EXPBUF, mapped framebuffers and USERPTR without a copy. Options of this command stand before the program.
    ///
    /// The command becomes the program: signals and exit status are the program's own. Exit status otherwise: 125 if this
    /// command fails, 126 if the program cannot be run, 127 if there is none.
    Run(RunOptions),
}

/// Of `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusOptions {
    /// One JSON object instead of a page; with --watch one for each look, on a line of its own.
    #[arg(long)]
    pub json: bool,

    /// Looks once a second until it is interrupted, and shows what came since the look before. A daemon that is
    /// restarted meanwhile is waited for.
    #[arg(long)]
    pub watch: bool,

    /// The control socket of the vidcompatd that is asked.
    #[arg(long, value_name = "PATH", default_value = CONTROL)]
    pub control: PathBuf,
}

/// Of `doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorOptions {
    /// One JSON object instead of lines: `works`, and `findings` with `level`, `about`, `what` and `advice`.
    #[arg(long)]
    pub json: bool,

    /// The control socket of the vidcompatd that is asked, if one runs.
    #[arg(long, value_name = "PATH", default_value = CONTROL)]
    pub control: PathBuf,
}

/// Of `metrics`.
#[derive(Clone, Debug, Args)]
pub struct MetricsOptions {
    /// The metrics socket of the vidcompatd that is asked.
    #[arg(long, value_name = "PATH", default_value = METRICS)]
    pub metrics: PathBuf,
}

/// Of `bug-report`.
#[derive(Clone, Debug, Args)]
pub struct BugReportOptions {
    /// Where it is written, for nobody else to read; stdout without it. A file that exists is not touched.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// The control socket of the vidcompatd that is asked, if one runs.
    #[arg(long, value_name = "PATH", default_value = CONTROL)]
    pub control: PathBuf,
}

/// Of `explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainOptions {
    /// For a device that reads the memory (OUTPUT); without it, for one that fills it (CAPTURE).
    #[arg(long)]
    pub output: bool,

    /// The kind of queue that the memory would be given to.
    #[arg(long, value_enum, default_value_t = QueueKind::All)]
    pub queue: QueueKind,

    /// As --import of vidcompatd.
    #[arg(long = "import", value_name = "RULE")]
    pub imports: Vec<Rule>,

    /// One JSON object instead of a page.
    #[arg(long)]
    pub json: bool,

    /// The process.
    pub pid: u32,

    /// The first byte: a number, hexadecimal with 0x.
    #[arg(value_parser = parse_address)]
    pub address: u64,

    /// Bytes, with K, M or G for the binary multiples.
    #[arg(value_parser = parse_length)]
    pub length: u32,
}

/// Kinds of queue, as `resolve::Importer` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QueueKind {
    /// By the processor: vb2-vmalloc.
    Vmalloc,
    /// By DMA that wants one piece: vb2-dma-contig without IOMMU.
    Contiguous,
    /// By DMA that takes pieces: vb2-dma-sg, or with an IOMMU.
    Scattered,
    /// That which is not known.
    Unknown,
    /// Each of them.
    All,
}

impl QueueKind {
    fn importers(self) -> Vec<Importer> {
        match self {
            Self::Vmalloc => vec![Importer::Vmalloc],
            Self::Contiguous => vec![Importer::Contiguous],
            Self::Scattered => vec![Importer::Scattered],
            Self::Unknown => vec![Importer::Unknown],
            Self::All => vec![
                Importer::Vmalloc,
                Importer::Contiguous,
                Importer::Scattered,
                Importer::Unknown,
            ],
        }
    }
}

fn parse_address(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("`{text}` is no address such as 0x7f0c4a000000"))
}

fn parse_length(text: &str) -> Result<u32, String> {
    let length = parse_size(text)?;
    match u32::try_from(length) {
        Ok(0) => Err("no bytes are nowhere".to_owned()),
        Ok(length) => Ok(length),
        Err(_) => Err("a plane is shorter than 4G".to_owned()),
    }
}

/// What is printed, and what the shell is told.
pub type Outcome = Result<(String, ExitCode), (String, ExitCode)>;

/// Finds the answer; `Err` is a sentence for stderr.
///
/// # Errors
/// There is none.
pub fn run(command: &Command) -> Outcome {
    match &command.what {
        What::Status(options) => {
            if options.watch {
                return watch(options);
            }
            let answer = ask::status(&options.control);
            let status = answer.map_err(|error| (printable(&error.to_string()), ExitCode::FAILURE))?;
            let page = match options.json {
                true => json(&status)?,
                false => show::status(&status),
            };
            Ok((page, ExitCode::SUCCESS))
        }
        What::Metrics(options) => scrape(&options.metrics)
            .map(|text| (text, ExitCode::SUCCESS))
            .map_err(|error| (printable(&error.to_string()), ExitCode::FAILURE)),
        What::BugReport(options) => {
            let report = bug_report::report(options);
            let Some(path) = &options.output else {
                return Ok((report, ExitCode::SUCCESS));
            };
            bug_report::write(path, &report)
                .map(|()| (String::new(), ExitCode::SUCCESS))
                .map_err(|error| {
                    (
                        printable(&format!("{}: {error}", path.display())),
                        ExitCode::FAILURE,
                    )
                })
        }
        What::Doctor(options) => {
            let report = doctor::examine(&options.control);
            let page = match options.json {
                true => json(&report)?,
                false => report.page(),
            };
            Ok((page, ExitCode::from(u8::from(!report.works))))
        }
        What::Screenshot(options) => match screenshot(options) {
            Ok(()) => Ok((String::new(), ExitCode::SUCCESS)),
            Err(error) => Err((printable(&error.to_string()), ExitCode::FAILURE)),
        },
        What::Run(options) => match run::run(options) {
            Ok(never) => match never {},
            Err(error) => Err((printable(&error.to_string()), ExitCode::from(error.exit_code()))),
        },
        What::Explain(options) => {
            let question = Question {
                pid: options.pid,
                client_addr: options.address,
                length: options.length,
                access: if options.output {
                    Access::Read
                } else {
                    Access::Write
                },
                importers: options.queue.importers(),
                policy: Policy::new(options.imports.clone()),
            };
            let explanation = explain(&question).map_err(|error| (error.to_string(), ExitCode::from(2)))?;
            let page = match (options.json, question.access) {
                (true, _) => json(&explanation)?,
                (false, Access::Write) => show_explain::explanation(&explanation, "fills"),
                (false, Access::Read) => show_explain::explanation(&explanation, "reads"),
            };
            Ok((page, ExitCode::from(u8::from(!explanation.is_served()))))
        }
    }
}

fn json(value: &impl Serialize) -> Result<String, (String, ExitCode)> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n")
        .map_err(|error| (error.to_string(), ExitCode::FAILURE))
}

#[cfg(test)]
mod tests {
    use super::{Command, What, parse_address, parse_length};
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_definition_is_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn addresses_and_lengths_are_read_and_nonsense_is_refused() {
        assert_eq!(parse_address("0x7f0c4a000000"), Ok(0x7f0c_4a00_0000));
        assert_eq!(parse_address("4096"), Ok(4096));
        assert_eq!(parse_length("64K"), Ok(65536));
        for nonsense in ["", "0x", "7f0c", "-1", "0x10000000000000000"] {
            assert!(parse_address(nonsense).is_err(), "{nonsense}");
        }
        for nonsense in ["0", "4G", "0x1000", ""] {
            assert!(parse_length(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_screenshot_needs_a_file_and_a_framebuffer_only_where_there_are_several() {
        let parse = |words: &str| Command::try_parse_from(words.split(' '));
        let command = parse("vidcompat screenshot --fb /dev/fb0 -").expect("a command");
        let What::Screenshot(options) = command.what else {
            panic!("{command:?}");
        };
        assert_eq!(
            (options.fb.as_deref(), options.file.to_str()),
            (Some("/dev/fb0"), Some("-"))
        );
        assert!(parse("vidcompat screenshot x.png").is_ok() && parse("vidcompat screenshot").is_err());
    }

    #[test]
    fn explain_takes_its_three_numbers_and_what_changes_the_answer() {
        let args = "vidcompat explain --output --queue contiguous --import memfd:*=allow 12 0x1000 8K";
        let command = Command::try_parse_from(args.split(' ')).expect("a command");
        let What::Explain(options) = command.what else {
            panic!("{command:?}");
        };
        assert_eq!((options.pid, options.address, options.length), (12, 0x1000, 8192));
        assert!(options.output && options.imports.len() == 1 && options.queue.importers().len() == 1);
        assert!(Command::try_parse_from(["vidcompat", "explain", "12", "0x1000"]).is_err());
        assert!(Command::try_parse_from(["vidcompat"]).is_err());
    }
}
