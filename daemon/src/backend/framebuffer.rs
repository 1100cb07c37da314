//! What the front end of a framebuffer node needs of what is behind it: a real `/dev/fbN` ([`super::fbdev`]), or a screen
//! of our own making (`crate::screen`).
//!
//! Everything here is said in fbdev's own structs, in their 64-bit layout; whose program asks, and in which layout, only the
//! front end knows.

use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::fb::{ColorMap, Con2FbMap, FixScreenInfo, VarScreenInfo, Vblank};

use crate::observe::model;

/// A framebuffer that programs can open.
pub trait Framebuffer: Send + Sync + 'static {
    /// A program opens it; `flags` are those of open(2).
    ///
    /// # Errors
    /// What the driver's open says.
    fn open(&self, flags: libc::c_int) -> Result<Box<dyn FramebufferFile>, Errno>;

    /// A file that a program had open with a daemon before us, by its [`FramebufferFile::descriptor`] and the flags of the
    /// open.
    ///
    /// # Errors
    /// `ENODEV`: there is no such thing.
    fn again(&self, descriptor: OwnedFd, flags: libc::c_int) -> Result<Box<dyn FramebufferFile>, Errno> {
        let _ = (descriptor, flags);
        Err(Errno::ENODEV)
    }

    /// What a person would see now.
    ///
    /// # Errors
    /// What went wrong, for people.
    fn picture(&self) -> Result<Picture, String>;

    /// What `vidcompat status` tells of it; what it stands for, its node and its files are filled in by others. Returns
    /// soon, also where a driver hangs.
    fn status(&self) -> model::Framebuffer {
        model::Framebuffer::default()
    }
}

/// An open file of a framebuffer. Methods may be called from several threads at once, and each may take as long as the
/// driver takes. Every error is the errno that the program gets.
#[allow(missing_docs, clippy::missing_errors_doc)] // Each is what its ioctl says (fb_chrdev.c).
pub trait FramebufferFile: Send + Sync {
    fn fbioget_vscreeninfo(&self) -> Result<VarScreenInfo, Errno>;
    /// `var` goes back to the program as it is then.
    fn fbioput_vscreeninfo(&self, var: &mut VarScreenInfo) -> Result<(), Errno>;
    fn fbioget_fscreeninfo(&self) -> Result<FixScreenInfo, Errno>;
    /// Fills the arrays, and leaves of them what was filled: there may be fewer entries, and no `transp`.
    fn fbiogetcmap(&self, map: &mut ColorMap) -> Result<(), Errno>;
    fn fbioputcmap(&self, map: &ColorMap) -> Result<(), Errno>;
    /// `var` goes back to the program as it is then.
    fn fbiopan_display(&self, var: &mut VarScreenInfo) -> Result<(), Errno>;
    /// The argument as the program passed it, 32 bits.
    fn fbioblank(&self, level: u32) -> Result<(), Errno>;
    fn fbioget_vblank(&self) -> Result<Vblank, Errno>;
    /// Does [`FramebufferFile::fbio_waitforvsync`] look at its argument? Where not, a bad pointer in its place is no error.
    fn needs_crtc(&self) -> bool {
        false
    }
    /// Do 32-bit programs have the ioctls that are the driver's own (`fb_compat_ioctl`): GET_VBLANK and WAITFORVSYNC?
    fn has_compat_ioctl(&self) -> bool {
        true
    }
    /// Waits in the calling thread, for some hundred milliseconds at most.
    fn fbio_waitforvsync(&self, crtc: u32) -> Result<(), Errno>;
    fn fbioget_con2fbmap(&self, map: &mut Con2FbMap) -> Result<(), Errno>;
    fn fbioput_con2fbmap(&self, map: &Con2FbMap) -> Result<(), Errno>;
    /// read(2) at `offset` bytes from the start: how many were read, 0 at the end.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno>;
    /// write(2) at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Errno>;
    /// What a program with the shim maps in place of `length` bytes from `offset` of the node, which it has asked mmap(2)
    /// for with these `PROT_*` and `MAP_*`, and from what offset of that: the kernel itself judges the rest. A file that is
    /// given away must do no harm in the hands of the program: at most what the node itself would let it do.
    fn map(&self, offset: u64, length: u64, prot: u32, flags: u32) -> Result<(OwnedFd, u64), Errno>;
    /// `FBIOGET_DMABUF`: the framebuffer's memory as a dma-buf, from its first byte. `ENOTTY` where there is none.
    fn dma_buf(&self) -> Result<OwnedFd, Errno>;
    /// What keeps it open when we end. `None`: it ends with us.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Memory of a framebuffer of our own, as `resolve` finds it behind a pointer: by the inode of what [`FramebufferFile::map`]
/// gives away.
pub trait ScreenMemory: Send + Sync + std::fmt::Debug {
    /// It as a dma-buf that a device may write to, if there is one.
    fn dma_buf(&self) -> Option<Arc<OwnedFd>>;
    /// Somebody who leaves no trace in the memory's pages (a device) has written to these bytes of it: to be called after
    /// each frame. Returns at once.
    fn changed(&self, bytes: Range<u64>);
}

/// A picture, for people: eight bits of red, green and blue for each pixel, line by line without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// `width * height * 3` bytes.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Has it as many bytes as it must have?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        u64::from(self.width) * u64::from(self.height) * 3 == self.rgb.len() as u64
    }
}
