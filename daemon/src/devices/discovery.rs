//! The real V4L2 nodes of this machine, as `/sys/class/video4linux` lists them.
//!
//! A device is known by its place in sysfs, its device number and the inode of its folder there, which a device that is made
//! anew does not share; its name may be another's by now. Our own nodes are of the class cuse and not listed there. Nothing is
//! opened here.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::stat::{major, minor};

use super::side_node::kind_and_number;

/// Where the kernel lists V4L2 nodes.
const CLASS: &str = "/sys/class/video4linux";
/// udev is waited for no longer than this where it has written about the device number before the node was made.
const UDEV: Duration = Duration::from_secs(5);
/// And no longer than this where it has written nothing: it hangs, or somebody has stopped it.
const DEAF: Duration = Duration::from_secs(60);

/// A real node that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `/dev/video0`: what it is called, whoever stands there.
    pub path: PathBuf,
    /// Device number.
    pub number: (u32, u32),
    /// Which device this is.
    pub identity: Identity,
    /// Is there a device behind it, and not only a program (v4l2loopback)?
    pub is_hardware: bool,
}

/// Which device: of two with the same name only one has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    sysfs: PathBuf,
    number: (u32, u32),
    inode: u64,
}

#[cfg(test)]
impl Found {
    /// The device of this number at `path`, for tests.
    pub fn fake(path: &str, number: (u32, u32), inode: u64) -> Self {
        Self {
            path: path.into(),
            number,
            identity: Identity {
                sysfs: path.into(),
                number,
                inode,
            },
            is_hardware: true,
        }
    }
}

impl Found {
    /// `video0`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }

    /// Where the node is: at its name, or aside where ours has that.
    #[must_use]
    pub fn real(&self) -> Option<PathBuf> {
        let aside = Path::new(super::ASIDE).join(self.name());
        [self.path.clone(), aside]
            .into_iter()
            .find(|path| number_at(path) == Some(self.number))
    }

    /// Has udev done what it does about a new device: owner, mode, links? Until then its node is root's alone, and what is done
    /// to it now udev would undo or miss. udev writes its file about a device last of all, and a file older than the node is
    /// about the device that had the number before. Without udev there is nothing to wait for, nor after [`UDEV`]: a node that we
    /// had to make is younger than what udev has written. Nor is it waited for for ever where it says nothing.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        if !Path::new("/run/udev/control").exists() {
            return true;
        }
        let (major, minor) = self.number;
        let data = fs::metadata(format!("/run/udev/data/c{major}:{minor}"));
        let written = data.and_then(|data| data.modified()).ok();
        // When it was made: every change of owner, mode or name counts as a change of the inode.
        let made = self
            .real()
            .and_then(|real| fs::metadata(real).ok()?.created().ok());
        is_done(written, made, SystemTime::now())
    }
}

/// Has udev done with a node that was made then, if it has written about its number then?
fn is_done(written: Option<SystemTime>, made: Option<SystemTime>, now: SystemTime) -> bool {
    match (written, made) {
        (Some(written), Some(made)) => is_about(written, made, now),
        (Some(_), None) => true,
        (None, Some(made)) => now.duration_since(made).is_ok_and(|age| age > DEAF),
        (None, None) => false,
    }
}

/// Is what udev has written then about a node that was made then?
fn is_about(written: SystemTime, made: SystemTime, now: SystemTime) -> bool {
    // A clock that was set back tells nothing.
    written >= made || now.duration_since(made).is_ok_and(|age| age > UDEV)
}

/// The number of the character device at `path`; a link is none.
pub(super) fn number_at(path: &Path) -> Option<(u32, u32)> {
    let node = fs::symlink_metadata(path).ok()?;
    let number = (major(node.rdev()), minor(node.rdev()));
    let is_device = node.file_type().is_char_device();
    is_device.then_some((u32::try_from(number.0).ok()?, u32::try_from(number.1).ok()?))
}

/// All of them, in the order of their names.
///
/// # Errors
/// sysfs cannot be read. Without videodev there are none, and that is no error.
pub fn discover() -> io::Result<Vec<Found>> {
    discover_in(Path::new(CLASS))
}

fn discover_in(class: &Path) -> io::Result<Vec<Found>> {
    let entries = match fs::read_dir(class) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        // One that goes away meanwhile is gone.
        found.extend(entry.ok().and_then(|entry| look_at(&entry.path())));
    }
    found.sort_by_key(|found: &Found| {
        kind_and_number(&found.path).map(|(kind, number)| (kind.order(), number))
    });
    Ok(found)
}

fn look_at(entry: &Path) -> Option<Found> {
    let path = Path::new("/dev").join(entry.file_name()?);
    // Sub-devices are listed there too.
    kind_and_number(&path)?;
    let sysfs = fs::canonicalize(entry).ok()?;
    let text = fs::read_to_string(sysfs.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    let number = (major.parse().ok()?, minor.parse().ok()?);
    let inode = fs::metadata(&sysfs).ok()?.ino();
    let is_hardware = sysfs.join("device").exists();
    Some(Found {
        path,
        number,
        identity: Identity { sysfs, number, inode },
        is_hardware,
    })
}

#[cfg(test)]
mod tests {
    use super::{DEAF, UDEV, discover_in, is_about, is_done};
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    #[test]
    fn what_udev_has_written_before_the_node_was_made_is_about_another() {
        let (made, moment) = (SystemTime::now(), Duration::from_millis(50));
        let now = made + 2 * moment;
        assert!(is_about(made, made, now) && is_about(made + moment, made, now));
        assert!(!is_about(made - moment, made, now));
        assert!(is_about(made - moment, made, made + UDEV + moment));
    }

    #[test]
    fn a_udev_that_says_nothing_is_not_waited_for_for_ever() {
        let (made, moment) = (SystemTime::now(), Duration::from_millis(50));
        assert!(!is_done(None, Some(made), made + DEAF));
        assert!(is_done(None, Some(made), made + DEAF + moment));
        assert!(is_done(Some(made), Some(made), made) && is_done(Some(made), None, made));
        assert!(!is_done(None, None, made));
    }

    #[test]
    fn nodes_are_found_in_order_and_sub_devices_and_programs_are_told_apart() {
        let root = std::env::temp_dir().join(format!("vidcompat-discovery-{}", std::process::id()));
        let class = root.join("class");
        fs::create_dir_all(&class).expect("a folder");
        for (name, number, hardware) in [
            ("video10", "81:4\n", true),
            ("video2", "81:0\n", true),
            ("vbi0", "81:1\n", true),
            ("video3", "81:2\n", false),
            ("v4l-subdev0", "81:3\n", true),
            ("video4", "nonsense", true),
        ] {
            let device = root.join("devices").join(name);
            fs::create_dir_all(&device).expect("a folder");
            fs::write(device.join("dev"), number).expect("a file");
            if hardware {
                fs::create_dir(device.join("device")).expect("a folder");
            }
            symlink(&device, class.join(name)).expect("a link");
        }
        let found = discover_in(&class).expect("a class");
        let names: Vec<_> = found
            .iter()
            .map(|found| (found.name(), found.number.1, found.is_hardware))
            .collect();
        assert_eq!(
            names,
            [
                ("video2", 0, true),
                ("video3", 2, false),
                ("video10", 4, true),
                ("vbi0", 1, true)
            ]
        );
        // Another device in the same place is another device.
        let again = discover_in(&class).expect("a class");
        assert_eq!(found, again);
        let place = root.join("devices/video2");
        fs::rename(&place, root.join("old")).expect("ours");
        fs::create_dir_all(&place).expect("a folder");
        fs::write(place.join("dev"), "81:0\n").expect("a file");
        let again = discover_in(&class).expect("a class");
        assert_ne!(found[0].identity, again[0].identity);
        fs::remove_dir_all(&root).expect("ours");
        assert_eq!(discover_in(Path::new("/nowhere")).expect("none"), []);
    }
}
