//! A graphics card's open primary node, and being its master for a moment.
//!
//! Who opens a card that has no master becomes its master, and while there is a master no console can draw or switch
//! (drm_auth.c, `drm_master_open`; drm_fb_helper.c). So mastership is dropped at once, and taken again around the few
//! ioctls that need it. A file that has been master may become it again without CAP_SYS_ADMIN, but only in the process that
//! opened it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use drm::Device as _;
use drm::control::{Device as _, crtc, framebuffer};
use vidcompat_proto::Errno;

use crate::backend::output::Hidden;

/// See the module.
#[derive(Debug)]
pub struct Card {
    file: File,
}

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl drm::Device for Card {}
impl drm::control::Device for Card {}

impl Card {
    /// Opens the card. `look` is called while we are master, if nobody else was: then connectors can be probed.
    ///
    /// # Errors
    /// What open says, and what `look` says.
    pub fn open<T, E: From<io::Error>>(
        path: &Path,
        look: impl FnOnce(&Self) -> Result<T, E>,
    ) -> Result<(Self, T), E> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let card = Self {
            file: options.open(path)?,
        };
        let looked = look(&card);
        // EACCES or EINVAL: somebody else is master.
        let _ = card.release_master_lock();
        Ok((card, looked?))
    }

    /// Does what only a master may do.
    ///
    /// # Errors
    /// [`Hidden::Busy`]: somebody else is master. Otherwise what `act` says.
    pub fn as_master<T>(&self, act: impl FnOnce(&Self) -> io::Result<T>) -> Result<T, Hidden> {
        self.acquire_master_lock().map_err(|error| hidden(&error))?;
        let done = act(self);
        if let Err(error) = self.release_master_lock() {
            tracing::error!(%error, "the graphics card could not be let go of");
        }
        done.map_err(|error| hidden(&error))
    }

    /// The framebuffer that a CRTC shows, whosever it is.
    ///
    /// # Errors
    /// The card is gone.
    pub fn shown_on(&self, crtc: crtc::Handle) -> Result<Option<framebuffer::Handle>, Hidden> {
        let crtc = self.get_crtc(crtc).map_err(|error| hidden(&error))?;
        Ok(crtc.framebuffer())
    }
}

/// The error as fbdev programs would get it.
pub fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Why a call that needs a master failed. `EBUSY` and `EACCES` both say that somebody else is master: without
/// CAP_SYS_ADMIN, a file that was opened beside a master is refused for good (drm_auth.c, `drm_master_check_perm`).
pub fn hidden(error: &io::Error) -> Hidden {
    match errno(error) {
        Errno::EBUSY | Errno::EACCES => Hidden::Busy,
        error => Hidden::Failed(error),
    }
}
