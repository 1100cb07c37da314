//! Which nodes are ours, and which real node each stands beside: from `/dev` and `/sys`, as anybody may look at them.
//!
//! The control socket, which knows, is root's alone. Nothing is opened: to open our node is to open the real one, which
//! may wake a camera or be refused to the next who wants it. Our node goes with its daemon, so that it is there says
//! enough. File states are asked of the kernel itself and not of libc, before which a shim of ours may stand.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, major, minor};

use crate::devices::{FIRST_NUMBER, MAJOR, kinds};

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// Its major.
    pub major: u32,
    /// Its minor.
    pub minor: u32,
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A real node and ours beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Where programs look for the real one, e.g. `/dev/video0`.
    pub real: PathBuf,
    /// The real one's number; `None` where ours stands at its path already (`vidcompat run` inside `vidcompat run`).
    pub real_number: Option<Number>,
    /// Ours, e.g. `/dev/video64`.
    pub ours: PathBuf,
    /// Its number.
    pub our_number: Number,
}

/// The number of the character device at `path`.
#[must_use]
pub fn number_of(path: &Path) -> Option<Number> {
    let found = rustix::fs::stat(path).ok()?;
    (FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice).then(|| Number {
        major: major(found.st_rdev),
        minor: minor(found.st_rdev),
    })
}

/// All pairs of this machine.
#[must_use]
pub fn pairs() -> Vec<Pair> {
    pairs_of(number_of, is_cuse)
}

/// The pairs among the names that may be ours: `number` tells the device number of a path, `lives` whether the kernel has
/// a CUSE device of that number.
fn pairs_of(number: impl Fn(&Path) -> Option<Number>, lives: impl Fn(Number) -> bool) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (prefix, first_minor) in kinds() {
        for at in 0..FIRST_NUMBER {
            let ours = PathBuf::from(format!("/dev/{prefix}{}", FIRST_NUMBER + at));
            let our_number = Number {
                major: MAJOR,
                minor: first_minor + at,
            };
            if number(&ours) != Some(our_number) || !lives(our_number) {
                continue;
            }
            let real = PathBuf::from(format!("/dev/{prefix}{at}"));
            let Some(there) = number(&real) else { continue };
            pairs.push(Pair {
                real,
                real_number: (there != our_number).then_some(there),
                ours,
                our_number,
            });
        }
    }
    pairs
}

/// Has the kernel a CUSE device of this number? A node that a dead daemon has left in a `/dev` without devtmpfs has none.
/// Where there is no sysfs to ask, we believe the node.
fn is_cuse(number: Number) -> bool {
    let folder = Path::new("/sys/dev/char");
    match fs::read_link(folder.join(number.to_string())) {
        Ok(target) => target.components().any(|part| part.as_os_str() == "cuse"),
        Err(_) => !folder.exists(),
    }
}

/// What the shim is told of them (client-shim/src/redirect.rs): `REAL=OUR=PATH` for each, `;` between.
#[must_use]
pub fn for_the_shim(pairs: &[Pair]) -> String {
    let mut text = String::new();
    for pair in pairs {
        let Some(real) = pair.real_number else { continue };
        let separator = if text.is_empty() { "" } else { ";" };
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{separator}{real}={}={}",
            pair.our_number,
            pair.ours.display()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Number, Pair, for_the_shim, is_cuse, number_of, pairs_of};
    use std::path::Path;

    const fn number(major: u32, minor: u32) -> Number {
        Number { major, minor }
    }

    fn among(nodes: &[(&str, Number)], dead: &[Number]) -> Vec<Pair> {
        let number = |path: &Path| {
            let found = nodes.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, number)| *number)
        };
        pairs_of(number, |number| !dead.contains(&number))
    }

    #[test]
    fn each_kind_of_node_is_found_beside_its_real_one() {
        let nodes = [
            ("/dev/video0", number(81, 3)),
            ("/dev/video64", number(81, 256)),
            ("/dev/video1", number(81, 4)),
            ("/dev/vbi2", number(81, 9)),
            ("/dev/vbi66", number(81, 514)),
        ];
        let pairs = among(&nodes, &[]);
        assert_eq!(
            for_the_shim(&pairs),
            "81:3=81:256=/dev/video64;81:9=81:514=/dev/vbi66"
        );
        assert_eq!(pairs[1].real, Path::new("/dev/vbi2"));
    }

    #[test]
    fn other_peoples_nodes_dead_ones_and_ours_without_a_real_one_are_left_alone() {
        let real = ("/dev/video0", number(81, 0));
        assert_eq!(among(&[real, ("/dev/video64", number(81, 64))], &[]), []);
        assert_eq!(among(&[real, ("/dev/video64", number(81, 257))], &[]), []);
        assert_eq!(among(&[("/dev/video64", number(81, 256))], &[]), []);
        let ours = ("/dev/video64", number(81, 256));
        assert_eq!(among(&[real, ours], &[number(81, 256)]), []);
        assert_eq!(among(&[real, ours], &[]).len(), 1);
    }

    #[test]
    fn where_ours_stands_in_place_already_there_is_nothing_to_tell() {
        let nodes = [
            ("/dev/video0", number(81, 256)),
            ("/dev/video64", number(81, 256)),
        ];
        let pairs = among(&nodes, &[]);
        assert_eq!(pairs.len(), 1);
        assert_eq!(pairs[0].real_number, None);
        assert_eq!(for_the_shim(&pairs), "");
    }

    #[test]
    fn a_device_is_no_file_and_a_driver_is_not_cuse() {
        assert_eq!(number_of(Path::new("/dev/null")), Some(number(1, 3)));
        assert_eq!(number_of(Path::new("/proc/self/exe")), None);
        assert_eq!(number_of(Path::new("/nowhere")), None);
        if Path::new("/sys/dev/char/1:3").exists() {
            assert!(!is_cuse(number(1, 3)) && !is_cuse(number(4095, 9)));
        }
    }
}
