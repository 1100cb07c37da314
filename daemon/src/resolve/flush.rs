//! To have shown what a device has written to a framebuffer's memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Weak;

use crate::backend::framebuffer::ScreenMemory;
use crate::sys::{CpuUse, Mapping};

/// How a range of a framebuffer is taken for changed.
#[derive(Debug)]
pub enum Flush {
    /// A framebuffer device with deferred I/O (fb_defio.c): the first write to a page since the last time faults, and 50 ms
    /// later everything from the first to the last such page is sent (drm_fb_helper.c, `drm_fb_helper_deferred_io`).
    /// Writing through the object itself does not fault. So the first and the last page of the range are faulted in for
    /// writing, in a mapping of the framebuffer device in this process, which changes no byte.
    Faults(Vec<Mapping>),
    /// A screen of our own.
    Screen {
        /// Who shows it, as long as it is there.
        memory: Weak<dyn ScreenMemory>,
        /// The range in its memory.
        bytes: Range<u64>,
    },
}

impl Flush {
    /// For `length` bytes from the byte `place` of the framebuffer device that `file` is.
    ///
    /// # Errors
    /// What mmap says.
    pub(super) fn by_faults(file: &File, place: u64, length: u64) -> io::Result<Self> {
        let page = |byte: u64| byte / 4096 * 4096;
        let mut at = vec![page(place), page(place + length.saturating_sub(1))];
        at.dedup();
        let map = |offset: u64| {
            let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            Mapping::shared(file, offset, 4096, CpuUse::Write)
        };
        let pages = at.into_iter().map(map).collect::<io::Result<Vec<_>>>()?;
        let flush = Self::Faults(pages);
        // Where it does not work it is better known now.
        flush.run()?;
        Ok(flush)
    }

    /// The range has changed: to be called after each frame. Of a device two system calls, and its screen follows within
    /// 50 ms.
    ///
    /// # Errors
    /// `EFAULT`: the framebuffer is gone.
    pub fn run(&self) -> io::Result<()> {
        match self {
            Self::Faults(pages) => pages.iter().try_for_each(Mapping::populate_write),
            Self::Screen { memory, bytes } => {
                if let Some(memory) = memory.upgrade() {
                    memory.changed(bytes.clone());
                }
                Ok(())
            }
        }
    }
}
