//! The path of a unix socket of ours: who may have it, and that it goes with its daemon.
//!
//! Several daemons run side by side, each for devices of its own, and the first has the path. What a dead one has left
//! there is replaced, and nothing else: not a living daemon's socket, not a file of another kind. Who looks and then
//! acts does so under a lock on the folder, so that two daemons that begin at once do not remove each other's.
//!
//! A socket that somebody keeps for us goes on listening while there is no daemon: who connects meanwhile waits for the next
//! one, which takes it over ([`Claim::again`]).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, getsockname, getsockopt,
    sockopt::{self, PeerCredentials},
};
use rustix::fs::{FlockOperation, Mode};

/// How long another daemon may hold the folder's lock: it holds it for a few system calls.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a socket is for decides who may connect, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A stream, for our own user.
    Control,
    /// Messages, for everybody: what is asked there is proved by a token.
    Shim,
    /// A stream, for our own user and a group.
    Metrics,
}

impl Kind {
    const fn socket(self) -> SockType {
        match self {
            Self::Control | Self::Metrics => SockType::Stream,
            Self::Shim => SockType::SeqPacket,
        }
    }

    const fn mode(self) -> u32 {
        match self {
            Self::Control => 0o600,
            Self::Metrics => 0o660,
            Self::Shim => 0o666,
        }
    }

    /// Connections that wait to be accepted: beyond, `connect` waits. Few, because the next one waits for all of them.
    const fn backlog(self) -> i32 {
        match self {
            Self::Control | Self::Metrics => 16,
            Self::Shim => 128,
        }
    }
}

/// Why there is no such socket. Each message is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// A living daemon's.
    #[error("{path} is in use by process {pid}")]
    Taken {
        /// As asked for.
        path: PathBuf,
        /// Who listens there.
        pid: i32,
    },
    /// Something that a daemon has not made.
    #[error("{0} exists and is no socket")]
    NotSocket(PathBuf),
    /// Somebody listens there who speaks another way.
    #[error("{0} is a socket of another program")]
    NotOurs(PathBuf),
    /// Another daemon begins or ends, and hangs.
    #[error("{0} is locked by another process")]
    Locked(PathBuf),
    /// Anything else.
    #[error("{path} cannot be made ({source})")]
    System {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The path, and the socket that listens there. Dropped: the path is free, unless somebody keeps the socket.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    listener: OwnedFd,
    /// `st_dev` and `st_ino` of what we have made.
    identity: (u64, u64),
    /// Somebody keeps the socket when we end.
    stays: bool,
}

impl Claim {
    /// Makes the folder of `path` (0755) if need be, and a socket of this kind there, which does not block.
    ///
    /// # Errors
    /// See [`ClaimError`]; nothing was taken from anybody.
    pub fn new(path: &Path, kind: Kind) -> Result<Self, ClaimError> {
        let system = |source: io::Error| ClaimError::System {
            path: path.to_owned(),
            source,
        };
        let folder = folder_of(path);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .map_err(system)?;
        let _lock = lock(folder)?;
        make_room(path, kind)?;
        let listener = listen(path, kind).map_err(|errno| system(errno.into()))?;
        let made = fs::symlink_metadata(path).map_err(system)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            identity: (made.dev(), made.ino()),
            stays: false,
        })
    }

    /// The socket that a daemon before us has made at `path`, and that has listened since. `None`: it is of another path or
    /// kind, or another one stands there by now; then it serves nobody.
    #[must_use]
    pub fn again(path: &Path, kind: Kind, listener: OwnedFd) -> Option<Self> {
        let _lock = lock(folder_of(path)).ok()?;
        let is_same_path =
            getsockname::<UnixAddr>(listener.as_raw_fd()).is_ok_and(|address| address.path() == Some(path));
        let is_same_kind = getsockopt(&listener, sockopt::SockType) == Ok(kind.socket());
        let is_listening = getsockopt(&listener, sockopt::AcceptConn) == Ok(true);
        if !(is_same_path && is_same_kind && is_listening) {
            return None;
        }
        // Both ways lead to who called listen(2). Who queues there already is before us, and may fill the queue.
        let who = getsockopt(&listener, PeerCredentials).ok()?.pid();
        match listening(path, kind) {
            Ok(pid) if pid == who => {}
            Err(Errno::EAGAIN) => {}
            _ => return None,
        }
        // Once more: from now on it is we who are found to listen there.
        socket::listen(&listener, Backlog::new(kind.backlog()).ok()?).ok()?;
        let found = fs::symlink_metadata(path).ok()?;
        Some(Self {
            path: path.to_owned(),
            listener,
            identity: (found.dev(), found.ino()),
            stays: true,
        })
    }

    /// Does somebody keep the socket?
    #[must_use]
    pub fn stays(&self) -> bool {
        self.stays
    }

    /// Somebody keeps the socket: it goes on when this is dropped, and so the path stays.
    pub fn stay(&mut self) {
        self.stays = true;
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Claim {
    /// The socket that listens.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // Whatever goes wrong: a socket that nobody listens at is replaced by the next daemon.
        let _lock = lock(folder_of(&self.path));
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the socket stays behind");
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Held until the file is dropped.
fn lock(folder: &Path) -> Result<File, ClaimError> {
    let system = |source| ClaimError::System {
        path: folder.to_owned(),
        source,
    };
    let file = File::open(folder).map_err(system)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(ClaimError::Locked(folder.to_owned())),
            Err(errno) => return Err(system(errno.into())),
        }
    }
}

/// Removes what a dead daemon has left at `path`.
fn make_room(path: &Path, kind: Kind) -> Result<(), ClaimError> {
    let system = |source: io::Error| ClaimError::System {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(system(error)),
        Ok(found) if !found.file_type().is_socket() => Err(ClaimError::NotSocket(path.to_owned())),
        Ok(_) => match listening(path, kind) {
            Ok(pid) => Err(ClaimError::Taken {
                path: path.to_owned(),
                pid,
            }),
            // Whoever listens there with a socket of another kind is no daemon of ours, and alive.
            Err(Errno::EPROTOTYPE) => Err(ClaimError::NotOurs(path.to_owned())),
            Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(system),
            Err(errno) => Err(system(errno.into())),
        },
    }
}

/// The process that listens at `path`. It is asked nothing, and not waited for.
fn listening(path: &Path, kind: Kind) -> Result<i32, Errno> {
    let socket = socket::socket(
        AddressFamily::Unix,
        kind.socket(),
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    match socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => Ok(getsockopt(&socket, PeerCredentials)?.pid()),
        Err(errno) => Err(errno),
    }
}

fn listen(path: &Path, kind: Kind) -> Result<OwnedFd, Errno> {
    let socket = socket::socket(
        AddressFamily::Unix,
        kind.socket(),
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    // The file that bind makes takes its mode from the socket, less the umask (unix_bind_bsd in net/unix/af_unix.c): there
    // is no moment in which it has another, and no path that somebody could exchange under a chmod.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(kind.mode()))
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    let address = UnixAddr::new(path)?;
    without_umask(|| socket::bind(socket.as_raw_fd(), &address))?;
    socket::listen(&socket, Backlog::new(kind.backlog())?)?;
    Ok(socket)
}

/// Runs `act` with a umask of 0, which is the whole process's: nobody else of ours makes files meanwhile.
fn without_umask<T>(act: impl FnOnce() -> T) -> T {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let before = rustix::process::umask(Mode::empty());
    let outcome = act();
    rustix::process::umask(before);
    outcome
}

#[cfg(test)]
mod tests {
    use super::{Claim, ClaimError, Kind};
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
    use std::fs;
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    /// A folder of this test's own, which does not exist yet.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("vidcompat-claim-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn the_folder_is_made_who_may_connect_is_the_kinds_and_the_path_goes_with_the_claim() {
        let folder = folder("new");
        let path = folder.join("control.sock");
        for (kind, mode) in [(Kind::Control, 0o600), (Kind::Shim, 0o666)] {
            let claim = Claim::new(&path, kind).expect("a free path");
            let made = fs::metadata(&path).expect("a socket").permissions().mode();
            assert_eq!(made & 0o7777, mode, "{kind:?}");
            drop(claim);
            assert!(!path.exists());
        }
        fs::remove_dir(&folder).expect("an empty folder");
    }

    #[test]
    fn a_living_daemons_socket_stays_and_its_process_is_named() {
        let folder = folder("taken");
        let path = folder.join("control.sock");
        let first = Claim::new(&path, Kind::Control).expect("a new folder");
        let us = i32::try_from(std::process::id()).expect("a pid");
        match Claim::new(&path, Kind::Control) {
            Err(ClaimError::Taken { pid, .. }) => assert_eq!(pid, us),
            other => panic!("{other:?}"),
        }
        assert!(path.exists());
        drop(first);
        assert!(Claim::new(&path, Kind::Control).is_ok());
        fs::remove_dir(&folder).expect("an empty folder");
    }

    #[test]
    fn a_living_programs_socket_of_another_kind_is_not_ours_to_replace() {
        let folder = folder("other");
        let path = folder.join("shim.sock");
        let claim = Claim::new(&path, Kind::Control).expect("a new folder");
        assert!(matches!(
            Claim::new(&path, Kind::Shim),
            Err(ClaimError::NotOurs(_))
        ));
        drop(claim);
        fs::remove_dir(&folder).expect("an empty folder");
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_file_of_another_kind_is_not() {
        let folder = folder("stale");
        fs::create_dir(&folder).expect("a new folder");
        let path = folder.join("control.sock");
        drop(UnixListener::bind(&path).expect("a free path"));
        assert!(path.exists());
        drop(Claim::new(&path, Kind::Control).expect("nobody listens"));
        fs::write(&path, "precious").expect("a free path");
        assert!(matches!(
            Claim::new(&path, Kind::Control),
            Err(ClaimError::NotSocket(_))
        ));
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
        fs::remove_dir_all(&folder).expect("ours");
    }

    #[test]
    fn a_socket_that_somebody_keeps_is_taken_over_with_those_who_wait_there() {
        let folder = folder("again");
        let path = folder.join("shim.sock");
        let connect = || {
            let socket = socket::socket(
                AddressFamily::Unix,
                SockType::SeqPacket,
                SockFlag::SOCK_NONBLOCK,
                None,
            )
            .expect("a socket");
            let address = UnixAddr::new(&path).expect("a path");
            socket::connect(socket.as_raw_fd(), &address).map(|()| socket)
        };
        let mut claim = Claim::new(&path, Kind::Shim).expect("a new folder");
        let kept = claim.as_fd().try_clone_to_owned().expect("a descriptor");
        claim.stay();
        let before = connect().expect("it listens");
        drop(claim);
        let between = connect().expect("it still listens");
        for _ in 0..3 {
            let kept = kept.try_clone().expect("a descriptor");
            let again = Claim::again(&path, Kind::Shim, kept).expect("the same socket");
            assert_eq!(again.path(), path);
            drop(again);
        }
        let again =
            Claim::again(&path, Kind::Shim, kept.try_clone().expect("a descriptor")).expect("the same");
        // The first two are clients, and the next ones ours.
        for client in [&before, &between] {
            let accepted = socket::accept(again.as_fd().as_raw_fd()).expect("it waits");
            socket::send(client.as_raw_fd(), b"x", socket::MsgFlags::empty()).expect("connected");
            let mut byte = [0];
            let got = socket::recv(accepted, &mut byte, socket::MsgFlags::empty());
            assert_eq!((got, byte), (Ok(1), *b"x"));
        }

        // Another path, another kind, and another socket at the path.
        let of = |path: &std::path::Path, kind| {
            Claim::again(path, kind, kept.try_clone().expect("a descriptor")).is_some()
        };
        assert!(!of(&folder.join("other.sock"), Kind::Shim));
        assert!(!of(&path, Kind::Control));
        assert!(of(&path, Kind::Shim));
        fs::remove_file(&path).expect("ours");
        assert!(!of(&path, Kind::Shim), "nobody could find it");
        fs::remove_dir_all(&folder).expect("ours");
    }

    #[test]
    fn what_stands_at_the_path_in_the_end_but_is_not_ours_stays() {
        let folder = folder("replaced");
        let path = folder.join("control.sock");
        let claim = Claim::new(&path, Kind::Control).expect("a new folder");
        fs::remove_file(&path).expect("ours");
        let _another = UnixListener::bind(&path).expect("a free path");
        drop(claim);
        assert!(path.exists());
        fs::remove_dir_all(&folder).expect("ours");
    }
}
