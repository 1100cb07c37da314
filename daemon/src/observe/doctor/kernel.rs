//! What the kernel has of what vidcompatd uses. Each is asked for, where asking does no harm; else its version tells.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statfs::statfs;
use nix::unistd::getpid;
use polyfuse_kernel::{CUSE_INIT, cuse_init_in, fuse_in_header};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use zerocopy::FromBytes;

use super::look::text;
use super::{Finding, Machine};
use crate::run::place::may_open;
use crate::sys;

/// The oldest kernel that is tested.
const OLDEST: (u32, u32) = (6, 1);
/// FUSE_NOTIFY_RESEND (linux/fuse.h: 7.40), and the first kernel that has it.
const RESEND_MINOR: u32 = 40;
const RESEND_KERNEL: (u32, u32) = (6, 9);
/// `DEBUGFS_MAGIC` (linux/magic.h)
const DEBUGFS: i64 = 0x6462_6720;
/// Smallest buffer that the kernel gives requests into (`FUSE_MIN_READ_BUFFER`).
const READ_BUFFER: usize = 8192;

pub(super) fn look(machine: &Machine) -> Vec<Finding> {
    let mut findings = vec![version(machine.kernel)];
    let minor = fuse_minor();
    findings.push(cuse(Path::new("/dev/cuse"), minor));
    findings.push(survival(minor, machine.kernel));
    findings.push(node(
        "dma-heap",
        "/dev/dma_heap/system",
        "buffers are of cached memory that devices import",
        "devices' own buffers serve, which are slower to copy from where they are not cached",
        "a kernel with CONFIG_DMABUF_HEAPS_SYSTEM has it",
    ));
    findings.push(node(
        "udmabuf",
        "/dev/udmabuf",
        "sealed memfds of programs can be imported where a rule allows it",
        "memfds are always copied",
        "`modprobe udmabuf`, or a kernel with CONFIG_UDMABUF",
    ));
    findings.push(mappings(machine.kernel));
    findings.push(memory());
    findings.push(files());
    findings.push(debugfs());
    findings.push(types());
    findings.extend(lockdown());
    findings
}

fn version((major, minor): (u32, u32)) -> Finding {
    let release = text("/proc/sys/kernel/osrelease").unwrap_or_else(|| format!("{major}.{minor}"));
    let what = format!("Linux {release}, {}", std::env::consts::ARCH);
    match (major, minor) < OLDEST {
        true => Finding::warning("kernel", what).advise("vidcompatd is tested with Linux 6.1 and newer ones"),
        false => Finding::ok("kernel", what),
    }
}

/// The minor version of FUSE that the kernel's CUSE has: what it says to who opens `/dev/cuse`, which makes no node
/// unless it is answered.
fn fuse_minor() -> Option<u32> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/cuse");
    let mut message = [0; READ_BUFFER];
    let length = file.ok()?.read(&mut message).ok()?;
    let (header, body) = fuse_in_header::read_from_prefix(&message[..length]).ok()?;
    let (init, _) = cuse_init_in::read_from_prefix(body).ok()?;
    (header.opcode == CUSE_INIT && init.major == 7).then_some(init.minor)
}

fn cuse(path: &Path, minor: Option<u32>) -> Finding {
    let exists = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_char_device());
    let loaded = Path::new("/sys/class/misc/cuse").exists();
    let release = text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let folder = Path::new("/lib/modules").join(release);
    let has = |list: &str| text(folder.join(list)).is_some_and(|list| list.contains("/cuse.ko"));
    let builtin = has("modules.builtin");
    match (exists, loaded) {
        (true, _) if minor.is_some() => Finding::ok("cuse", "/dev/cuse makes nodes"),
        (true, true) if !may_open(path) => {
            Finding::ok("cuse", "the module is loaded; that /dev/cuse makes nodes only root can see")
        }
        (true, true) => Finding::problem("cuse", "/dev/cuse does not answer").advise("`modprobe -r cuse; modprobe cuse`"),
        (true, false) if has("modules.dep") => {
            Finding::ok("cuse", "the module is loaded when vidcompatd opens /dev/cuse")
        }
        (false, true) => Finding::problem("cuse", "the module is loaded, and /dev/cuse is not there")
            .advise("`mknod -m 600 /dev/cuse c 10 203`, which devtmpfs or udev does else (a container has to be given it)"),
        (_, false) if has("modules.dep") || builtin => {
            Finding::problem("cuse", "the module is not loaded").advise("`modprobe cuse`")
        }
        (_, false) => Finding::problem("cuse", "the kernel is without CUSE, or its modules are elsewhere")
            .advise("a kernel with CONFIG_CUSE is needed (Debian's has it)"),
    }
}

fn survival(minor: Option<u32>, kernel: (u32, u32)) -> Finding {
    let can = minor.map_or(kernel >= RESEND_KERNEL, |minor| minor >= RESEND_MINOR);
    let told = match minor {
        Some(minor) => format!("FUSE 7.{minor}"),
        None => format!("by its version, {}.{}", kernel.0, kernel.1),
    };
    match can {
        true => Finding::ok(
            "survival",
            format!("programs go on when vidcompatd is restarted ({told})"),
        ),
        false => Finding::warning(
            "survival",
            format!("programs that use a node get an error when vidcompatd is restarted ({told})"),
        )
        .advise("Linux 6.9 and newer can repeat the requests"),
    }
}

fn node(about: &str, path: &str, there: &str, not_there: &str, advice: &str) -> Finding {
    match Path::new(path).exists() {
        true => Finding::ok(about, format!("{path}: {there}")),
        false => Finding::warning(about, format!("no {path}: {not_there}")).advise(advice),
    }
}

/// PROCMAP_QUERY: one mapping of a process without reading the list of all.
fn mappings(kernel: (u32, u32)) -> Finding {
    let about = "mappings";
    let Ok(maps) = fs::File::open("/proc/self/maps") else {
        return Finding::problem(about, "/proc is not mounted").advise("`mount -t proc proc /proc`");
    };
    let here = (&raw const maps).expose_provenance() as u64;
    match sys::query_vma_unnamed(maps.as_fd(), here) {
        Err(Errno::ENOTTY) => Finding::warning(
            about,
            format!(
                "Linux {}.{} has no PROCMAP_QUERY: what stands behind a pointer takes longer to find",
                kernel.0, kernel.1
            ),
        )
        .advise("Linux 6.11 and newer have it"),
        Err(errno) => Finding::warning(about, format!("PROCMAP_QUERY fails ({errno})")),
        Ok(_) => Finding::ok(about, "PROCMAP_QUERY finds what stands behind a pointer"),
    }
}

/// process_vm_readv and its like, tried on ourselves.
fn memory() -> Finding {
    let byte = [7_u8];
    let address = byte.as_ptr().expose_provenance() as u64;
    match sys::read_byte(getpid(), address) {
        Ok(7) => Finding::ok("process_vm", "bytes can be copied into programs"),
        _ => Finding::problem("process_vm", "process_vm_readv fails").advise(
            "a kernel with CONFIG_CROSS_MEMORY_ATTACH is needed, or the sandbox that this runs in forbids it",
        ),
    }
}

/// pidfd_getfd, tried on ourselves.
fn files() -> Finding {
    let got = fs::File::open("/dev/null")
        .map_err(|_| rustix::io::Errno::NOENT)
        .and_then(|file| {
            use std::os::fd::AsRawFd;
            let ourselves = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
            pidfd_getfd(&ourselves, file.as_raw_fd(), PidfdGetfdFlags::empty())
        });
    match got {
        Ok(_) => Finding::ok("pidfd_getfd", "dma-bufs of programs can be imported"),
        Err(errno) => Finding::warning(
            "pidfd_getfd",
            format!("it fails ({errno}): dma-bufs of programs are copied"),
        ),
    }
}

fn debugfs() -> Finding {
    let path = "/sys/kernel/debug";
    match statfs(path).map(|found| found.filesystem_type().0) {
        Ok(DEBUGFS) => Finding::ok(
            "debugfs",
            "the framebuffer of a graphics card can be told from its others",
        ),
        _ => Finding::warning(
            "debugfs",
            format!("it is not mounted at {path}: buffers in a card's framebuffer may be copied"),
        )
        .advise(format!("`mount -t debugfs debugfs {path}`")),
    }
}

fn types() -> Finding {
    match Path::new("/sys/kernel/btf/vmlinux").exists() {
        true => Finding::ok(
            "btf",
            "buffers of other video devices are recognised in any memory",
        ),
        false => Finding::warning(
            "btf",
            "no /sys/kernel/btf/vmlinux: some buffers of other video devices are copied",
        )
        .advise("a kernel with CONFIG_DEBUG_INFO_BTF has it"),
    }
}

/// `[none] integrity confidentiality`
fn lockdown() -> Option<Finding> {
    let modes = text("/sys/kernel/security/lockdown")?;
    let mode = modes.split_once('[')?.1.split_once(']')?.0.to_owned();
    Some(match mode.as_str() {
        "none" => Finding::ok("lockdown", "none"),
        // What it forbids: /dev/mem, and the BPF helpers that read kernel memory.
        "confidentiality" => Finding::warning(
            "lockdown",
            "confidentiality: buffers of other video devices may not be recognised, and are copied then",
        ),
        _ => Finding::ok(
            "lockdown",
            format!("{mode}: nothing that vidcompatd needs is forbidden"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::{cuse, survival, version};
    use std::path::Path;

    #[test]
    fn a_kernel_says_by_fuse_or_by_its_version_whether_programs_go_on() {
        assert_eq!(survival(Some(41), (6, 1)).level, Level::Ok);
        assert_eq!(survival(Some(39), (6, 12)).level, Level::Warning);
        assert_eq!(survival(None, (6, 9)).level, Level::Ok);
        assert_eq!(survival(None, (6, 8)).level, Level::Warning);
        assert_eq!(version((5, 10)).level, Level::Warning);
        assert_eq!(version((6, 1)).level, Level::Ok);
    }

    #[test]
    fn without_dev_cuse_nothing_goes() {
        let finding = cuse(Path::new("/nowhere/cuse"), None);
        assert_eq!(finding.level, Level::Problem);
        assert!(finding.advice.is_some());
    }
}
