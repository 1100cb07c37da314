//! The channel: one open of `/dev/cuse`, whole messages in and out.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use fuser::PollEvents;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use polyfuse_kernel::{FUSE_NOTIFY_POLL, fuse_notify_poll_wakeup_out, fuse_out_header};
use zerocopy::IntoBytes;

use super::interrupts::Interrupts;
use super::under_way::UnderWay;
use crate::survive::Tries;

/// Most bytes in one READ or WRITE: the kernel's `FUSE_DEFAULT_MAX_PAGES_PER_REQ` of 32 pages (fs/fuse/fuse_i.h).
pub const MAX_IO: u32 = 131_072;

/// The smallest buffer that holds every request: [`MAX_IO`] and the headers (fs/fuse/dev.c:1295), page-rounded. Its pages must
/// be there before anything is read: where the kernel has to make one for a process that is being killed it gives up
/// (`__get_user_pages`), and the request fails with `EIO` and is never sent again.
pub const READ_BUFFER: usize = 135_168;

/// `FUSE_NOTIFY_RESEND` (linux/fuse.h, 7.40)
const NOTIFY_RESEND: i32 = 7;

/// A connection to the kernel's CUSE driver.
#[derive(Debug)]
pub struct Channel {
    file: File,
    interrupts: Interrupts,
    under_way: UnderWay,
    tries: OnceLock<Arc<Tries>>,
}

impl Channel {
    /// Opens `/dev/cuse`, or what stands in for it.
    ///
    /// # Errors
    /// `ENOENT` where the module is not loaded, `EACCES` for all but root.
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        Ok(Self::over(
            OpenOptions::new().read(true).write(true).open(path)?.into(),
        ))
    }

    /// A channel over a descriptor that keeps message boundaries.
    #[must_use]
    pub fn over(fd: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            file: File::from(fd),
            interrupts: Interrupts::default(),
            under_way: UnderWay::default(),
            tries: OnceLock::new(),
        })
    }

    /// Does the kernel still serve this channel? After a handshake that it did not like it does not (fs/fuse/dev.c,
    /// fuse_dev_poll).
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::empty())];
        matches!(nix::poll::poll(&mut fds, PollTimeout::ZERO), Ok(0))
    }

    /// The interruptible requests of this channel.
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// Another descriptor of it, for somebody who keeps it when we end.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What the threads of this channel work on.
    pub fn under_way(&self) -> &UnderWay {
        &self.under_way
    }

    /// From now on it is counted how many daemons have ended over a request that is sent again.
    pub fn count(&self, tries: Arc<Tries>) {
        // Once: when the channel is made or taken over.
        drop(self.tries.set(tries));
    }

    /// Where that is counted.
    #[must_use]
    pub fn tries(&self) -> Option<&Tries> {
        self.tries.get().map(|tries| &**tries)
    }

    /// Reads one request. `buffer` has [`READ_BUFFER`] bytes. 0: the other end is gone.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one message.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        // /dev/cuse takes a message whole or not at all.
        (&self.file).write_vectored(parts).map(drop)
    }

    /// Asks for every request again that was read and is not answered (`FUSE_NOTIFY_RESEND`, Linux 6.9 and later): those
    /// that a daemon before us has taken with it. They come as new ones, marked ([`super::Reply::is_resent`]), before those that
    /// nobody has read yet.
    ///
    /// To be called before anything is read: what we have read ourselves would come again, too, and be done twice; its answer
    /// would go to a number that is none any more.
    ///
    /// What a client can meet (fs/fuse/dev.c of 6.12.117):
    /// - A fatal signal while its request waits to be read again ends the client at once, and the request is never seen
    ///   (`request_wait_answer`: `FR_PENDING`). While there is no daemon it cannot end: a request that somebody has read is
    ///   waited for whatever happens. So the channel must not stay in a store without an heir.
    /// - `EIO`, if the daemon is killed while the kernel copies a request to it and has to wait for the page that it copies to
    ///   (`fuse_dev_do_read`, out_end): see [`READ_BUFFER`].
    /// - Stable kernels without "Remove interrupt entries for resent requests" in `fuse_resend` leave the interrupt of a
    ///   resent request in the queue, where it stays when a fatal signal then frees the request: memory that is gone is read.
    ///   It takes a signal while there is no daemon, and a fatal one before the next daemon has read: microseconds.
    ///
    /// # Errors
    /// `EINVAL`: the kernel is older; then they stay unanswered until the channel ends.
    pub fn resend(&self) -> io::Result<()> {
        let header = fuse_out_header {
            len: u32::try_from(size_of::<fuse_out_header>()).unwrap_or(u32::MAX),
            error: NOTIFY_RESEND,
            unique: 0,
        };
        self.write(&[IoSlice::new(header.as_bytes())])
    }

    /// Wakes whoever polls the file with poll handle `kh` (`FUSE_NOTIFY_POLL`); an unknown handle is harmless.
    pub fn notify_poll(&self, kh: u64) {
        let body = fuse_notify_poll_wakeup_out { kh };
        let len = size_of::<fuse_out_header>() + size_of_val(&body);
        let header = fuse_out_header {
            len: u32::try_from(len).unwrap_or(u32::MAX),
            // Of a notification the kernel reads the code here, positive (fs/fuse/dev.c, fuse_dev_do_write).
            error: FUSE_NOTIFY_POLL.cast_signed(),
            unique: 0,
        };
        if let Err(error) = self.write(&[IoSlice::new(header.as_bytes()), IoSlice::new(body.as_bytes())]) {
            tracing::debug!(%error, kh, "poll notification not delivered");
        }
    }
}

/// `events` as FUSE carries them. FUSE has no bit of its own: these are poll(2)'s.
#[must_use]
pub fn poll_events(bits: u32) -> PollEvents {
    PollEvents::from_bits_retain(bits)
}
