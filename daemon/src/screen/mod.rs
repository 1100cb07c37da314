//! A framebuffer of our own making: memory that programs map and draw into, fbdev's rules about it
//! (`vidcompat_proto::screen`), and an output that shows it, or none.

use std::io;
use std::sync::Arc;

use vidcompat_proto::Errno;

use crate::backend::framebuffer::{Framebuffer, FramebufferFile, Picture, ScreenMemory};
use crate::backend::output::Output;

/// What the operator wants of a screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScreenOptions {
    /// Of the mode that it begins with; `None`: the output's best, and 1024x768 without an output.
    pub size: Option<(u32, u32)>,
    /// Bits per pixel that it begins with: 8, 16, 24 or 32.
    pub depth: u32,
    /// May programs draw straight into memory that the hardware shows, where the format is the hardware's?
    pub direct: bool,
    /// Is a picture to stay when the last program has closed the framebuffer? `None`: where no console would come back.
    pub keep: Option<bool>,
}

/// A framebuffer of our own.
#[derive(Debug)]
pub struct Screen {}

impl Screen {
    /// A screen on `output`, or one that nobody sees. Nothing is taken from anybody before a program draws.
    ///
    /// # Errors
    /// No memory, no thread.
    pub fn new(_options: ScreenOptions, _output: Option<Box<dyn Output>>) -> io::Result<Arc<Self>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Its memory, by `st_dev` and `st_ino` of what programs map.
    pub fn memory(&self) -> Option<((u64, u64), Arc<dyn ScreenMemory>)> {
        None
    }
}

impl Framebuffer for Screen {
    fn open(&self, _flags: libc::c_int) -> Result<Box<dyn FramebufferFile>, Errno> {
        Err(Errno::ENODEV)
    }

    fn picture(&self) -> Result<Picture, String> {
        Err("nothing is shown".to_owned())
    }
}
