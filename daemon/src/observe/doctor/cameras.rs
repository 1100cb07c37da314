//! The V4L2 devices of this machine: what can be seen of each without disturbing it.

use std::io;
use std::path::{Path, PathBuf};

use vidcompat_proto::Errno;
use vidcompat_proto::abi::format::{capture_types, output_types};
use vidcompat_proto::abi::v4l2::{V4l2RequestBuffers, memory};

use super::camera::{Facts, Memory, Ours};
use super::look::{cuse_nodes, device, named, names, number, owner, patiently, text, users};
use super::{Finding, Machine};
use crate::backend::v4l2::RealNode;
use crate::devices::{FIRST_NUMBER, MAJOR, kinds};
use crate::resolve::importer_of;
use crate::run::nodes::Number;

/// Where the real node lies while ours has its name.
const ASIDE: &str = "/dev/vidcompat";
/// `V4L2_BUF_CAP_SUPPORTS_MMAP`, `_USERPTR`, `_DMABUF`
const SUPPORTS_MMAP: u32 = 1;
const SUPPORTS_USERPTR: u32 = 2;
const SUPPORTS_DMABUF: u32 = 4;
/// `V4L2_CAP_STREAMING`
const STREAMING: u32 = 0x0400_0000;

pub(super) fn look(machine: &Machine) -> Vec<Facts> {
    let cuse = cuse_nodes();
    let mut cameras = Vec::new();
    for name in names("/sys/class/video4linux") {
        let folder = Path::new("/sys/class/video4linux").join(&name);
        let Some(real) = text(folder.join("dev")).and_then(|text| number(&text)) else {
            continue;
        };
        // Sub-devices and media nodes have no buffers and no programs of their own.
        let Some((prefix, first_minor, at)) = kind(&name) else {
            continue;
        };
        cameras.push(camera(machine, &name, real, (prefix, first_minor, at), &cuse));
    }
    cameras
}

/// What is to be said where there is no device.
pub(super) fn none() -> Finding {
    Finding::warning("devices", "there is no V4L2 device")
        .advise("plug one in, or load its driver's module (`modprobe vivid` makes one to try)")
}

/// What the name of a node says: its kind, the first minor of ours of that kind, and its number.
fn kind(name: &str) -> Option<(&'static str, u32, u32)> {
    kinds().find_map(|(prefix, first_minor)| {
        let at = name.strip_prefix(prefix)?.parse().ok()?;
        Some((prefix, first_minor, at))
    })
}

fn camera(
    machine: &Machine,
    name: &str,
    real: Number,
    (prefix, first_minor, at): (&str, u32, u32),
    cuse: &[(Number, PathBuf)],
) -> Facts {
    let path = Path::new("/dev").join(name);
    let aside = Path::new(ASIDE).join(name);
    let node = [&path, &aside]
        .into_iter()
        .find(|path| device(path) == Some(real));
    let our_number = Number {
        major: MAJOR,
        minor: first_minor + at,
    };
    let ours = cuse
        .iter()
        .find(|(number, _)| *number == our_number && at < FIRST_NUMBER);
    let taken_over = device(&path) == Some(our_number);
    let side = PathBuf::from(format!("/dev/{prefix}{}", FIRST_NUMBER + at));
    let ours = match ours {
        Some((_, told)) => our_node(if taken_over { &path } else { told }),
        None => in_the_way(&side),
    };
    let (named_as, found) = match node {
        // What lies aside is not for everybody to see.
        None if taken_over => (
            name.to_owned(),
            Memory::Denied {
                owner: "vidcompatd keeps it aside".to_owned(),
                advice: "programs open ours".to_owned(),
            },
        ),
        None => (
            name.to_owned(),
            Memory::Broken(format!(
                "there is no node for {}:{} at {}",
                real.major,
                real.minor,
                path.display()
            )),
        ),
        Some(node) => {
            let opened = node.clone();
            patiently(move || asked(&opened)).unwrap_or_else(|| (name.to_owned(), Memory::Hangs))
        }
    };
    // What the driver calls itself is not to be had of a node that may not be opened; what sysfs says is.
    let named_as = match text(Path::new("/sys/class/video4linux").join(name).join("name")) {
        Some(told) if named_as == name => told,
        _ => named_as,
    };
    let open = match found {
        Memory::Busy => users(&[&path, &aside, &side]),
        _ => Vec::new(),
    };
    Facts {
        path: path.display().to_string(),
        name: named_as,
        memory: found,
        importer: node
            .and_then(|node| rdev(node))
            .and_then(importer_of)
            .map(|importer| importer.to_string()),
        users: match (open.is_empty(), machine.root) {
            (false, _) => named(&open),
            (true, true) => "a process".to_owned(),
            (true, false) => "a process that this user cannot see".to_owned(),
        },
        ours,
        taken_over,
        can_be_served: at < FIRST_NUMBER,
        daemon_runs: machine.daemon.is_ok() || machine.daemon_pid.is_some(),
    }
}

fn rdev(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    Some(std::fs::metadata(path).ok()?.rdev())
}

/// What is at the path where ours would be.
fn in_the_way(path: &Path) -> Ours {
    let Some(there) = device(path) else {
        return Ours::None;
    };
    let name = path.file_name().unwrap_or_default();
    let what = text(Path::new("/sys/class/video4linux").join(name).join("name"));
    Ours::Other {
        path: path.display().to_string(),
        what: what.unwrap_or_else(|| format!("another device ({there})")),
    }
}

/// Driver and card, and what memory it takes.
fn asked(path: &Path) -> (String, Memory) {
    let node = match RealNode::open(path, libc::O_RDWR) {
        Ok(node) => node,
        Err(error) => return (file_name(path), refused(path, &error)),
    };
    let Ok(capability) = node.capability() else {
        return (
            file_name(path),
            Memory::Broken("it is no V4L2 device: it does not answer QUERYCAP".to_owned()),
        );
    };
    let name = match capability.card == capability.driver {
        true => capability.driver.clone(),
        false => format!("{}, {}", capability.driver, capability.card),
    };
    let caps = capability.device_caps().bits();
    let queues: Vec<_> = capture_types(caps)
        .take(1)
        .chain(output_types(caps).take(1))
        .collect();
    if caps & STREAMING == 0 || queues.is_empty() {
        return (name, Memory::NoBuffers);
    }
    let mut all = None;
    for buf_type in queues {
        match of_queue(|memory| {
            let mut request = V4l2RequestBuffers {
                buf_type,
                memory,
                ..V4l2RequestBuffers::default()
            };
            node.reqbufs(&mut request).map(|()| request.capabilities)
        }) {
            Err(Errno::EBUSY) => return (name, Memory::Busy),
            Err(errno) => return (name, Memory::Broken(format!("REQBUFS fails ({errno})"))),
            Ok(has) => {
                let (userptr, mmap, dmabuf, vb2) = all.unwrap_or((true, true, true, true));
                all = Some((userptr && has.0, mmap && has.1, dmabuf && has.2, vb2 && has.3));
            }
        }
    }
    let (userptr, mmap, dmabuf, vb2) = all.unwrap_or_default();
    (
        name,
        Memory::Known {
            userptr,
            mmap,
            dmabuf,
            vb2,
        },
    )
}

/// Whether a queue takes USERPTR, MMAP, DMABUF, and whether it is one of vb2's. `reqbufs` asks it for no buffers of a kind of
/// memory: that frees only what this file has, which is nothing, and it tells what it can in its answer; an old driver says
/// EINVAL for what it has not.
fn of_queue(mut reqbufs: impl FnMut(u32) -> Result<u32, Errno>) -> Result<(bool, bool, bool, bool), Errno> {
    let mut has = [false; 3];
    for (at, memory) in [memory::MMAP, memory::USERPTR, memory::DMABUF]
        .into_iter()
        .enumerate()
    {
        match reqbufs(memory) {
            Ok(0) => has[at] = true,
            Ok(told) => {
                let can = |bit: u32| told & bit != 0;
                return Ok((
                    can(SUPPORTS_USERPTR),
                    can(SUPPORTS_MMAP),
                    can(SUPPORTS_DMABUF),
                    true,
                ));
            }
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    let [mmap, userptr, dmabuf] = has;
    Ok((userptr, mmap, dmabuf, false))
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn refused(path: &Path, error: &io::Error) -> Memory {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            let (owner, advice) = owner(path);
            Memory::Denied { owner, advice }
        }
        Some(libc::EBUSY) => Memory::Busy,
        _ => Memory::Broken(format!("it cannot be opened ({error})")),
    }
}

/// Does our node take USERPTR?
fn our_node(path: &Path) -> Ours {
    let opened = path.to_owned();
    let path = path.display().to_string();
    match patiently(move || asked(&opened).1) {
        None => Ours::Fails {
            path,
            why: "does not answer".to_owned(),
        },
        Some(Memory::Denied { owner, advice }) => Ours::Denied { path, owner, advice },
        Some(Memory::Known { userptr: true, .. } | Memory::Busy | Memory::NoBuffers) => {
            Ours::Answers { path }
        }
        Some(Memory::Known { .. }) => Ours::Fails {
            path,
            why: "takes no USERPTR".to_owned(),
        },
        Some(Memory::Broken(why)) => Ours::Fails {
            path,
            why: format!("does not work: {why}"),
        },
        Some(Memory::Hangs) => Ours::None,
    }
}

#[cfg(test)]
mod tests {
    use super::{kind, of_queue};
    use vidcompat_proto::Errno;
    use vidcompat_proto::abi::v4l2::memory;

    #[test]
    fn nodes_that_programs_stream_from_are_looked_at_and_others_are_not() {
        assert_eq!(kind("video10"), Some(("video", 256, 10)));
        assert_eq!(
            kind("swradio2").map(|(prefix, _, at)| (prefix, at)),
            Some(("swradio", 2))
        );
        for other in ["v4l-subdev0", "media0", "video"] {
            assert_eq!(kind(other), None, "{other}");
        }
    }

    #[test]
    fn a_queue_tells_what_it_takes_or_is_asked_for_each() {
        let mut asked = Vec::new();
        let told = of_queue(|memory| {
            asked.push(memory);
            Ok(5)
        });
        assert_eq!((told, asked), (Ok((false, true, true, true)), vec![memory::MMAP]));
        // v4l2loopback.
        let old = of_queue(|memory| {
            if memory == memory::MMAP {
                Ok(0)
            } else {
                Err(Errno::EINVAL)
            }
        });
        assert_eq!(old, Ok((false, true, false, false)));
        assert_eq!(of_queue(|_| Err(Errno::EBUSY)), Err(Errno::EBUSY));
    }
}
