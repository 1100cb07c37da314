//! `vidcompat bug-report`: one text with what somebody needs who is to find out what is wrong.
//!
//! It works without a daemon and without privilege: what could not be had stands there as such. Of persons it has nothing but
//! the names of processes, and what they have put into the configuration; no host name, no user names, no serial numbers
//! (which `/dev/v4l/by-id` would have).

use std::fmt::Write;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::command::BugReportOptions;
use super::doctor::look::{names, patiently, text, within};
use super::doctor::{self, log};
use super::page::printable;
use super::{ask, show};
use crate::backend::v4l2::RealNode;

/// Lines of a log, the last ones.
const LINES: usize = 300;
/// Bytes of a configuration file.
const LONGEST: usize = 64 << 10;
/// For journalctl: a large journal on a slow disk.
const SEARCHING: Duration = Duration::from_secs(20);
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
            report += &without_serial_numbers(&printable(line));
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

/// Writes it to a new file. That is for nobody else to read: it has lines of logs that only root may see.
pub(super) fn write(path: &Path, report: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(report.as_bytes())
}

/// Names in `/dev/v4l/by-id` have them, wherever they stand.
fn without_serial_numbers(line: &str) -> String {
    const FOLDER: &str = "/by-id/";
    let mut parts = line.split(FOLDER);
    let mut safe = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|character: char| character.is_whitespace() || "\"'`,;:)]".contains(character));
        safe += FOLDER;
        safe += "...";
        safe += &part[end.unwrap_or(part.len())..];
    }
    safe
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
    let mut journalctl = Command::new("journalctl");
    journalctl.args(arguments).stdin(Stdio::null());
    let Some(ran) = within(SEARCHING, move || journalctl.output()) else {
        return "journalctl does not answer".to_owned();
    };
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
    let is_about = |line: &&log::Line| {
        let small = line.text.to_lowercase();
        ABOUT.iter().any(|word| small.contains(word)) && !small.contains("serialnumber")
    };
    // With the time, as the journal has it.
    let told = |line: &log::Line| {
        format!(
            "[{:5}.{:06}] {}",
            line.at.as_secs(),
            line.at.subsec_micros(),
            line.text
        )
    };
    let lines: Vec<_> = lines.iter().filter(is_about).map(told).collect();
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
    use super::{configuration, report, without_serial_numbers, write};
    use std::os::unix::fs::{PermissionsExt, symlink};

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
    fn a_report_is_for_nobody_else_and_replaces_nothing() {
        let folder = std::env::temp_dir().join(format!("vidcompat-written-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a new folder");
        let (path, link) = (folder.join("report"), folder.join("link"));
        write(&path, "text").expect("a new file");
        let mode = std::fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(write(&path, "other").is_err());
        symlink(folder.join("nowhere"), &link).expect("a link");
        assert!(write(&link, "other").is_err() && !folder.join("nowhere").exists());
        assert_eq!(std::fs::read_to_string(&path).expect("the file"), "text");
        std::fs::remove_dir_all(&folder).expect("our own");
    }

    #[test]
    fn a_name_by_id_is_told_without_its_serial_number() {
        let line = r#"path = "/dev/v4l/by-id/usb-046d_C270_A1B2C3-video-index0" # /dev/v4l/by-id/x: broken"#;
        assert_eq!(
            without_serial_numbers(line),
            r#"path = "/dev/v4l/by-id/..." # /dev/v4l/by-id/...: broken"#
        );
        assert_eq!(
            without_serial_numbers("running: vidcompatd --device /dev/v4l/by-id/usb-A1"),
            "running: vidcompatd --device /dev/v4l/by-id/..."
        );
        assert_eq!(without_serial_numbers("/dev/video0"), "/dev/video0");
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
