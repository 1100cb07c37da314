//! The socket that the daemon speaks to (sd_notify(3)), and what it says.
//!
//! The socket lies in a folder of its own that only we and root can enter: an abstract one could be filled by anybody, and the
//! daemon waits where it is full.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use crate::sys;

/// As much as systemd reads (`NOTIFY_BUFFER_MAX`).
const LONGEST: usize = 4096;

/// See the module. Dropped: the path is gone.
#[derive(Debug)]
pub(super) struct Messages {
    socket: UnixDatagram,
    folder: PathBuf,
}

/// What the daemon has said. Several things can be said at once.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) ready: bool,
    pub(super) stopping: bool,
    pub(super) watchdog: bool,
    /// To be kept or let go of.
    pub(super) file: Option<(String, Change)>,
}

#[derive(Debug)]
pub(super) enum Change {
    Put(OwnedFd),
    Remove,
}

impl Messages {
    /// A socket in a new folder below `parent`, which is made if need be.
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        let folder = parent.join(format!("keeper.{}", std::process::id()));
        // Whoever had our number is dead.
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => DirBuilder::new().mode(0o700).create(&folder)?,
        }
        let socket = UnixDatagram::bind(folder.join("notify"));
        // From here on the folder goes with us.
        let messages = Self {
            socket: socket.inspect_err(|_| drop(fs::remove_dir(&folder)))?,
            folder,
        };
        setsockopt(&messages.socket, sockopt::PassCred, &true)?;
        Ok(messages)
    }

    /// Where the daemon finds it.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("notify")
    }

    /// The next message of `daemon`, if one waits. Those of others are dropped, and so is what makes no sense.
    pub(super) fn next(&self, daemon: Pid) -> Option<Message> {
        let mut buffer = [0; LONGEST];
        loop {
            let received = match sys::receive(&self.socket, &mut buffer) {
                Ok(received) => received?,
                Err(error) => {
                    tracing::warn!(%error, "the daemon cannot be heard");
                    return None;
                }
            };
            if received.pid != daemon.as_raw() {
                tracing::debug!(pid = received.pid, "a message of a stranger is dropped");
            } else if received.truncated {
                tracing::warn!(
                    "a message of the daemon is too long, or no descriptor is left: it is dropped"
                );
            } else {
                return Some(understand(&buffer[..received.length], received.files));
            }
        }
    }
}

impl AsFd for Messages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::debug!(%error, "the keeper's socket stays behind");
        }
    }
}

fn understand(text: &[u8], mut files: Vec<OwnedFd>) -> Message {
    let mut message = Message::default();
    // systemd's, where a file is stored without a name.
    let mut name = "stored";
    let (mut store, mut remove) = (false, false);
    for line in text.split(|byte| *byte == b'\n') {
        match line {
            b"READY=1" => message.ready = true,
            b"STOPPING=1" => message.stopping = true,
            b"WATCHDOG=1" => message.watchdog = true,
            b"FDSTORE=1" => store = true,
            b"FDSTOREREMOVE=1" => remove = true,
            _ => {
                // What we do not know is none of our affair: STATUS, FDPOLL (we never look).
                if let Some(value) = line.strip_prefix(b"FDNAME=") {
                    // A name that is none is refused where it is to be kept.
                    name = std::str::from_utf8(value).unwrap_or_default();
                }
            }
        }
    }
    message.file = match (store, remove, files.pop()) {
        // A name has one file.
        (true, false, Some(fd)) if files.is_empty() => Some((name.to_owned(), Change::Put(fd))),
        (true, ..) => {
            tracing::warn!(name, "the daemon stores a file, but there is not exactly one");
            None
        }
        (false, true, _) => Some((name.to_owned(), Change::Remove)),
        (false, false, _) => None,
    };
    message
}

#[cfg(test)]
mod tests {
    use super::{Change, Messages, understand};
    use nix::unistd::Pid;
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    fn null() -> OwnedFd {
        File::open("/dev/null").expect("a null device").into()
    }

    #[test]
    fn several_things_are_said_at_once_and_nonsense_says_nothing() {
        let message = understand(b"READY=1\nSTATUS=x\nWATCHDOG=1\nFDNAME=a.b\n", vec![]);
        assert!(message.ready && message.watchdog && !message.stopping && message.file.is_none());
        let message = understand(b"FDSTORE=1\nFDNAME=a.b\nFDPOLL=0", vec![null()]);
        assert!(matches!(message.file, Some((name, Change::Put(_))) if name == "a.b"));
        let message = understand(b"FDNAME=a.b\nFDSTOREREMOVE=1", vec![]);
        assert!(matches!(message.file, Some((name, Change::Remove)) if name == "a.b"));
        for (text, files) in [
            (&b"FDSTORE=1\nFDNAME=a"[..], vec![]),
            (b"FDSTORE=1\nFDNAME=a", vec![null(), null()]),
            (b"FDSTORE=1\nFDSTOREREMOVE=1\nFDNAME=a", vec![null()]),
            (b"READY=0\nREADY", vec![null()]),
            (b"\xff\n\n=\n", vec![]),
            (b"", vec![]),
        ] {
            let message = understand(text, files);
            assert!(!message.ready && message.file.is_none(), "{text:?}");
        }
    }

    #[test]
    fn only_the_daemon_is_heard_and_the_folder_goes_with_the_socket() {
        let parent = std::env::temp_dir().join(format!("vidcompat-messages-{}", std::process::id()));
        let messages = Messages::new(&parent).expect("a socket");
        let us = Pid::this();
        assert!(messages.next(us).is_none());
        let client = UnixDatagram::unbound().expect("a socket");
        client.connect(messages.path()).expect("it listens");
        client.send(b"READY=1").expect("room");
        assert!(
            messages.next(Pid::from_raw(us.as_raw() + 1)).is_none(),
            "of a stranger"
        );
        client.send(&[b'x'; 5000]).expect("room");
        client.send(b"STOPPING=1").expect("room");
        assert!(
            messages.next(us).is_some_and(|message| message.stopping),
            "the long one is dropped"
        );
        drop(messages);
        let left = Command::new("ls").arg(&parent).output().expect("ls").stdout;
        assert_eq!(left, b"");
        std::fs::remove_dir(&parent).expect("empty");
    }
}
