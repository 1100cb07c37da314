//! Tells that something has changed about the machine's devices, and not what: whoever wants to know looks at all of it.
//!
//! The kernel's own uevents (group 1 of NETLINK_KOBJECT_UEVENT) and not udev's (group 2): they come without udev and in a
//! network namespace of our own (`PrivateNetwork=`), where udev's do not. That udev has done its part, such as the links of
//! `/dev/v4l/by-id`, is read from its files ([`super::Found::is_settled`]). Nothing is believed that a message says, so it does not matter
//! who has sent it, and one that is lost because the socket is full is made good by looking. Where there is no such socket
//! somebody must look now and then.
//!
//! inotify tells of changes of owner, mode and list of single nodes (udev's, and logind's when another person sits at the
//! screen).

use std::collections::HashMap;
use std::fs::File;
use std::future::pending;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, setsockopt, sockopt,
};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::sys::{Watched, register};

/// The kernel's group.
const KERNEL: u32 = 1;
/// Bytes that may wait for us; a bus full of devices sends some hundred messages of a few hundred bytes.
const ROOM: usize = 1 << 20;
/// Subsystems whose devices matter to us.
const SUBSYSTEMS: [&[u8]; 3] = [b"SUBSYSTEM=video4linux", b"SUBSYSTEM=graphics", b"SUBSYSTEM=drm"];

/// See the module.
#[derive(Debug)]
pub struct Watcher {
    uevents: Option<Source>,
    nodes: Option<Source>,
    watched: HashMap<PathBuf, i32>,
}

/// A file that has something to tell.
#[derive(Debug)]
struct Source {
    file: Arc<File>,
    ready: Watched,
    /// It cannot be read any more.
    is_deaf: AtomicBool,
}

impl Source {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = Arc::new(File::from(fd));
        let ready = register(Arc::clone(&file), EpollFlags::EPOLLIN)?;
        Ok(Self {
            file,
            ready,
            is_deaf: AtomicBool::new(false),
        })
    }

    fn hears(&self) -> bool {
        !self.is_deaf.load(Ordering::Relaxed)
    }

    /// Waits until what can be read, all of which `is_news` reads, is news.
    async fn heard(source: Option<&Self>, is_news: impl Fn(&File) -> io::Result<bool>) {
        let Some(Self { file, ready, .. }) = source.filter(|source| source.hears()) else {
            return pending().await;
        };
        loop {
            match ready.changed().await.and_then(|()| is_news(file)) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "changes of devices cannot be heard of any more; they are noticed a little later");
                    if let Some(source) = source {
                        source.is_deaf.store(true, Ordering::Relaxed);
                    }
                    // Something may have changed, and whoever listens is to look now and then from now on.
                    return;
                }
            }
        }
    }
}

impl Watcher {
    /// From now on. What cannot be watched is told, and must be looked at now and then.
    ///
    /// Must be called in a tokio runtime.
    #[must_use]
    pub fn start() -> Self {
        let told = |what: &'static str| {
            move |error: &io::Error| {
                tracing::warn!(%error, "no {what}: changes are noticed a little later");
            }
        };
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let nodes = inotify::init(flags).map_err(io::Error::from);
        Self {
            uevents: uevents().and_then(Source::new).inspect_err(told("uevents")).ok(),
            nodes: nodes.and_then(Source::new).inspect_err(told("inotify")).ok(),
            watched: HashMap::new(),
        }
    }

    /// Will it be told when devices come and go?
    #[must_use]
    pub fn hears(&self) -> bool {
        self.uevents.as_ref().is_some_and(Source::hears)
    }

    /// Watches who may open these nodes, and no others.
    pub fn watch<'a>(&mut self, paths: impl Iterator<Item = &'a Path>) {
        let Some(nodes) = &self.nodes else { return };
        let mut before = std::mem::take(&mut self.watched);
        for path in paths {
            // Also one that is watched already: the node that has the name now may be another.
            let flags = WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
            match inotify::add_watch(&*nodes.file, path, flags) {
                Ok(watch) => drop(self.watched.insert(path.to_owned(), watch)),
                Err(error) => tracing::debug!(node = %path.display(), %error, "not watched"),
            }
            if before.get(path) == self.watched.get(path) {
                before.remove(path);
            }
        }
        for watch in before.into_values() {
            // Of a node that is gone the watch is gone too.
            let _ = inotify::remove_watch(&*nodes.file, watch);
        }
    }

    /// Returns when something may have changed.
    pub async fn changed(&self) {
        tokio::select! {
            () = Source::heard(self.uevents.as_ref(), is_news) => {}
            () = Source::heard(self.nodes.as_ref(), read_away) => {}
        }
    }
}

fn uevents() -> io::Result<OwnedFd> {
    let socket = socket::socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    // More than everybody may have needs CAP_NET_ADMIN; a smaller one will do.
    if setsockopt(&socket, sockopt::RcvBufForce, &ROOM).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &ROOM)?;
    }
    socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
    Ok(socket)
}

/// Reads all that is there: is any of it about devices such as ours? What was lost may have been.
fn is_news(socket: &File) -> io::Result<bool> {
    let mut news = false;
    let mut message = [0; 8192];
    loop {
        match socket::recv(socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
            Ok(length) => news |= concerns(&message[..length]),
            Err(Errno::ENOBUFS) => news = true,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(news),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn concerns(message: &[u8]) -> bool {
    let mut fields = message.split(|byte| *byte == 0);
    fields.any(|field| SUBSYSTEMS.contains(&field))
}

/// Reads all that is there, whatever it says.
fn read_away(inotify: &File) -> io::Result<bool> {
    let mut events = [0; 4096];
    let mut any = false;
    loop {
        match rustix::io::read(inotify, &mut events) {
            Ok(_) => any = true,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(any),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Source, Watcher, concerns};
    use std::fs::{self, Permissions};
    use std::io;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    #[test]
    fn only_messages_about_devices_such_as_ours_matter() {
        let message = |subsystem: &str| {
            format!("add@/devices/a/video4linux/video0\0ACTION=add\0SUBSYSTEM={subsystem}\0SEQNUM=1\0")
        };
        assert!(concerns(message("video4linux").as_bytes()));
        assert!(concerns(message("drm").as_bytes()));
        for other in ["video4linux2", "cuse", "block", ""] {
            assert!(!concerns(message(other).as_bytes()), "{other}");
        }
        assert!(!concerns(b""));
    }

    #[tokio::test]
    async fn one_that_cannot_be_read_any_more_says_so_once_and_is_deaf() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("two ends");
        drop(theirs);
        let source = Source::new(OwnedFd::from(ours)).expect("a source");
        assert!(source.hears());
        let fails = |_: &_| Err(io::ErrorKind::ConnectionReset.into());
        Source::heard(Some(&source), fails).await;
        assert!(!source.hears());
        let again = tokio::time::timeout(Duration::from_millis(50), Source::heard(Some(&source), fails));
        assert!(again.await.is_err());
    }

    #[tokio::test]
    async fn a_changed_mode_is_heard_of_and_silence_is_silence() {
        let path = std::env::temp_dir().join(format!("vidcompat-watch-{}", std::process::id()));
        fs::write(&path, "").expect("a file");
        let mut watcher = Watcher::start();
        // Nobody's devices come and go because of this.
        watcher.uevents = None;
        watcher.watch([&*path].into_iter());
        watcher.watch([&*path].into_iter());
        let hear = |limit| tokio::time::timeout(Duration::from_millis(limit), watcher.changed());
        assert!(hear(50).await.is_err());
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
        assert!(hear(5000).await.is_ok());
        assert!(hear(50).await.is_err());
        watcher.watch(std::iter::empty());
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("ours");
        let _ = tokio::time::timeout(Duration::from_millis(50), watcher.changed()).await;
        fs::remove_file(&path).expect("ours");
    }
}
