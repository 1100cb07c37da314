//! `vidcompat bug-report`: one text with what somebody needs who is to find out what is wrong.
//!
//! It works without a daemon and without privilege: what could not be had stands there as such. Of persons it has nothing but
//! the names of processes, and what they have put into the configuration; no host name, no user names, no serial numbers
//! (which `/dev/v4l/by-id` would have).

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::command::BugReportOptions;
use super::doctor::look::{names, patiently, text};
use super::doctor::{self, log};
use super::page::printable;
use super::{ask, show};
use crate::backend::v4l2::RealNode;

/// Lines of a log, the last ones.
const LINES: usize = 300;
/// Bytes of a configuration file.
const LONGEST: usize = 64 << 10;
/// The unit that the package installs.
const UNIT: &str = "vidcompatd.service";

/// The report.
pub(super) fn report(options: &BugReportOptions) -> String {
    let mut report = String::from(
        "vidcompat bug report. It names processes, and has the configuration as it is written; no host name, users or serial \
         numbers. Look through it before you give it away.\n",
    );
    let mut section = |title: &str, body: &str| {
        // Into a string: that cannot fail.
        let _ = write!(report, "\n== {title} ==\n");
        for line in body.lines() {
            report += &printable(line);
            report.push('\n');
        }
    };
    section("versions", &versions());
    section("doctor", &doctor::examine(&options.control).page());
    let status = ask::status(&options.control);
    let status = status.map_or_else(|error| error.to_string(), |status| show::status(&status));
    section("status", &status);
    section("configuration", &configuration(Path::new("/")));
    section("log of vidcompatd", &journal());
    section("kernel log", &kernel_log());
    section("modules", &modules());
    section("devices", &devices());
    section("framebuffers", &text("/proc/fb").unwrap_or_default());
    report
}

fn versions() -> String {
    let kernel = text("/proc/version").unwrap_or_else(|| "unknown".to_owned());
    // Who built a kernel, and where, is in brackets.
    let kernel = kernel.split(" (").next().unwrap_or_default().to_owned();
    let build = text("/proc/sys/kernel/version").unwrap_or_default();
    let system = text("/etc/os-release").unwrap_or_default();
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let memory = text("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().next().unwrap_or_default().to_owned();
    let init = text("/proc/1/comm").unwrap_or_default();
    format!(
        "vidcompat {}\n{kernel}, {build}, {}\n{}\n{memory}\nfirst process: {init}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        system.unwrap_or("unknown system").trim_matches('"'),
    )
}

/// The files that are read, each with its name. `root` is `/` but in tests.
fn configuration(root: &Path) -> String {
    let mut all = String::new();
    for folder in ["usr/lib/vidcompat", "etc/vidcompat"] {
        let folder = root.join(folder);
        let single = [folder.join("vidcompat.toml")];
        let dropped = folder.join("vidcompat.toml.d");
        let dropped = names(&dropped).into_iter().map(|name| dropped.join(name));
        let is_ours =
            |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "toml");
        for path in single.into_iter().chain(dropped).filter(is_ours) {
            match fs::read(&path) {
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned();
                    all += &format!("# {}\n{}\n", path.display(), text.trim_end());
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => all += &format!("# {}: {error}\n", path.display()),
            }
        }
    }
    let running = doctor::daemon::process().and_then(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
    if let Some(running) = running {
        let words = running.split(|byte| *byte == 0);
        let words: Vec<_> = words
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        all += &format!("# running: {}\n", words.join(" ").trim_end());
    }
    match all.is_empty() {
        true => "no file, and no daemon\n".to_owned(),
        false => all,
    }
}

/// What the unit has logged, by journalctl, which every system with a journal has.
fn journal() -> String {
    let lines = LINES.to_string();
    let arguments = [
        "-u",
        UNIT,
        "-n",
        &lines,
        "--no-pager",
        "--no-hostname",
        "-o",
        "short-monotonic",
    ];
    let ran = Command::new("journalctl")
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    match ran {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => format!("journalctl: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => format!("there is no journal ({error})"),
    }
}

/// What the kernel has said of video, and of us.
fn kernel_log() -> String {
    const ABOUT: [&str; 12] = [
        "video", "v4l", "vb2", "cuse", "fuse", "uvc", "dma-buf", "dma_buf", "drm", "fbdev", "fb0", "vivid",
    ];
    let Some(lines) = log::lines() else {
        return "only root may read it here\n".to_owned();
    };
    let is_about = |line: &&String| {
        let small = line.to_lowercase();
        ABOUT.iter().any(|word| small.contains(word)) && !small.contains("serialnumber")
    };
    let lines: Vec<_> = lines.iter().filter(is_about).map(String::as_str).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

fn modules() -> String {
    const ABOUT: [&str; 10] = [
        "video", "v4l", "cuse", "fuse", "udmabuf", "vivid", "uvc", "drm", "fb", "vim2m",
    ];
    let all = text("/proc/modules").unwrap_or_default();
    let about = all
        .lines()
        .filter(|line| ABOUT.iter().any(|word| line.contains(word)));
    // Addresses are nobody's business.
    let short = about.map(|line| line.split_whitespace().take(4).collect::<Vec<_>>().join(" "));
    short.collect::<Vec<_>>().join("\n")
}

/// What each V4L2 device says of itself.
fn devices() -> String {
    let mut all = String::new();
    for name in names("/sys/class/video4linux") {
        let places = [
            Path::new("/dev").join(&name),
            Path::new("/dev/vidcompat").join(&name),
        ];
        let numbers = text(Path::new("/sys/class/video4linux").join(&name).join("dev")).unwrap_or_default();
        let path = places
            .into_iter()
            .find(|path| doctor::look::device(path).is_some_and(|number| number.to_string() == numbers));
        let told = match path {
            None => "no node".to_owned(),
            Some(path) => {
                patiently(move || capabilities(&path)).unwrap_or_else(|| "does not answer".to_owned())
            }
        };
        all += &format!("{name} ({numbers}): {told}\n");
    }
    all
}

fn capabilities(path: &Path) -> String {
    let node = match RealNode::open(path, libc::O_RDWR) {
        Ok(node) => node,
        Err(error) => return error.to_string(),
    };
    match node.capability() {
        Ok(told) => format!(
            "driver {}, card {}, bus {}, version {}.{}.{}, capabilities {:#010x} (device {:#010x})",
            told.driver,
            told.card,
            told.bus_info,
            told.version >> 16,
            told.version >> 8 & 0xff,
            told.version & 0xff,
            told.capabilities.bits(),
            told.device_caps().bits()
        ),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::BugReportOptions;
    use super::{configuration, report};

    #[test]
    fn a_report_has_every_part_without_a_daemon() {
        let options = BugReportOptions {
            output: None,
            control: "/nowhere/control.sock".into(),
        };
        let report = report(&options);
        for part in [
            "versions",
            "doctor",
            "status",
            "configuration",
            "log of vidcompatd",
            "modules",
            "devices",
        ] {
            assert!(
                report.contains(&format!("\n== {part} ==\n")),
                "no {part} in\n{report}"
            );
        }
        assert!(report.contains("no vidcompatd listens at /nowhere/control.sock"));
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
        let host = host.trim();
        assert!(host.len() < 6 || !report.contains(host), "it names the host");
    }

    #[test]
    fn the_configuration_is_what_is_written_with_its_drop_ins() {
        let root = std::env::temp_dir().join(format!("vidcompat-report-{}", std::process::id()));
        let folder = root.join("etc/vidcompat/vidcompat.toml.d");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(root.join("etc/vidcompat/vidcompat.toml"), "a = 1\n").expect("a file");
        std::fs::write(folder.join("10-mine.toml"), "b = 2\n").expect("a file");
        std::fs::write(folder.join("README"), "secret\n").expect("a file");
        let told = configuration(&root);
        assert!(
            told.contains("vidcompat.toml\na = 1\n") && told.contains("10-mine.toml\nb = 2\n"),
            "{told}"
        );
        assert!(!told.contains("secret"));
        std::fs::remove_dir_all(&root).expect("our own");
    }
}
