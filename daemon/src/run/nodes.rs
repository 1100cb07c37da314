//! Which nodes are ours, and which real node each stands beside: from `/dev` and `/sys`, as anybody may look at them.
//!
//! The control socket, which knows, is root's alone. Nothing is opened: to open our node is to open the real one, which
//! may wake a camera or be refused to the next who wants it. Our node goes with its daemon, so that it is there says
//! enough. File states are asked of the kernel itself and not of libc, before which a shim of ours may stand.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, major, minor};

use crate::devices::{FB_FIRST_MINOR, FB_FIRST_OWN_MINOR, FB_MAJOR, FIRST_NUMBER, MAJOR, kinds};

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

/// Our nodes on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Those beside real ones.
    pub pairs: Vec<Pair>,
    /// Those that have the name that programs look for: framebuffers of ours where there is no real one, and taken-over
    /// cameras.
    pub in_place: Vec<PathBuf>,
}

/// All of them.
#[must_use]
pub fn all() -> Nodes {
    Nodes {
        pairs: pairs_of(number_of, is_cuse),
        in_place: in_place(number_of, is_cuse),
    }
}

/// By what names begin, the major and the first minor of ours of this kind.
fn all_kinds() -> impl Iterator<Item = (&'static str, u32, u32)> {
    let video = kinds().map(|(prefix, first_minor)| (prefix, MAJOR, first_minor));
    video.chain([("fb", FB_MAJOR, FB_FIRST_MINOR)])
}

fn in_place(number: impl Fn(&Path) -> Option<Number>, lives: impl Fn(Number) -> bool) -> Vec<PathBuf> {
    let video = kinds().map(|(prefix, first_minor)| (prefix, MAJOR, first_minor));
    let all = video.chain([("fb", FB_MAJOR, FB_FIRST_OWN_MINOR)]);
    let mut found = Vec::new();
    for (prefix, major, first_minor) in all {
        for at in 0..FIRST_NUMBER {
            let path = PathBuf::from(format!("/dev/{prefix}{at}"));
            let minor = first_minor + at;
            let our_number = Number { major, minor };
            if number(&path) == Some(our_number) && lives(our_number) {
                found.push(path);
            }
        }
    }
    found
}

/// The pairs among the names that may be ours: `number` tells the device number of a path, `lives` whether the kernel has
/// a CUSE device of that number.
fn pairs_of(number: impl Fn(&Path) -> Option<Number>, lives: impl Fn(Number) -> bool) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (prefix, major, first_minor) in all_kinds() {
        for at in 0..FIRST_NUMBER {
            let ours = PathBuf::from(format!("/dev/{prefix}{}", FIRST_NUMBER + at));
            let our_number = Number {
                major,
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
    use super::{Number, Pair, for_the_shim, in_place, is_cuse, number_of, pairs_of};
    use std::path::{Path, PathBuf};

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
            ("/dev/fb0", number(29, 0)),
            ("/dev/fb64", number(29, 256)),
        ];
        let pairs = among(&nodes, &[]);
        assert_eq!(
            for_the_shim(&pairs),
            "81:3=81:256=/dev/video64;81:9=81:514=/dev/vbi66;29:0=29:256=/dev/fb64"
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
    fn a_framebuffer_of_ours_with_a_name_of_its_own_replaces_nothing() {
        let nodes = [
            ("/dev/fb0", number(29, 0)),
            ("/dev/fb1", number(29, 513)),
            ("/dev/fb2", number(29, 514)),
            // Not at its place.
            ("/dev/fb3", number(29, 512)),
        ];
        assert_eq!(among(&nodes, &[]), []);
        let number_of = |path: &Path| {
            let found = nodes.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, number)| *number)
        };
        let found = in_place(number_of, |alive| alive != number(29, 514));
        assert_eq!(found, [PathBuf::from("/dev/fb1")]);
    }

    #[test]
    fn a_camera_that_is_taken_over_has_its_name_already() {
        let nodes = [
            ("/dev/video0", number(81, 256)),
            ("/dev/video1", number(81, 1)),
            ("/dev/vbi1", number(81, 513)),
        ];
        assert_eq!(among(&nodes, &[]), []);
        let number_of = |path: &Path| {
            let found = nodes.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, number)| *number)
        };
        let found = in_place(number_of, |_| true);
        assert_eq!(found, [PathBuf::from("/dev/video0"), PathBuf::from("/dev/vbi1")]);
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
