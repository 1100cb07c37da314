//! Dumb buffers of a graphics card, mapped for the CPU.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use drm::buffer::{Buffer, DrmFourcc, Handle};
use drm::control::Device;
use nix::libc::c_void;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::map_offset;

/// A dumb buffer of 32 bits a pixel that only this process draws into. It keeps the card's file open until it is dropped,
/// and its handle belongs to that file.
#[derive(Debug)]
pub struct DumbPixels {
    handle: Handle,
    pitch: u32,
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

// SAFETY: the mapping is plain address space that belongs to no thread.
unsafe impl Send for DumbPixels {}

impl DumbPixels {
    /// A new one, black.
    ///
    /// # Errors
    /// What the card says: `ENOSYS` without dumb buffers, `ENOMEM`.
    pub fn new(card: &impl Device, width: u32, height: u32) -> io::Result<Self> {
        let buffer = card.create_dumb_buffer((width, height), DrmFourcc::Xrgb8888, 32)?;
        let pixels = Self::map(card, buffer.handle(), buffer.pitch(), height);
        if pixels.is_err() {
            let _ = card.destroy_dumb_buffer(buffer);
        }
        pixels
    }

    fn map(card: &impl Device, handle: Handle, pitch: u32, height: u32) -> io::Result<Self> {
        let len = (usize::try_from(pitch).ok())
            .zip(usize::try_from(height).ok())
            .and_then(|(pitch, height)| NonZeroUsize::new(pitch.checked_mul(height)?))
            .ok_or(io::ErrorKind::InvalidInput)?;
        let offset =
            i64::try_from(map_offset(card, handle.into())?).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel picks a fresh address, so no mapping that something else relies on is replaced.
        let start = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, card, offset) }?;
        Ok(Self {
            handle,
            pitch,
            start,
            len,
        })
    }

    /// For framebuffers.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// Bytes from one line to the next.
    pub fn pitch(&self) -> u32 {
        self.pitch
    }

    /// The pixels, `pitch` times the height.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes are mapped here, readable and writable, until this is dropped. A GEM object keeps its size
        // (drm_gem_mmap_obj refuses a longer mapping), so none of them goes away. It was made in `new`, is mapped this
        // once, and exported to nobody, and `self` is borrowed: there is no other reference to it; the hardware reads only.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len.get()) }
    }
}

impl Drop for DumbPixels {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`, and no slice of it is borrowed any more.
        if let Err(error) = unsafe { munmap(self.start, self.len.get()) } {
            tracing::error!(%error, "a canvas's mapping could not be released");
        }
    }
}
