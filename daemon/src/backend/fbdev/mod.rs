//! A real `/dev/fbN`, opened once for each open of a client, so that the kernel itself judges: what the driver says, what a
//! read at the end gives, what can be mapped.

mod picture;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno as OsErrno;
use vidcompat_proto::Errno;
use vidcompat_proto::abi::fb::{ColorMap, Con2FbMap, FixScreenInfo, VarScreenInfo, Vblank};

use super::framebuffer::{Framebuffer, FramebufferFile, Picture};
use crate::observe::model;
use crate::sys::{self, fbio};

/// See the module.
#[derive(Debug)]
pub struct RealFramebuffer {
    path: PathBuf,
    /// Does the driver look at WAITFORVSYNC's argument?
    needs_crtc: Arc<OnceLock<bool>>,
    /// Who it says it is, and how much memory it has: what does not change. The rest would have to be asked of a driver that
    /// may hang.
    status: model::Framebuffer,
}

impl RealFramebuffer {
    /// The framebuffer at `path`.
    ///
    /// # Errors
    /// It cannot be opened, or does not answer as a framebuffer does.
    pub fn new(path: &Path) -> io::Result<Self> {
        let file = open(path, libc::O_RDONLY)?;
        let fix = fbio::get_fscreeninfo(&file)?;
        let id = fix.id.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self {
            path: path.to_owned(),
            needs_crtc: Arc::default(),
            status: model::Framebuffer {
                driver: String::from_utf8_lossy(id).into_owned(),
                memory_bytes: u64::from(fix.smem_len),
                ..model::Framebuffer::default()
            },
        })
    }
}

fn open(path: &Path, flags: libc::c_int) -> io::Result<File> {
    let access = flags & libc::O_ACCMODE;
    OpenOptions::new()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(path)
}

/// The real node is gone while ours still stands: to the client that is a device without a driver.
fn of_open(error: &io::Error) -> Errno {
    match error.raw_os_error() {
        Some(libc::ENOENT) | None => Errno::ENODEV,
        Some(errno) => Errno::from_raw(errno),
    }
}

fn of_io(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

const fn of_os(errno: OsErrno) -> Errno {
    Errno::from_raw(errno as i32)
}

impl Framebuffer for RealFramebuffer {
    fn open(&self, flags: libc::c_int) -> Result<Box<dyn FramebufferFile>, Errno> {
        let file = open(&self.path, flags).map_err(|error| of_open(&error))?;
        Ok(Box::new(RealFile {
            file,
            access: flags & libc::O_ACCMODE,
            needs_crtc: Arc::clone(&self.needs_crtc),
        }))
    }

    fn again(&self, descriptor: OwnedFd, flags: libc::c_int) -> Result<Box<dyn FramebufferFile>, Errno> {
        // Whatever device it is by now: the program has opened this one.
        Ok(Box::new(RealFile {
            file: File::from(descriptor),
            access: flags & libc::O_ACCMODE,
            needs_crtc: Arc::clone(&self.needs_crtc),
        }))
    }

    fn picture(&self) -> Result<Picture, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.path.display());
        let file = open(&self.path, libc::O_RDONLY).map_err(|error| failed(&error))?;
        let var = fbio::get_vscreeninfo(&file).map_err(|errno| failed(&errno))?;
        let fix = fbio::get_fscreeninfo(&file).map_err(|errno| failed(&errno))?;
        // Where there is none nothing is looked up in it.
        let mut cmap = whole_map();
        let _ = fbio::getcmap(&file, &mut cmap);
        picture::picture(&var, &fix, &cmap, |offset, bytes| {
            file.read_exact_at(bytes, offset).map_err(|error| failed(&error))
        })
    }

    fn status(&self) -> model::Framebuffer {
        self.status.clone()
    }
}

/// Room for every entry of a colour map.
fn whole_map() -> ColorMap {
    ColorMap {
        start: 0,
        red: vec![0; 256],
        green: vec![0; 256],
        blue: vec![0; 256],
        transp: None,
    }
}

/// An open file of it.
struct RealFile {
    file: File,
    access: libc::c_int,
    needs_crtc: Arc<OnceLock<bool>>,
}

impl FramebufferFile for RealFile {
    fn fbioget_vscreeninfo(&self) -> Result<VarScreenInfo, Errno> {
        fbio::get_vscreeninfo(&self.file).map_err(of_os)
    }

    fn fbioput_vscreeninfo(&self, var: &mut VarScreenInfo) -> Result<(), Errno> {
        fbio::put_vscreeninfo(&self.file, var).map_err(of_os)
    }

    fn fbioget_fscreeninfo(&self) -> Result<FixScreenInfo, Errno> {
        fbio::get_fscreeninfo(&self.file).map_err(of_os)
    }

    fn fbiogetcmap(&self, map: &mut ColorMap) -> Result<(), Errno> {
        // The kernel does not say how much of the arrays it has filled: that is what two calls leave alike.
        let mut other = map.clone();
        fill(map, 0);
        fill(&mut other, u16::MAX);
        fbio::getcmap(&self.file, map).map_err(of_os)?;
        fbio::getcmap(&self.file, &mut other).map_err(of_os)?;
        let alike = |one: &[u16], other: &[u16]| {
            one.iter()
                .zip(other)
                .take_while(|(one, other)| one == other)
                .count()
        };
        let filled = alike(&map.red, &other.red);
        map.red.truncate(filled);
        map.green.truncate(filled);
        map.blue.truncate(filled);
        map.transp = map.transp.take().and_then(|mut transp| {
            let filled = alike(&transp, other.transp.as_deref().unwrap_or_default());
            transp.truncate(filled);
            (filled > 0).then_some(transp)
        });
        Ok(())
    }

    fn fbioputcmap(&self, map: &ColorMap) -> Result<(), Errno> {
        fbio::putcmap(&self.file, &mut map.clone()).map_err(of_os)
    }

    fn fbiopan_display(&self, var: &mut VarScreenInfo) -> Result<(), Errno> {
        fbio::pan_display(&self.file, var).map_err(of_os)
    }

    fn fbioblank(&self, level: u32) -> Result<(), Errno> {
        fbio::blank(&self.file, level).map_err(of_os)
    }

    fn fbioget_vblank(&self) -> Result<Vblank, Errno> {
        fbio::get_vblank(&self.file).map_err(of_os)
    }

    fn needs_crtc(&self) -> bool {
        // One that does not look waits for a vertical blank instead: once. Any other error tells nothing.
        if let Some(known) = self.needs_crtc.get() {
            return *known;
        }
        match fbio::waitforvsync(&self.file, None) {
            Ok(()) | Err(OsErrno::ENOTTY | OsErrno::EINVAL) => *self.needs_crtc.get_or_init(|| false),
            Err(OsErrno::EFAULT) => *self.needs_crtc.get_or_init(|| true),
            Err(_) => true,
        }
    }

    fn has_compat_ioctl(&self) -> bool {
        // No driver of those that have these ioctls has, on the machines that we know.
        false
    }

    fn fbio_waitforvsync(&self, crtc: u32) -> Result<(), Errno> {
        fbio::waitforvsync(&self.file, Some(crtc)).map_err(of_os)
    }

    fn fbioget_con2fbmap(&self, map: &mut Con2FbMap) -> Result<(), Errno> {
        fbio::get_con2fbmap(&self.file, map).map_err(of_os)
    }

    fn fbioput_con2fbmap(&self, map: &Con2FbMap) -> Result<(), Errno> {
        fbio::put_con2fbmap(&self.file, map).map_err(of_os)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.file.read_at(buffer, offset).map_err(of_io)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.file.write_at(data, offset).map_err(of_io)
    }

    fn map(&self, offset: u64, _length: u64, _prot: u32, _flags: u32) -> Result<(OwnedFd, u64), Errno> {
        // Never our own: what the program has may outlive its file, and ours is to be closed with that. By way of ours, for
        // at the path there may be another device by now.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let fresh = open(Path::new(&path), self.access).map_err(|error| of_open(&error))?;
        Ok((fresh.into(), offset))
    }

    fn dma_buf(&self) -> Result<OwnedFd, Errno> {
        // Where the driver has it. What can be had behind a DRM driver's back is memory that its hardware is not told of.
        let file = fbio::get_dmabuf(&self.file).map_err(of_os)?;
        match sys::own_fdinfo(&file) {
            Ok(info) if sys::field(&info, "exp_name").is_some() => Ok(file),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

fn fill(map: &mut ColorMap, entry: u16) {
    let arrays = [
        Some(&mut map.red),
        Some(&mut map.green),
        Some(&mut map.blue),
        map.transp.as_mut(),
    ];
    for array in arrays.into_iter().flatten() {
        array.fill(entry);
    }
}
