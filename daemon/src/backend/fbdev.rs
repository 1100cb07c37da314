//! A real `/dev/fbN`.

use std::io;
use std::path::{Path, PathBuf};

use vidcompat_proto::Errno;

use super::framebuffer::{Framebuffer, FramebufferFile, Picture};

/// See the module.
#[derive(Debug)]
pub struct RealFramebuffer {
    path: PathBuf,
}

impl RealFramebuffer {
    /// The framebuffer at `path`.
    ///
    /// # Errors
    /// It cannot be opened, or does not answer as a framebuffer does.
    pub fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
        })
    }
}

impl Framebuffer for RealFramebuffer {
    fn open(&self, _flags: libc::c_int) -> Result<Box<dyn FramebufferFile>, Errno> {
        tracing::error!(path = %self.path.display(), "not yet");
        Err(Errno::ENODEV)
    }

    fn picture(&self) -> Result<Picture, String> {
        Err("not yet".to_owned())
    }
}
