//! The command line of vidcompatd, and the log that it asks for.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::devices::FbSource;
use crate::frontend::shim::LONGEST_PATH;
use crate::resolve::Rule;

/// Where the shim asks, unless it is told otherwise.
pub(crate) const SHIM_SOCKET: &str = "/run/vidcompat/shim.sock";

/// Serves V4L2 nodes to programs that use USERPTR, and framebuffers.
#[derive(Clone, Debug, Parser)]
#[command(name = "vidcompatd", version, about)]
#[command(group(clap::ArgGroup::new("what").args(["devices", "framebuffers", "config", "check_config", "give_back", "confine_list"]).required(true).multiple(true)))]
pub struct Options {
    /// A real V4L2 node to put a side node beside: /dev/videoN gets /dev/video(64+N); vbiN, radioN, swradioN and
    /// v4l-touchN alike. May be given several times.
    #[arg(long = "device", value_name = "PATH")]
    pub devices: Vec<PathBuf>,

    /// A framebuffer to serve; may be given several times. A real one, /dev/fbN, gets a side node /dev/fb(64+N).
    /// `kms:/dev/dri/cardN` makes one on the first screen of a graphics card, and `memory:WIDTHxHEIGHTxBITS` one that is
    /// shown nowhere (see `vidcompat screenshot`): these are /dev/fbN with the first N that is free, and of a card that
    /// has a real /dev/fbN the side node of that. Options behind commas: `as=N`; for a card also
    /// `connector=NAME`, `size=WxH` and `depth=8|16|24|32` to begin with, `shadow` (programs never draw into memory that is shown), `keep` or `give-back`
    /// (the picture stays, or not, when the last program has gone; else it stays where no console would come back).
    #[arg(long = "fb", value_name = "WHAT")]
    pub framebuffers: Vec<FbSource>,

    /// Reads this file and the drop-ins `*.toml` of the folder with `.d` behind its name; of the file that is meant where
    /// FILE is not given also those of /usr/lib/vidcompat/vidcompat.toml.d. SIGHUP reads them again. Options override what
    /// they say; --device and --fb replace their lists. Without --config no file is read.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = crate::config::DEFAULT_PATH)]
    pub config: Option<PathBuf>,

    /// Says what would be served on this machine, and which line of which file says so, or what is wrong (exit status 1),
    /// and serves nothing. Without --config the default file is looked at.
    #[arg(long, conflicts_with = "give_back")]
    pub check_config: bool,

    /// Gives real nodes their names back that a vidcompatd which is no more has taken over, and ends.
    #[arg(long)]
    pub give_back: bool,

    /// Most memory that one client may make vidcompatd hold for its buffers; beyond it the client gets ENOMEM. 512M unless
    /// given.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_per_client: Option<u64>,

    /// Most memory for the buffers of all clients; a quarter of the machine's unless given.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_total: Option<u64>,

    /// Allows or forbids the import of an exporter's dma-bufs into a kind of queue, e.g. `virtio_gpu:vmalloc=forbid`:
    /// EXPORTER:QUEUE=allow or =forbid, where QUEUE is vmalloc, contiguous, scattered, unknown or *, and EXPORTER is
    /// the exp_name of a dma-buf's fdinfo, `memfd`, or *. May be given several times; the last rule that fits counts.
    /// What is not imported is copied.
    #[arg(long = "import", value_name = "RULE")]
    pub imports: Vec<Rule>,

    /// Where `vidcompat status` asks: a unix socket for root, or `none`; /run/vidcompat/control.sock unless given. Where
    /// another vidcompatd has it already, this one goes on without.
    #[arg(long, value_name = "PATH", value_parser = parse_socket)]
    pub control: Option<PathBuf>,

    /// Where metrics can be read: a unix socket for root and the group video that answers HTTP, or `none`. `vidcompat
    /// metrics` and `curl --unix-socket` read it. Where another vidcompatd has it already, this one goes on without.
    #[arg(long, value_name = "PATH", default_value = crate::observe::scrape::METRICS)]
    pub metrics: PathBuf,

    /// Where the client shim asks for what CUSE cannot carry: a unix socket for everybody who can open one of our nodes,
    /// or `none`; /run/vidcompat/shim.sock unless given. Where another vidcompatd has it already, this one goes on without,
    /// and programs with the shim are served as those without.
    #[arg(long, value_name = "PATH", value_parser = parse_socket)]
    pub shim_socket: Option<PathBuf>,

    /// Lets page-aligned USERPTR buffers of programs with the shim become the device's own buffers, so that nothing is
    /// copied. They may unless given.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub adopt: Option<bool>,

    /// Stays as a small parent of the daemon that keeps its files: when the daemon is killed it starts again at once, and
    /// on Linux 6.9 and later its clients go on. Of no use under systemd, whose fd store does the same.
    #[arg(long)]
    pub keep: bool,

    /// A call that takes a sixth of this is told in the log. One that takes this long by a fault of vidcompatd itself ends its
    /// node, so that no program hangs, and vidcompatd, where something starts it again.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(6..))]
    pub stuck_after: u64,

    /// Gives up what root may and vidcompatd need not: capabilities and system calls that are in no table of
    /// `--confine-list`. `log` takes nothing away and tells what would be.
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub confine: crate::confine::Mode,

    /// Prints what vidcompatd may do when it is confined, with reasons, and ends.
    #[arg(long, exclusive = true)]
    pub confine_list: bool,

    /// How log lines look. What is logged is chosen by the environment variable VIDCOMPAT_LOG (tracing's filter
    /// syntax, e.g. `debug`).
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A size in bytes, with K, M or G for the binary multiples.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(digits) => (digits, 20),
            None => match text.strip_suffix(['G', 'g']) {
                Some(digits) => (digits, 30),
                None => (text, 0),
            },
        },
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is no size such as 1048576, 256M or 2G"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("`{text}` is too large"))
}

/// A path that clients with any working directory can connect to, or `none`.
pub(crate) fn parse_socket(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if text == "none" {
        Ok(path)
    } else if !path.is_absolute() {
        Err("programs have other working directories: the path must begin with `/`".to_owned())
    } else if text.len() > LONGEST_PATH {
        Err(format!(
            "a socket's path has {LONGEST_PATH} bytes at most, and this has {}",
            text.len()
        ))
    } else {
        Ok(path)
    }
}

impl Options {
    /// Where the metrics socket is to be, if there is to be one.
    #[must_use]
    pub fn metrics(&self) -> Option<&Path> {
        Some(&*self.metrics).filter(|path| *path != Path::new("none"))
    }
}

/// Sends the log to the journal where stderr is the journal (systemd says so by JOURNAL_STREAM), each field of ours as a
/// field of its own: `VIDCOMPAT_DEVICE`, `VIDCOMPAT_CLIENT_PID` and so on. Else to stderr, as `format` says.
pub fn init_log(format: LogFormat) {
    let filter =
        EnvFilter::try_from_env("VIDCOMPAT_LOG").unwrap_or_else(|_| EnvFilter::new("info,dma_heap=warn"));
    if format == LogFormat::Text
        && is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref())
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal
            .with_field_prefix(Some("VIDCOMPAT".to_owned()))
            .with_syslog_identifier("vidcompatd".to_owned())
            // As sd-daemon(3) has them; tracing-journald's own are one higher.
            .with_priority_mappings(PriorityMappings {
                info: Priority::Informational,
                debug: Priority::Debug,
                ..PriorityMappings::new()
            });
        return tracing_subscriber::registry().with(filter).with(journal).init();
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.without_time().init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Is stderr what systemd has connected to the journal? It may have been turned elsewhere since (systemd.exec(5)).
fn is_journal(stream: Option<&str>) -> bool {
    let Some((device, inode)) = stream.and_then(|stream| stream.split_once(':')) else {
        return false;
    };
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stderr| device.parse() == Ok(stderr.st_dev) && inode.parse() == Ok(stderr.st_ino))
}

#[cfg(test)]
mod tests {
    use super::{Options, is_journal, parse_size};
    use crate::confine::Mode;
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_definition_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn sizes_have_binary_multiples_and_nonsense_is_refused() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        for nonsense in ["", "M", "-1", "1.5G", "99999999999G"] {
            assert!(parse_size(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn only_stderr_itself_is_the_journal() {
        use std::os::unix::fs::MetadataExt;
        let stderr = std::fs::metadata("/proc/self/fd/2").expect("a stderr");
        assert!(is_journal(Some(&format!("{}:{}", stderr.dev(), stderr.ino()))));
        assert!(!is_journal(Some(&format!(
            "{}:{}",
            stderr.dev(),
            stderr.ino() + 1
        ))));
        assert!(!is_journal(None) && !is_journal(Some("x")) && !is_journal(Some("1:")));
    }

    #[test]
    fn import_rules_are_read_in_their_order_and_nonsense_is_refused_with_the_reason() {
        let parse = |rules: &[&str]| {
            let rules = rules.iter().flat_map(|rule| ["--import", rule]);
            Options::try_parse_from(["vidcompatd", "--device", "/dev/video0"].into_iter().chain(rules))
        };
        let options = parse(&["system:*=forbid", "system:vmalloc=allow"]).expect("two rules");
        let rules = ["system:*=forbid", "system:vmalloc=allow"].map(|rule| rule.parse().expect("a rule"));
        assert_eq!(options.imports, rules);
        for (rule, reason) in [
            ("system", "no rule such as"),
            ("system:cma=allow", "none of vmalloc"),
            ("drm:vmalloc=allow", "kernel bug"),
        ] {
            let error = parse(&[rule]).expect_err(rule).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn it_is_confined_unless_told_otherwise_and_the_list_needs_no_device() {
        let confine = |more: &[&str]| {
            let args = ["vidcompatd", "--device", "/dev/video0"].iter().chain(more);
            Options::try_parse_from(args).map(|options| options.confine)
        };
        assert_eq!(confine(&[]).expect("options"), Mode::Enforce);
        assert_eq!(confine(&["--confine=log"]).expect("options"), Mode::Log);
        assert_eq!(confine(&["--confine", "off"]).expect("options"), Mode::Off);
        assert!(confine(&["--confine=no"]).is_err());
        let list = Options::try_parse_from(["vidcompatd", "--confine-list"]).expect("options");
        assert!(list.confine_list);
    }

    #[test]
    fn a_device_or_a_framebuffer_is_required() {
        assert!(Options::try_parse_from(["vidcompatd"]).is_err());
        let both = [
            "vidcompatd",
            "--fb",
            "/dev/fb0",
            "--fb",
            "memory:8x8x8",
            "--device",
            "/dev/video0",
        ];
        let options = Options::try_parse_from(both).expect("options");
        assert_eq!((options.devices.len(), options.framebuffers.len()), (1, 2));
        assert!(Options::try_parse_from(["vidcompatd", "--fb", "memory:8x8x8"]).is_ok());
        assert!(Options::try_parse_from(["vidcompatd", "--device", "/dev/video0"]).is_ok());
    }
}
