//! Dma-bufs of our own, as programs bring them to a queue: from the system heap, a memfd or a DRM driver, or the exported
//! buffer of another video device.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{ioctl, map, unmap};
use crate::video::{CAPTURE, command};

/// `DMA_HEAP_IOCTL_ALLOC` (linux/dma-heap.h)
const DMA_HEAP_IOCTL_ALLOC: u64 = 0xc018_4800;
/// `DMA_BUF_IOCTL_SYNC` (linux/dma-buf.h)
const DMA_BUF_IOCTL_SYNC: u64 = 0x4008_6200;
/// `UDMABUF_CREATE` (linux/udmabuf.h)
const UDMABUF_CREATE: u64 = 0x4018_7542;
/// `DRM_IOCTL_PRIME_HANDLE_TO_FD` (drm/drm.h)
const DRM_IOCTL_PRIME_HANDLE_TO_FD: u64 = 0xc00c_642d;
/// `DMA_BUF_SYNC_READ`, and `DMA_BUF_SYNC_END` with it.
const SYNC_READ: u64 = 1;
const SYNC_READ_END: u64 = 1 | 4;
/// `DMA_BUF_SYNC_WRITE`, and `DMA_BUF_SYNC_END` with it.
const SYNC_WRITE: u64 = 2;
const SYNC_WRITE_END: u64 = 2 | 4;

/// A dma-buf.
#[derive(Debug)]
pub struct DmaBuf {
    fd: OwnedFd,
    /// Its bytes, in whole pages.
    len: usize,
}

impl AsFd for DmaBuf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `fd`, which an ioctl has just made for us.
fn owned(fd: i32) -> anyhow::Result<OwnedFd> {
    ensure!(fd >= 0, "fd {fd}");
    // SAFETY: the kernel has just opened it, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl DmaBuf {
    fn new(fd: OwnedFd) -> anyhow::Result<Self> {
        let len = usize::try_from(File::from(fd.try_clone()?).seek(std::io::SeekFrom::End(0))?)?;
        Ok(Self { fd, len })
    }

    /// At least `len` bytes of the system heap.
    pub fn from_heap(len: usize) -> anyhow::Result<Self> {
        Self::from_heap_for(len, libc::O_RDWR)
    }

    /// The same, by a fd that gives no right to write.
    pub fn from_heap_for_reading(len: usize) -> anyhow::Result<Self> {
        Self::from_heap_for(len, libc::O_RDONLY)
    }

    fn from_heap_for(len: usize, access: i32) -> anyhow::Result<Self> {
        let heap = File::open("/dev/dma_heap/system").context("the system heap")?;
        // struct dma_heap_allocation_data: u64 len, u32 fd, u32 fd_flags, u64 heap_flags
        let flags = u64::from((access | libc::O_CLOEXEC).cast_unsigned());
        let mut request = [len.next_multiple_of(super::PAGE) as u64, flags << 32, 0];
        ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &mut request).context("DMA_HEAP_IOCTL_ALLOC")?;
        // The low half of the second word; not negative.
        Self::new(owned(i32::try_from(request[1] & 0xffff_ffff)?)?)
    }

    /// Its fd.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// `VIDIOC_EXPBUF` of a capture buffer of this file.
    pub fn exported(video: impl AsFd, index: u32) -> anyhow::Result<Self> {
        // struct v4l2_exportbuffer: type, index, plane, flags, fd, eleven reserved
        let mut request = [0_u32; 16];
        request[0] = CAPTURE;
        request[1] = index;
        request[3] = (libc::O_RDWR | libc::O_CLOEXEC).cast_unsigned();
        ioctl(video, command::EXPBUF, &mut request).context("EXPBUF")?;
        Self::new(owned(request[4].cast_signed())?)
    }

    /// `UDMABUF_CREATE`: the first `len` bytes (whole pages) of a memfd that cannot shrink.
    pub fn of_memfd(memfd: &File, len: usize) -> anyhow::Result<Self> {
        let driver = OpenOptions::new().read(true).write(true).open("/dev/udmabuf")?;
        // struct udmabuf_create: u32 memfd, u32 flags, u64 offset, u64 size
        let number = u64::from(memfd.as_raw_fd().cast_unsigned());
        let cloexec = 1 << 32;
        let mut request = [number | cloexec, 0, len as u64];
        let fd = ioctl(driver, UDMABUF_CREATE, &mut request).context("UDMABUF_CREATE")?;
        Self::new(owned(fd)?)
    }

    /// `DRM_IOCTL_PRIME_HANDLE_TO_FD` of an object of this DRM file; `None` where the driver cannot.
    pub fn of_drm(card: &File, handle: u32) -> anyhow::Result<Option<Self>> {
        // struct drm_prime_handle: u32 handle, u32 flags, i32 fd
        let mut request = [handle, (libc::O_RDWR | libc::O_CLOEXEC).cast_unsigned(), 0];
        match ioctl(card, DRM_IOCTL_PRIME_HANDLE_TO_FD, &mut request) {
            Err(Errno::ENOSYS) => Ok(None),
            asked => {
                asked.context("PRIME_HANDLE_TO_FD")?;
                Ok(Some(Self::new(owned(request[2].cast_signed())?)?))
            }
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The number of the fd, as QBUF takes it.
    pub fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Another fd of the same.
    pub fn another_fd(&self) -> anyhow::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            len: self.len,
        })
    }

    fn sync(&self, mut flags: u64) -> Result<(), Errno> {
        ioctl(&self.fd, DMA_BUF_IOCTL_SYNC, &mut flags).map(drop)
    }

    /// Its first `len` bytes.
    pub fn read(&self, len: usize) -> anyhow::Result<Vec<u8>> {
        ensure!(len <= self.len, "{len} of {} bytes", self.len);
        let mut copy = File::from(memfd_create(c"copy", MFdFlags::empty())?);
        let address = map(0, self.len, libc::MAP_SHARED, self.fd.as_raw_fd())?;
        let copied = self.sync(SYNC_READ).and_then(|()| {
            let from = std::ptr::with_exposed_provenance(address);
            // SAFETY: `len` bytes are mapped there; only the kernel reads them, and no reference to them exists.
            let count = Errno::result(unsafe { libc::write(copy.as_raw_fd(), from, len) });
            self.sync(SYNC_READ_END)?;
            count
        });
        unmap(address, self.len);
        // Not negative.
        ensure!(copied?.unsigned_abs() == len, "less than {len} bytes");
        copy.rewind()?;
        let mut bytes = Vec::new();
        copy.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Makes all its bytes 0, so that an old frame is no new one.
    pub fn clear(&self) -> anyhow::Result<()> {
        let zeros = File::open("/dev/zero")?;
        let address = map(0, self.len, libc::MAP_SHARED, self.fd.as_raw_fd())?;
        let cleared = self.sync(SYNC_WRITE).and_then(|()| {
            let to = std::ptr::with_exposed_provenance_mut(address);
            // SAFETY: as many bytes are mapped there; only the kernel writes them, and no reference to them exists.
            let count = Errno::result(unsafe { libc::read(zeros.as_raw_fd(), to, self.len) });
            self.sync(SYNC_WRITE_END)?;
            count
        });
        unmap(address, self.len);
        ensure!(cleared?.unsigned_abs() == self.len, "less than all bytes");
        Ok(())
    }
}
