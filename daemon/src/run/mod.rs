//! `vidcompat run`: a program with our nodes in the place of the real ones, and with the shim in it.
//!
//! The command becomes the program (`execve`): process id, signals, job control, exit status and how it dies are the
//! program's own. What fails before that is told in one sentence, with the exit status of env(1): 125 for us, 126 if the
//! program cannot be executed, 127 if there is none.
//!
//! # How our nodes come to the program
//!
//! 1. **A mount namespace**, for who may have one (root): ours is mounted over the real node. It serves every kind of
//!    program, and everything that the program starts.
//! 2. **Redirection by the shim** (client-shim/src/redirect.rs), for everybody else, where the shim can come into the
//!    program. It changes nothing about the program's rights. A static program that *this program starts* is not served.
//! 3. **A user namespace** with a mount namespace, where the shim cannot. It serves every kind of program too, but changes
//!    what one can do: set-user-ID programs have no effect in it (sudo, fusermount, a browser's sandbox helper, snap), other
//!    users and groups are nobody, and a file cannot be given to a supplementary group. That is why it comes last. What may
//!    be opened does not change: group `video` counts in the kernel, which keeps a process's groups, mapped or not.
//!
//! Where none of them can be had the program is not run: on the real node it would not be what was asked for.
//!
//! A framebuffer of ours that has the name itself, because there is no real one, needs nothing of this.
//!
//! With the shim, in either way, the program sees the real node's device number at our node (VIDCOMPAT_NODES), by which
//! sysfs, udev and the media controller know the device.

pub(crate) mod elf;
pub(crate) mod nodes;
pub(crate) mod place;
pub(crate) mod preload;
mod program;

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use nix::errno::Errno;

use self::nodes::{Nodes, Pair};
use self::place::PlaceError;
use self::program::{Hindrance, Program, ProgramError};
use crate::sys;

/// The shim reads the nodes here.
const NODES: &str = "VIDCOMPAT_NODES";
/// The shim adopts nothing where this is 0.
const ADOPT: &str = "VIDCOMPAT_ADOPT";
/// More nodes than these the shim does not remember.
const MOST_NODES: usize = 128;

/// Of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// Does not load the client shim: no MMAP, no EXPBUF and no mapped framebuffer, as for a program that opens our node itself.
    #[arg(long)]
    pub no_shim: bool,

    /// Leaves the program's own USERPTR memory what it is: frames are copied into it.
    #[arg(long)]
    pub no_adopt: bool,

    /// Does not tell what the program will have to do without.
    #[arg(short, long)]
    pub quiet: bool,

    /// How our nodes come in the place of the real ones.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = How::Auto)]
    pub nodes: How,

    /// The client shim, where it is not beside this command; `$LIB` in it stands for the folder of the program's kind, e.g.
    /// `lib/x86_64-linux-gnu`. The environment variable VIDCOMPAT_SHIM names it too.
    #[arg(long, value_name = "PATH")]
    pub shim: Option<PathBuf>,

    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM [ARGS]")]
    pub command: Vec<OsString>,
}

/// How our nodes come in the place of the real ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum How {
    /// The first that can be had: a mount namespace (root), the shim, a user namespace.
    Auto,
    /// Mounted over the real ones in a namespace of the program's own.
    Namespace,
    /// By the shim, which opens ours where the program opens a real one.
    Shim,
}

/// Why the program was not run. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No daemon, or none of its nodes.
    #[error(
        "there is no node of vidcompatd's here, so the program was not run; start vidcompatd as root, e.g. \
         `vidcompatd --device /dev/video0` or `vidcompatd --fb /dev/fb0`, or run the program without `vidcompat run` on the real node"
    )]
    NoNodes,
    /// None, or not to be run.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// No way to put the nodes there.
    #[error(
        "our nodes cannot take the place of the real ones for this program, so it was not run: {0}; as root it works, and \
         so does a program that is told to open {1}"
    )]
    NoPlace(String, String),
    /// As many as nobody has.
    #[error("{0} nodes are more than the shim remembers; as root they are put in place without it")]
    TooManyNodes(usize),
    /// A name or an argument with a zero byte.
    #[error("a zero byte in an argument or in the environment")]
    Zero,
    /// The kernel does not execute it.
    #[error("{} cannot be run ({source})", path.display())]
    Exec {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
}

impl RunError {
    /// As env(1) has them.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Program(ProgramError::Missing(_))
            | Self::Exec {
                source: Errno::ENOENT,
                ..
            } => 127,
            Self::Program(ProgramError::Refused { .. }) | Self::Exec { .. } => 126,
            Self::NoNodes | Self::NoPlace(..) | Self::TooManyNodes(_) | Self::Zero => 125,
        }
    }
}

/// Becomes the program.
///
/// # Errors
/// See [`RunError`]; otherwise it does not return.
pub fn run(options: &RunOptions) -> Result<Infallible, RunError> {
    let Nodes { pairs, in_place } = nodes::all();
    if pairs.is_empty() && in_place.is_empty() {
        return Err(RunError::NoNodes);
    }
    let name = options
        .command
        .first()
        .map(OsString::as_os_str)
        .unwrap_or_default();
    let program = Program::find(name, std::env::var_os("PATH").as_deref())?;
    let shim = Shim::of(options, &program);
    let mut notes = shim.notes.clone();
    // Before ours stand in their place.
    let denied = denied(&pairs);
    let way = put_in_place(options.nodes, &pairs, &program, &shim, &mut notes)?;
    notes.extend(denied);
    if !options.quiet && !notes.is_empty() {
        let line = format!("vidcompat: {}: {}\n", name.display(), notes.join("; "));
        // Whether or not anybody reads it, the program is run.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    let environment = environment(std::env::vars_os(), options, &shim, &pairs, way);
    execute(&program, &options.command, environment)
}

/// The shim, as far as this program is concerned.
#[derive(Clone, Debug, Default)]
struct Shim {
    /// For LD_PRELOAD.
    library: Option<PathBuf>,
    /// Will it be in the program?
    enters: bool,
    notes: Vec<String>,
}

/// What a program does without if the shim is not in it.
const WITHOUT: &str =
    "it has no MMAP and no EXPBUF, but USERPTR, DMABUF and read(), and it cannot map a framebuffer";

impl Shim {
    fn of(options: &RunOptions, program: &Program) -> Self {
        if options.no_shim {
            return Self::default();
        }
        let none = |why: String| Self {
            notes: vec![format!("{why}: {WITHOUT}")],
            ..Self::default()
        };
        let given = options
            .shim
            .clone()
            .or_else(|| std::env::var_os("VIDCOMPAT_SHIM").map(PathBuf::from));
        let ours = Program::find(OsStr::new("/proc/self/exe"), None)
            .ok()
            .and_then(|us| us.abi);
        let command = std::env::current_exe().unwrap_or_default();
        let Some(library) = preload::library(given.as_deref(), &command, program.abi, ours) else {
            return none("there is no libvidcompat.so beside this command (--shim names one)".to_owned());
        };
        if !preload::can_be_named(&library) {
            return none(format!(
                "LD_PRELOAD cannot name {}, for its blank or colon",
                library.display()
            ));
        }
        let mut shim = Self {
            library: Some(library.clone()),
            enters: program.hindrance.is_none(),
            notes: Vec::new(),
        };
        if let Some(hindrance) = &program.hindrance {
            // What it starts may have the shim all the same.
            shim.notes.push(format!(
                "it {}, so the shim cannot be loaded into it: {WITHOUT}",
                hindrance.text()
            ));
        } else if let Some(abi) = program.abi.filter(|abi| !preload::serves(&library, *abi)) {
            let bits = if abi.is_32_bit() { "32" } else { "64" };
            return none(format!("there is no {bits}-bit shim at {}", library.display()));
        }
        shim
    }
}

/// How the nodes were put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Namespace,
    Redirection,
}

fn put_in_place(
    how: How,
    pairs: &[Pair],
    program: &Program,
    shim: &Shim,
    notes: &mut Vec<String>,
) -> Result<Way, RunError> {
    let ours = pairs
        .first()
        .map(|pair| pair.ours.display().to_string())
        .unwrap_or_default();
    let no_place = |why: String| RunError::NoPlace(why, ours.clone());
    if pairs.iter().all(|pair| pair.real_number.is_none()) {
        return Ok(Way::Namespace);
    }
    let redirection = || match pairs.len() {
        ..=MOST_NODES => Ok(Way::Redirection),
        many => Err(RunError::TooManyNodes(many)),
    };
    if how == How::Shim {
        return match shim.enters {
            true => redirection(),
            false => Err(no_place("the shim cannot be loaded into it".to_owned())),
        };
    }
    let refused = match place::in_mount_namespace(pairs) {
        Ok(()) => return Ok(Way::Namespace),
        Err(error) => error,
    };
    if how == How::Auto && shim.enters {
        return redirection();
    }
    if nix::unistd::geteuid().is_root() {
        // It may have everything already, and is still refused: a user namespace would take the rest from it.
        return Err(no_place(refused.to_string()));
    }
    match place::in_user_namespace(pairs) {
        Ok(()) => {
            if let Some(Hindrance::Rights(what @ ("setuid" | "setgid"))) = &program.hindrance {
                // And so the dynamic linker does as LD_PRELOAD says.
                notes.clear();
                notes.push(format!(
                    "it is {what}, which has no effect in the user namespace that it runs in: it has your own rights only \
                     (run this command as root for both)"
                ));
            } else {
                notes.push("it runs in a user namespace, in which setuid programs have no effect".to_owned());
            }
            Ok(Way::Namespace)
        }
        Err(error @ PlaceError::Refused { .. }) if shim.library.is_none() => Err(no_place(error.to_string())),
        Err(error) => Err(no_place(format!(
            "{error}, and the shim cannot be loaded into it"
        ))),
    }
}

/// Of nodes that the user may not open although they may open the real ones: udev's access list lets who sits at the machine
/// at those.
fn denied(pairs: &[Pair]) -> Option<String> {
    let denied: Vec<String> = pairs
        .iter()
        .filter(|pair| place::may_open(&pair.real) && !place::may_open(&pair.ours))
        .map(|pair| pair.ours.display().to_string())
        .collect();
    (!denied.is_empty()).then(|| format!("you may not open {}", denied.join(" and ")))
}

/// The program's environment: ours, with what the shim needs.
fn environment(
    ours: impl Iterator<Item = (OsString, OsString)>,
    options: &RunOptions,
    shim: &Shim,
    pairs: &[Pair],
    way: Way,
) -> Vec<(OsString, OsString)> {
    let mut environment: Vec<(OsString, OsString)> = ours.collect();
    if options.no_adopt {
        set_in(&mut environment, ADOPT, "0".into());
    }
    let Some(library) = &shim.library else {
        return environment;
    };
    let nodes = nodes::for_the_shim(pairs);
    // In a `vidcompat run` of a `vidcompat run` the first knows them.
    if !nodes.is_empty() && (way == Way::Redirection || pairs.len() <= MOST_NODES) {
        set_in(&mut environment, NODES, nodes.into());
    }
    let there = environment.iter().find(|(name, _)| name == "LD_PRELOAD");
    let joined = preload::joined(library, there.map(|(_, value)| value.as_os_str()));
    set_in(&mut environment, "LD_PRELOAD", joined);
    environment
}

fn set_in(environment: &mut Vec<(OsString, OsString)>, name: &str, value: OsString) {
    match environment.iter_mut().find(|(there, _)| there == name) {
        Some((_, there)) => *there = value,
        None => environment.push((name.into(), value)),
    }
}

fn execute(
    program: &Program,
    command: &[OsString],
    environment: Vec<(OsString, OsString)>,
) -> Result<Infallible, RunError> {
    let c_string = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| RunError::Zero);
    let path = c_string(program.path.as_os_str())?;
    let mut arguments = Vec::with_capacity(command.len() + 1);
    for argument in command {
        arguments.push(c_string(argument)?);
    }
    let mut variables = Vec::with_capacity(environment.len());
    for (name, value) in environment {
        let mut variable = name.into_vec();
        variable.push(b'=');
        variable.extend(value.into_vec());
        variables.push(CString::new(variable).map_err(|_| RunError::Zero)?);
    }
    // Rust's start-up ignores it in every program.
    sys::default_sigpipe();
    let mut outcome = nix::unistd::execve(&path, &arguments, &variables);
    if outcome == Err(Errno::ENOEXEC) {
        // As `execvp` does: a script without a first line that says so.
        if let Some(first) = arguments.first_mut() {
            *first = path.clone();
        }
        arguments.insert(0, c"sh".to_owned());
        outcome = nix::unistd::execve(c"/bin/sh", &arguments, &variables);
    }
    outcome.map_err(|source| RunError::Exec {
        path: program.path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::nodes::{Number, Pair};
    use super::{How, RunError, RunOptions, Shim, Way, environment};
    use crate::observe::command::{Command, What};
    use crate::run::program::ProgramError;
    use clap::Parser;
    use nix::errno::Errno;
    use std::ffi::OsString;
    use std::io;

    fn options(words: &str) -> Result<RunOptions, clap::Error> {
        let command = Command::try_parse_from(["vidcompat", "run"].into_iter().chain(words.split(' ')))?;
        match command.what {
            What::Run(options) => Ok(options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_stand_before_the_program_and_what_follows_is_the_programs_own() {
        let run =
            options("--no-shim --no-adopt -q --nodes namespace yavta -u --no-shim -- -x").expect("options");
        assert!(run.no_shim && run.no_adopt && run.quiet && run.nodes == How::Namespace);
        assert_eq!(run.command, ["yavta", "-u", "--no-shim", "--", "-x"]);
        let run = options("-- -strange --quiet").expect("a program");
        assert!(!run.quiet && run.nodes == How::Auto);
        assert_eq!(run.command, ["-strange", "--quiet"]);
        for wrong in ["", "--", "--no-shimm yavta", "--nodes magic yavta"] {
            assert!(wrong.is_empty() || options(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn exit_codes_are_envs() {
        let exec = |source| RunError::Exec {
            path: "/x".into(),
            source,
        };
        let refused = ProgramError::Refused {
            path: "/x".into(),
            source: io::Error::other("x"),
        };
        assert_eq!(RunError::NoNodes.exit_code(), 125);
        assert_eq!(RunError::NoPlace(String::new(), String::new()).exit_code(), 125);
        assert_eq!(RunError::from(refused).exit_code(), 126);
        assert_eq!(exec(Errno::EACCES).exit_code(), 126);
        assert_eq!(exec(Errno::ENOENT).exit_code(), 127);
        assert_eq!(RunError::from(ProgramError::Missing("x".into())).exit_code(), 127);
        assert!(RunError::NoNodes.to_string().contains("was not run"));
    }

    #[test]
    fn the_environment_is_ours_and_what_the_shim_is_told() {
        let pairs = [Pair {
            real: "/dev/video0".into(),
            real_number: Some(Number { major: 81, minor: 0 }),
            ours: "/dev/video64".into(),
            our_number: Number {
                major: 81,
                minor: 256,
            },
        }];
        let words = |words: &[(&str, &str)]| -> Vec<(OsString, OsString)> {
            words
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect()
        };
        let there = words(&[("A", "b"), ("LD_PRELOAD", "/a.so"), ("VIDCOMPAT_ADOPT", "1")]);
        let run = options("--no-adopt true").expect("options");
        let without = environment(
            there.clone().into_iter(),
            &run,
            &Shim::default(),
            &pairs,
            Way::Namespace,
        );
        let as_told = [("A", "b"), ("LD_PRELOAD", "/a.so"), ("VIDCOMPAT_ADOPT", "0")];
        assert_eq!(without, words(&as_told));
        let shim = Shim {
            library: Some("/$LIB/x.so".into()),
            ..Shim::default()
        };
        let run = options("true").expect("options");
        let with = environment(there.into_iter(), &run, &shim, &pairs, Way::Redirection);
        let told = [
            ("A", "b"),
            ("LD_PRELOAD", "/$LIB/x.so:/a.so"),
            ("VIDCOMPAT_ADOPT", "1"),
            ("VIDCOMPAT_NODES", "81:0=81:256=/dev/video64"),
        ];
        assert_eq!(with, words(&told));
    }
}
