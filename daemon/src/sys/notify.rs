//! A message of systemd's protocol, as its server takes it: who has sent it, and the file that came along.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg};

/// As many files as one message can have (`SCM_MAX_FD`, net/scm.h): of a message that is cut off nix shows none, and they
/// would stay open.
const MOST: usize = 253;

/// See the module.
#[derive(Debug)]
pub struct Notification {
    /// Bytes of the buffer that are the message.
    pub length: usize,
    /// The process that has sent it, by its number in our pid namespace; 0 where it has none there.
    pub pid: i32,
    /// What came along, close-on-exec.
    pub files: Vec<OwnedFd>,
    /// The buffer is too small for it, or we have no descriptors left.
    pub truncated: bool,
}

/// Takes a message from `socket`, which has `SO_PASSCRED`; `None` where none waits.
///
/// # Errors
/// The kernel's.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<Notification>> {
    let mut space = nix::cmsg_space!(UnixCredentials, [std::os::fd::RawFd; MOST]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(buffer)];
    let message = match recvmsg::<UnixAddr>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Ok(message) => message,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let mut notification = Notification {
        length: message.bytes,
        pid: 0,
        files: Vec::new(),
        truncated: message
            .flags
            .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC),
    };
    for control in message.cmsgs().into_iter().flatten() {
        match control {
            ControlMessageOwned::ScmCredentials(who) => notification.pid = who.pid(),
            ControlMessageOwned::ScmRights(files) => {
                // SAFETY: the kernel has made these descriptors for this very call, and nobody else knows of them.
                let owned = files.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                notification.files.extend(owned);
            }
            _ => {}
        }
    }
    Ok(Some(notification))
}
