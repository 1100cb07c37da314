//! Who we are, the daemon, and what is installed with it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, getegid, geteuid, getgroups};

use super::look::{names, text};
use super::{Finding, Level, Machine};
use crate::observe::ask::AskError;
use crate::run::elf::{Abi, Format, format};
use crate::run::preload;

/// `CAP_SYS_PTRACE`, a bit of `CapEff`.
const SYS_PTRACE: u64 = 1 << 19;
/// By what the library tells its version (client-shim/src/lib.rs).
const NOTE: &[u8] = b"vidcompat-shim ";
/// glibc's dynamic linkers of 32-bit programs, of which the machine has one if it runs such programs (psABI of i386, armhf).
const LINKERS_32: [&str; 2] = ["/lib/ld-linux.so.2", "/lib/ld-linux-armhf.so.3"];

/// The process of a daemon that runs, by its name.
pub(in crate::observe) fn process() -> Option<u32> {
    let pids = names("/proc").into_iter().filter_map(|name| name.parse().ok());
    // The keeper, if there is one, is the parent, and has the lower number.
    pids.rev()
        .find(|pid: &u32| text(format!("/proc/{pid}/comm")).as_deref() == Some("vidcompatd"))
}

pub(super) fn look(machine: &Machine) -> Vec<Finding> {
    let mut findings = vec![user(machine.root)];
    findings.extend(shims());
    findings.extend(loopback());
    findings
}

fn user(root: bool) -> Finding {
    if root {
        return Finding::ok("user", "root");
    }
    let mut groups = vec![getegid()];
    groups.extend(
        getgroups()
            .unwrap_or_default()
            .into_iter()
            .filter(|group| *group != getegid()),
    );
    let name = |gid: Gid| Group::from_gid(gid).ok().flatten().map(|group| group.name);
    let names: Vec<_> = groups.into_iter().filter_map(name).collect();
    let what = match names.is_empty() {
        true => format!("user {}", geteuid()),
        false => format!("user {} in groups {}", geteuid(), names.join(", ")),
    };
    match names.iter().any(|name| name == "video") {
        true => Finding::ok("user", what),
        // Whether that matters is said of each node: an ACL may do as well.
        false => Finding::warning("user", format!("{what}, not in video")).advise(
            "what only root can see is not looked at here; `adduser USER video` gives a user the nodes",
        ),
    }
}

/// Is there a daemon, and is it of our version? `needed`: there is a device that does not do without.
pub(super) fn runs(machine: &Machine, needed: bool) -> Vec<Finding> {
    let about = "daemon";
    let start = "`systemctl enable --now vidcompatd`, or `vidcompatd --device /dev/videoN`";
    let mut findings = Vec::new();
    let pid = match (&machine.daemon, machine.daemon_pid) {
        (Ok(status), _) => {
            let what = format!(
                "vidcompatd {}, process {}, serves {} devices and {} framebuffers",
                status.version,
                status.pid,
                status.devices.len(),
                status.framebuffers.len()
            );
            let ours = env!("CARGO_PKG_VERSION");
            findings.push(match status.version == ours {
                true => Finding::ok(about, what),
                false => Finding::warning(about, format!("{what}; this command is {ours}"))
                    .advise("`systemctl restart vidcompatd`"),
            });
            Some(status.pid)
        }
        (Err(AskError::Denied(_)), Some(pid)) | (Err(AskError::Refused(_)), Some(pid)) if !machine.root => {
            findings.push(Finding::ok(
                about,
                format!("vidcompatd, process {pid}; what it says only root is told"),
            ));
            Some(pid)
        }
        (Err(error), Some(pid)) => {
            findings.push(
                Finding::warning(
                    about,
                    format!("vidcompatd, process {pid}, cannot be asked: {error}"),
                )
                .advise("--control names its control socket"),
            );
            Some(pid)
        }
        (Err(AskError::NoDaemon(_) | AskError::Denied(_)), None) => {
            let level = if needed { Level::Problem } else { Level::Warning };
            findings.push(Finding::new(level, about, "vidcompatd does not run").advise(start));
            None
        }
        (Err(error), None) => {
            findings.push(Finding::warning(about, error.to_string()).advise(start));
            None
        }
    };
    findings.extend(pid.and_then(capabilities));
    findings
}

/// A daemon that may not look into other processes serves nobody.
fn capabilities(pid: u32) -> Option<Finding> {
    let status = text(format!("/proc/{pid}/status"))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    (effective & SYS_PTRACE == 0).then(|| {
        Finding::problem(
            "daemon",
            format!("process {pid} has not CAP_SYS_PTRACE, and reaches no program's memory"),
        )
        .advise("run it as root, or by the unit that comes with it")
    })
}

/// The client shim's library, for programs of both sizes.
fn shims() -> Vec<Finding> {
    let Some(ours) = abi(Path::new("/proc/self/exe")) else {
        return Vec::new();
    };
    let command = std::env::current_exe().unwrap_or_default();
    let small = ours.smaller();
    let mut findings = Vec::new();
    for abi in [Some(ours), small].into_iter().flatten() {
        let bits = if abi.is_32_bit() { 32 } else { 64 };
        let about = format!("shim {bits}");
        let place = preload::library(None, &command, Some(abi), None);
        let found = place.filter(|place| preload::serves(place, abi));
        let found = found.and_then(|place| preload::for_abi(&place, abi));
        findings.push(match found {
            Some(path) => shim(about, &path),
            None if abi == ours => Finding::warning(
                about,
                "there is no libvidcompat.so: no MMAP and no copy-free USERPTR for programs",
            )
            .advise("install it beside this command (the package does)"),
            None if !LINKERS_32.iter().any(|linker| Path::new(linker).exists()) => {
                Finding::ok(about, "32-bit programs that could use one cannot run here")
            }
            None => Finding::warning(
                about,
                format!("there is no libvidcompat.so for {bits}-bit programs"),
            )
            .advise(
                "nothing, unless such programs use MMAP; else `tests/shim --i386` and `tests/package` make a package of it",
            ),
        });
    }
    findings
}

fn shim(about: String, path: &Path) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    match version_in(&fs::read(path).unwrap_or_default()) {
        Some(version) if version == ours => Finding::ok(about, format!("{} {version}", path.display())),
        Some(version) => Finding::warning(
            about,
            format!("{} is {version}, this command {ours}", path.display()),
        )
        .advise("install both of one version: programs go on as without it"),
        None => Finding::warning(about, format!("{} does not tell its version", path.display())),
    }
}

fn version_in(library: &[u8]) -> Option<String> {
    let at = library.windows(NOTE.len()).position(|window| window == NOTE)?;
    let rest = &library[at + NOTE.len()..];
    let end = rest.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&rest[..end.min(32)]).into_owned())
}

fn abi(path: &Path) -> Option<Abi> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::open(path).ok()?;
    match format(&|at, into: &mut [u8]| file.read_exact_at(into, at).ok()) {
        Format::Elf(elf) => Some(elf.abi),
        _ => None,
    }
}

/// v4l2loopback has an option that programs stumble over.
fn loopback() -> Option<Finding> {
    let folder = PathBuf::from("/sys/module/v4l2loopback/parameters");
    let exclusive = text(folder.join("exclusive_caps"))?;
    Some(match exclusive.contains('Y') {
        true => Finding::ok(
            "v4l2loopback",
            "with exclusive_caps: such a device is a camera only while somebody writes to it",
        ),
        false => Finding::ok(
            "v4l2loopback",
            "without exclusive_caps: some programs do not see it as a camera",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Level, Machine};
    use super::{runs, version_in};
    use crate::observe::ask::AskError;
    use crate::observe::model::Status;

    fn machine(daemon: Result<Status, AskError>, daemon_pid: Option<u32>, root: bool) -> Machine {
        Machine {
            root,
            kernel: (6, 12),
            daemon,
            daemon_pid,
        }
    }

    #[test]
    fn a_daemon_that_is_missing_is_a_problem_where_it_is_needed() {
        let missing = || machine(Err(AskError::NoDaemon("/run/x".into())), None, true);
        assert_eq!(runs(&missing(), true)[0].level, Level::Problem);
        assert_eq!(runs(&missing(), false)[0].level, Level::Warning);
        let denied = machine(Err(AskError::Denied("/run/x".into())), Some(u32::MAX), false);
        assert_eq!(runs(&denied, true)[0].level, Level::Ok);
    }

    #[test]
    fn another_version_is_told() {
        let status = |version: &str| Status {
            version: version.to_owned(),
            pid: u32::MAX,
            ..Status::default()
        };
        let level = |version: &str| runs(&machine(Ok(status(version)), None, true), true)[0].level;
        assert_eq!(level("0.0.1"), Level::Warning);
        assert_eq!(level(env!("CARGO_PKG_VERSION")), Level::Ok);
        assert_eq!(
            version_in(b"..vidcompat-shim 0.1.0\0..").as_deref(),
            Some("0.1.0")
        );
        assert_eq!(version_in(b"nothing"), None);
    }
}
