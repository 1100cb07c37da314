//! Looking at `/sys`, `/proc` and nodes without being held up by what hangs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::stat::{major, minor};

use crate::run::nodes::Number;

/// For a driver or a daemon to answer: longer than a camera takes that has to be woken.
const PATIENCE: Duration = Duration::from_secs(3);

/// What `look` finds; `None`: it takes too long, and is left to itself.
pub(in crate::observe) fn patiently<T: Send + 'static>(
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    within(PATIENCE, look)
}

/// The same, with more patience or less.
pub(in crate::observe) fn within<T: Send + 'static>(
    patience: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .spawn(move || drop(sender.send(look())))
        .ok()?;
    receiver.recv_timeout(patience).ok()
}

/// The text of a file, without what is white around it.
pub(in crate::observe) fn text(path: impl AsRef<Path>) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(bytes.trim_ascii()).into_owned())
}

/// Names in a folder, those with numbers by their numbers.
pub(in crate::observe) fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_by_key(|name| {
        let letters = name.trim_end_matches(|character: char| character.is_ascii_digit());
        let number: u64 = name[letters.len()..].parse().unwrap_or(0);
        (letters.to_owned(), number)
    });
    names
}

/// A device number as sysfs has it: `81:0`.
pub(super) fn number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some(Number {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

/// The CUSE nodes of the kernel: their number and the path of their node.
pub(super) fn cuse_nodes() -> Vec<(Number, PathBuf)> {
    let node = |name: &String| {
        let folder = Path::new("/sys/class/cuse").join(name);
        let number = number(&text(folder.join("dev"))?)?;
        let uevent = text(folder.join("uevent")).unwrap_or_default();
        let told = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        Some((number, Path::new("/dev").join(told.unwrap_or(name))))
    };
    names("/sys/class/cuse").iter().filter_map(node).collect()
}

/// Who has one of `paths` open, as far as we may look: process and name.
pub(super) fn users(paths: &[&Path]) -> Vec<(u32, String)> {
    let us = std::process::id();
    let mut users = Vec::new();
    for name in names("/proc") {
        let Some(pid) = name.parse::<u32>().ok().filter(|pid| *pid != us) else {
            continue;
        };
        let folder = Path::new("/proc").join(&name);
        let entries = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        let mut files = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        if files.any(|file| paths.contains(&file.as_path())) {
            users.push((pid, text(folder.join("comm")).unwrap_or_default()));
        }
    }
    users
}

/// `process 12 (cheese), process 13 (zoom)`
pub(super) fn named(users: &[(u32, String)]) -> String {
    let name = |(pid, name): &(u32, String)| format!("process {pid} ({name})");
    users.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Who may open a node, and what that asks of a user who may not.
pub(super) fn owner(path: &Path) -> (String, String) {
    use nix::unistd::{Gid, Group};
    let Ok(metadata) = fs::metadata(path) else {
        return ("it is not there".to_owned(), "make it (udev does)".to_owned());
    };
    let group = Group::from_gid(Gid::from_raw(metadata.gid())).ok().flatten();
    let group = group.map_or_else(|| metadata.gid().to_string(), |group| group.name);
    let mode = metadata.mode() & 0o777;
    let advice = match mode & 0o060 == 0o060 && group != "root" {
        true => format!("`adduser USER {group}` and a new login, or run as root"),
        false => "run as root, or give the node a group that may open it (a udev rule)".to_owned(),
    };
    (format!("group {group}, mode {mode:03o}"), advice)
}

/// The number of the device behind `path`, of any kind.
pub(in crate::observe) fn device(path: &Path) -> Option<Number> {
    let device = fs::metadata(path).ok()?.rdev();
    let part = |part: u64| u32::try_from(part).ok();
    Some(Number {
        major: part(major(device))?,
        minor: part(minor(device))?,
    })
}

#[cfg(test)]
mod tests {
    use super::{named, names, number, patiently, within};
    use crate::run::nodes::Number;

    #[test]
    fn numbers_are_numbers_and_names_stand_in_their_order() {
        assert_eq!(
            number("81:256"),
            Some(Number {
                major: 81,
                minor: 256
            })
        );
        assert_eq!(number("81"), None);
        let folder = std::env::temp_dir().join(format!("vidcompat-look-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a new folder");
        for name in ["video10", "video2", "vbi3", "x"] {
            std::fs::write(folder.join(name), "").expect("a file");
        }
        assert_eq!(names(&folder), ["vbi3", "video2", "video10", "x"]);
        std::fs::remove_dir_all(&folder).expect("our own");
        assert!(names("/nowhere").is_empty());
    }

    #[test]
    fn who_takes_too_long_is_left_alone() {
        assert_eq!(patiently(|| 3), Some(3));
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let slow = within(std::time::Duration::from_millis(20), move || held.recv().is_err());
        assert_eq!(slow, None);
        drop(let_go);
        let users = [(3, "a".to_owned()), (4, "b".to_owned())];
        assert_eq!(named(&users), "process 3 (a), process 4 (b)");
    }
}
