//! Takeover: ours has the name of the real node, which is aside in `/dev/vidcompat` meanwhile, and comes back whatever happens.
//!
//! The real node is renamed and not made anew, so it keeps its inode, and with it what others have attached to that: owner,
//! mode, list, watches. The kernel removes a node by its name in `/dev` when its device goes, and only one with that device's
//! number (devtmpfs): not one that is aside, which we remove. Links such as those of `/dev/v4l/by-id` lead to the name,
//! so to ours. What programs find by device number, in `/sys/class/video4linux` or in udev's database is still the real device:
//! `/dev/video0` has another number than it, and who looks for its node by number finds none in `/dev`. (udev does the same
//! before it changes a node's owner or mode: it leaves one with another number alone.)
//!
//! - What was moved is in `/run/vidcompat/takeover/NAME` ([`Journal`]) before it is moved.
//! - Who has taken a name holds the lock `NAME.lock` beside it until it ends, however that is. Who has the lock may undo what the
//!   one before has left: the next daemon, `vidcompatd --give-back`.
//! - What there is to undo is seen from device numbers, which cannot be stale: the real one's is in sysfs, ours follows from the
//!   name. So undoing twice does no harm, nor does it when a step of the doing was never done.
//! - Where the kernel could not make the node of a device that comes, because the name was ours, it is made here. (That one the
//!   kernel does not remove when the device goes again, as it removes its own only: we do, as long as we run.)

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde::{Deserialize, Serialize};

use super::ASIDE;
use super::access::{Rights, apply, carry, rights};
use super::discovery::number_at;
use super::journal::{Folder, Lock, LockError};
use super::side_node::{kind_and_number, our_number};

/// Where the journals are.
const FOLDER: &str = "/run/vidcompat/takeover";

/// Why a name cannot be taken over or given back. Each message is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// Another daemon has done so.
    #[error("/dev/{name} is taken over by process {pid} already; it is left alone")]
    Taken {
        /// Of the node.
        name: String,
        /// Who has the lock, as far as it has said so.
        pid: String,
    },
    /// Something stands in the way.
    #[error(
        "{0} is neither the real node nor ours, so it is left alone; the real one is in {ASIDE}, or nowhere"
    )]
    Strange(PathBuf),
    /// A step failed.
    #[error("{what} failed ({source})")]
    System {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> TakeoverError {
    let what = format!("{what} {}", path.display());
    move |source| TakeoverError::System { what, source }
}

/// What is written down before it is done.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Journal {
    /// The real node's number.
    real: (u32, u32),
    /// Who may open the real node: for one that must be made anew.
    rights: Rights,
    /// Ours has these rights too, so that later changes of ours are meant for the real one.
    carried: bool,
}

/// A name that is ours. Dropped: it is the real node's again.
#[derive(Debug)]
pub struct Takeover {
    name: String,
    journal: Journal,
    folder: Folder,
    /// Given back, or left to who comes after us.
    ended: bool,
    _lock: Lock,
}

impl Takeover {
    /// Takes the lock for the real node `name`, and undoes what somebody else has left. The node is where it was.
    ///
    /// # Errors
    /// See [`TakeoverError`].
    pub fn begin(name: &str) -> Result<Self, TakeoverError> {
        let folder = Folder::open(Path::new(FOLDER)).map_err(failed("making", Path::new(FOLDER)))?;
        let lock = locked(&folder, name)?;
        undo(&folder, name)?;
        let place = place(name);
        let real = real_number(name).filter(|real| number_at(&place) == Some(*real));
        let real = real.ok_or_else(|| TakeoverError::Strange(place.clone()))?;
        let rights = rights(&place).map_err(failed("looking at", &place))?;
        Ok(Self {
            name: name.to_owned(),
            journal: Journal {
                real,
                rights,
                carried: false,
            },
            folder,
            ended: false,
            _lock: lock,
        })
    }

    /// Goes on with what a daemon before us has done, whose node `name` is still alive and has been handed to us. Where the
    /// real node has been given back meanwhile, it is moved aside again.
    ///
    /// # Errors
    /// See [`TakeoverError`].
    pub fn resume(name: &str) -> Result<Self, TakeoverError> {
        let folder = Folder::open(Path::new(FOLDER)).map_err(failed("making", Path::new(FOLDER)))?;
        let lock = locked(&folder, name)?;
        let (place, aside) = (place(name), aside(name));
        let strange = || TakeoverError::Strange(place.clone());
        let real = real_number(name).ok_or_else(strange)?;
        let there = [&aside, &place]
            .into_iter()
            .find(|path| number_at(path) == Some(real));
        let there = there.ok_or_else(strange)?;
        let mut takeover = Self {
            name: name.to_owned(),
            journal: Journal {
                real,
                rights: rights(there).map_err(failed("looking at", there))?,
                carried: false,
            },
            folder,
            // Until all of it is as it should be, what is there is not ours to undo.
            ended: true,
            _lock: lock,
        };
        if *there == place {
            takeover.move_aside()?;
        }
        takeover.ended = false;
        if number_at(&place).is_none() {
            let ours = our_number(&place).ok_or_else(|| TakeoverError::Strange(place.clone()))?;
            make(&place, ours).map_err(failed("making", &place))?;
            carry(&aside, &place).map_err(failed("setting the rights of", &place))?;
        }
        takeover.carried()?;
        Ok(takeover)
    }

    /// Moves the real node aside: from now on until ours is made nobody has the name.
    ///
    /// # Errors
    /// See [`TakeoverError`].
    pub fn move_aside(&mut self) -> Result<(), TakeoverError> {
        let (place, aside) = (place(&self.name), aside(&self.name));
        make_folder().map_err(failed("making", Path::new(ASIDE)))?;
        self.write()?;
        // Between this and what comes after only our own death can come.
        fs::rename(&place, &aside).map_err(failed("moving", &place))
    }

    /// Ours has the rights of the real node now: what is changed of ours is meant for the real one.
    ///
    /// # Errors
    /// See [`TakeoverError`].
    pub fn carried(&mut self) -> Result<(), TakeoverError> {
        self.journal.carried = true;
        self.write()
    }

    /// Where the real node is.
    #[must_use]
    pub fn aside(&self) -> PathBuf {
        aside(&self.name)
    }

    fn write(&self) -> Result<(), TakeoverError> {
        let bytes = serde_json::to_vec(&self.journal).map_err(io::Error::from);
        bytes
            .and_then(|bytes| self.folder.write(&self.name, &bytes))
            .map_err(failed("writing the journal of", &place(&self.name)))
    }

    /// The name is the real node's again, also while ours still has it: from one moment to the next.
    pub fn give_back(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match undo(&self.folder, &self.name) {
            Ok(Undone::Back) => {
                tracing::info!(node = %place(&self.name).display(), "the real node has its name again");
            }
            Ok(Undone::Gone | Undone::Nothing) => {}
            Err(error) => tracing::error!("{error}"),
        }
    }

    /// The name stays ours although we end: whoever is handed our node goes on ([`Takeover::resume`]).
    pub fn leave(mut self) {
        self.ended = true;
    }
}

impl Drop for Takeover {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Undoes what daemons that are no more have left, but for the names in `except`. `alive_stays`: nor where our node is still
/// alive, because somebody keeps it for the next daemon. What could not be undone is told; living daemons' names are left alone.
/// Returns the names that were given back.
///
/// # Errors
/// The last thing that could not be undone; everything else was.
pub fn give_back_all(except: &[String], alive_stays: bool) -> Result<Vec<String>, TakeoverError> {
    let (mut given, mut last) = (Vec::new(), Ok(()));
    let folder = Path::new(FOLDER);
    let left: BTreeSet<String> = [folder, Path::new(ASIDE)]
        .into_iter()
        .flat_map(names_in)
        .collect();
    for name in left {
        if except.contains(&name) || (alive_stays && is_alive(&name)) {
            continue;
        }
        let outcome = Folder::open(folder)
            .map_err(failed("making", folder))
            .and_then(|folder| {
                let _lock = locked(&folder, &name)?;
                undo(&folder, &name)
            });
        match outcome {
            Ok(Undone::Back) => {
                tracing::warn!(
                    node = %place(&name).display(),
                    "a vidcompatd that is no more had taken this name; the real node has it again"
                );
                given.push(name);
            }
            Ok(Undone::Gone | Undone::Nothing) => {}
            Err(error @ TakeoverError::Taken { .. }) => tracing::debug!("{error}"),
            Err(error) => {
                tracing::error!("{error}");
                last = Err(error);
            }
        }
    }
    last.map(|()| given)
}

/// The names of nodes in a folder of ours.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| kind_and_number(&place(name)).is_some())
        .collect()
}

fn locked(folder: &Folder, name: &str) -> Result<Lock, TakeoverError> {
    folder.lock(name).map_err(|error| match error {
        LockError::Taken(pid) => TakeoverError::Taken {
            name: name.to_owned(),
            pid,
        },
        LockError::System(source) => failed("locking", &place(name))(source),
    })
}

fn place(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

fn aside(name: &str) -> PathBuf {
    Path::new(ASIDE).join(name)
}

/// Nobody but root looks into it: who may open the real node may open ours.
fn make_folder() -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(ASIDE)
}

/// The number of the device that the kernel has under this name now.
fn real_number(name: &str) -> Option<(u32, u32)> {
    let text = fs::read_to_string(format!("/sys/class/video4linux/{name}/dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Has the kernel a device of our number for this name?
fn is_alive(name: &str) -> bool {
    let number = our_number(&place(name));
    number.is_some_and(|(major, minor)| Path::new(&format!("/sys/dev/char/{major}:{minor}")).exists())
}

fn make(path: &Path, (major, minor): (u32, u32)) -> io::Result<()> {
    let number = makedev(major.into(), minor.into());
    Ok(mknod(
        path,
        SFlag::S_IFCHR,
        Mode::S_IRUSR | Mode::S_IWUSR,
        number,
    )?)
}

/// What undoing has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undone {
    /// The real node was at its place, or what is there is nobody's business.
    Nothing,
    /// It is there again.
    Back,
    /// There is no device any more.
    Gone,
}

/// Whatever was done or half done for `name`: the real node is at its place afterwards, if there is a device. To be called with
/// the lock.
fn undo(folder: &Folder, name: &str) -> Result<Undone, TakeoverError> {
    let (place, aside) = (place(name), aside(name));
    let ours = our_number(&place);
    let journal: Option<Journal> = folder
        .read(name)
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let real = real_number(name);
    let is_real = |path: &Path| real.is_some() && number_at(path) == real;
    let at_place = number_at(&place);
    // A link, a file: nobody of ours has made it.
    let is_strange = fs::symlink_metadata(&place).is_ok()
        && (at_place.is_none() || (at_place != ours && at_place != real));
    let mut undone = Undone::Nothing;
    if is_real(&place) {
        // Never moved, given back, or made by the kernel for a device that came when the name was free.
        remove(&aside)?;
    } else if is_strange {
        if number_at(&aside).is_some() {
            return Err(TakeoverError::Strange(place));
        }
    } else {
        if real.is_some() && !is_real(&aside) {
            // A device that came while the name was ours: the kernel could not make its node.
            remove(&aside)?;
            make_folder().map_err(failed("making", Path::new(ASIDE)))?;
            let made = make(&aside, real.unwrap_or_default());
            made.map_err(failed("making", &aside))?;
            if let Some(journal) = &journal {
                apply(&journal.rights, &aside).map_err(failed("setting the rights of", &aside))?;
            }
        }
        if is_real(&aside) {
            // Who has the screen may have changed meanwhile, and logind has told ours.
            if at_place == ours && journal.as_ref().is_some_and(|journal| journal.carried) {
                carry(&place, &aside).map_err(failed("setting the rights of", &aside))?;
            }
            fs::rename(&aside, &place).map_err(failed("moving", &aside))?;
            undone = Undone::Back;
        } else {
            // No device, no node: of neither.
            remove(&aside)?;
            if at_place == ours && !is_alive(name) {
                remove(&place)?;
            }
            undone = Undone::Gone;
        }
    }
    folder
        .remove(name)
        .map_err(failed("removing the journal of", &place))?;
    Ok(undone)
}

fn remove(path: &Path) -> Result<(), TakeoverError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}
