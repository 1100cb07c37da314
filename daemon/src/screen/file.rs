//! An open file of a screen of ours.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::fb::{ColorMap, Con2FbMap, FixScreenInfo, VarScreenInfo, Vblank};
use vidcompat_proto::screen::Put;

use super::desk::Desk;
use super::memory::{By, Lent};
use crate::backend::framebuffer::FramebufferFile;
use crate::sys::page_size;

/// How long a mode may take to be seen, before a program goes on without.
const MODE_SET: Duration = Duration::from_secs(2);
/// The same of another part of the memory, or other colours: some refreshes.
const FLIP: Duration = Duration::from_millis(200);
/// `FB_VBLANK_HAVE_COUNT`
const VBLANK_HAVE_COUNT: u32 = 0x10;

/// See the module.
pub(super) struct ScreenFile {
    desk: Arc<Desk>,
    /// `O_ACCMODE` of open(2).
    access: libc::c_int,
    /// Has it mapped a copy that follows the memory? Locked while it does.
    mirrors: Mutex<bool>,
    /// Has it mapped the memory by its only file, or been given that?
    lent: AtomicBool,
}

impl ScreenFile {
    pub(super) fn new(desk: &Arc<Desk>, flags: libc::c_int) -> Self {
        desk.count(|state| state.files += 1);
        Self {
            desk: Arc::clone(desk),
            access: flags & libc::O_ACCMODE,
            mirrors: Mutex::new(false),
            lent: AtomicBool::new(false),
        }
    }

    fn lent(&self) {
        if !self.lent.swap(true, Ordering::Relaxed) {
            self.desk.count(|state| state.lent += 1);
        }
    }

    /// What a program maps. Who may get a copy that follows the memory is counted before it is made: nobody brings one up
    /// to date that nobody is known to need.
    fn lend(&self, prot: u32, flags: u32) -> Result<Lent, Errno> {
        let memory = self.desk.memory();
        let shared = flags & libc::MAP_TYPE.cast_unsigned() != libc::MAP_PRIVATE.cast_unsigned();
        if !memory.is_direct() || (shared && self.access != libc::O_RDONLY) {
            return memory.lend(self.access, prot, flags);
        }
        let mut mirrors = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        if *mirrors {
            return memory.lend(self.access, prot, flags);
        }
        self.desk.count(|state| state.mirrors += 1);
        let lent = memory.lend(self.access, prot, flags);
        *mirrors = lent.as_ref().is_ok_and(|lent| lent.by == By::Mirror);
        if !*mirrors {
            self.desk.count(|state| state.mirrors -= 1);
        }
        lent
    }

    fn size(&self) -> u64 {
        self.desk.memory().bytes().size() as u64
    }
}

impl Drop for ScreenFile {
    fn drop(&mut self) {
        let mirrors = *self.mirrors.get_mut().unwrap_or_else(PoisonError::into_inner);
        let lent = self.lent.load(Ordering::Relaxed);
        self.desk.count(|state| {
            state.files -= 1;
            if state.files == 0 {
                // The next program finds a screen that is on. Never refused.
                let _ = state.rules.fbioblank(0);
            }
            state.mirrors -= usize::from(mirrors);
            state.lent -= usize::from(lent);
        });
    }
}

impl FramebufferFile for ScreenFile {
    fn fbioget_vscreeninfo(&self) -> Result<VarScreenInfo, Errno> {
        Ok(self.desk.state().rules.fbioget_vscreeninfo())
    }

    fn fbioput_vscreeninfo(&self, var: &mut VarScreenInfo) -> Result<(), Errno> {
        self.desk.say_mode(MODE_SET, |state| {
            let set = state.rules.fbioput_vscreeninfo(var)? == Put::Set;
            if set {
                self.desk.reserve(&state.rules)?;
            }
            state.wanted |= set;
            Ok(set)
        })
    }

    fn fbioget_fscreeninfo(&self) -> Result<FixScreenInfo, Errno> {
        Ok(self.desk.state().rules.fbioget_fscreeninfo())
    }

    fn fbiogetcmap(&self, map: &mut ColorMap) -> Result<(), Errno> {
        self.desk.state().rules.fbiogetcmap(map)
    }

    fn fbioputcmap(&self, map: &ColorMap) -> Result<(), Errno> {
        self.desk.say(FLIP, |state| {
            state.rules.fbioputcmap(map)?;
            Ok(((), true))
        })
    }

    fn fbiopan_display(&self, var: &mut VarScreenInfo) -> Result<(), Errno> {
        self.desk.say(FLIP, |state| {
            state.rules.fbiopan_display(var)?;
            state.wanted = true;
            Ok(((), true))
        })
    }

    fn fbioblank(&self, level: u32) -> Result<(), Errno> {
        self.desk.say(MODE_SET, |state| {
            state.rules.fbioblank(level)?;
            state.wanted |= level == 0;
            Ok(((), true))
        })
    }

    fn fbioget_vblank(&self) -> Result<Vblank, Errno> {
        Ok(Vblank {
            flags: VBLANK_HAVE_COUNT,
            count: self.desk.vsync().count(),
            ..Vblank::default()
        })
    }

    /// Whatever `crtc` says: there is one (drm_fb_helper_ioctl).
    fn fbio_waitforvsync(&self, _crtc: u32) -> Result<(), Errno> {
        self.desk.vsync().wait();
        Ok(())
    }

    /// No console is ever on a framebuffer of ours: what a kernel without any framebuffer console says (linux/fbcon.h).
    fn fbioget_con2fbmap(&self, _map: &mut Con2FbMap) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    fn fbioput_con2fbmap(&self, _map: &Con2FbMap) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    /// As fb_sys_read.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.desk
            .memory()
            .read(offset, buffer)
            .map_err(|error| errno(&error))
    }

    /// As fb_sys_write: a part is written where not all has room.
    fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let size = self.size();
        if offset > size {
            return Err(EFBIG);
        }
        let count = self
            .desk
            .memory()
            .write(offset, data)
            .map_err(|error| errno(&error))?;
        if count > 0 {
            self.desk.touch();
        } else if data.len() as u64 > size {
            return Err(EFBIG);
        } else if !data.is_empty() {
            return Err(ENOSPC);
        }
        Ok(count)
    }

    fn map(&self, offset: u64, length: u64, prot: u32, flags: u32) -> Result<(OwnedFd, u64), Errno> {
        // Beyond the memory there is nothing; drivers say so here (vm_iomap_memory, remap_vmalloc_range), and a memfd would
        // at the first touch.
        let page = page_size().map_err(|_| Errno::EINVAL)? as u64;
        let end = length
            .checked_next_multiple_of(page)
            .and_then(|length| offset.checked_add(length));
        if end.is_none_or(|end| end > self.size().next_multiple_of(page)) {
            return Err(Errno::EINVAL);
        }
        let lent = self.lend(prot, flags)?;
        if lent.by == By::OnlyFile {
            self.lent();
        }
        // Who maps it to read draws nothing, but may change its mind if the file allows it.
        if self.access == libc::O_RDWR && matches!(lent.by, By::File | By::OnlyFile) {
            self.desk.touch();
        }
        Ok((lent.fd, offset))
    }

    fn dma_buf(&self) -> Result<OwnedFd, Errno> {
        // A dma-buf can be written by whoever has it.
        if self.access != libc::O_RDWR {
            return Err(Errno::EACCES);
        }
        let dma_buf = self.desk.memory().dma_buf().ok_or(Errno::ENOTTY)?;
        self.lent();
        let given = dma_buf.try_clone().map_err(|error| errno(&error))?;
        // As who maps it: it is going to be drawn on by somebody who may tell nobody.
        self.desk.touch();
        Ok(given)
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

const EFBIG: Errno = Errno::from_raw(libc::EFBIG);
const ENOSPC: Errno = Errno::from_raw(libc::ENOSPC);
