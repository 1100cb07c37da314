//! V4L2 calls on the real node and on ours. Command numbers and structs are those of `linux/videodev2.h`.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use vidcompat_proto::abi::v4l2::{V4l2Buffer, V4l2CreateBuffers, V4l2Format, V4l2RequestBuffers};
use zerocopy::FromZeros;

use crate::setup::both_real;
use crate::sys;

pub use vidcompat_proto::abi::v4l2::buf_type::VIDEO_CAPTURE as CAPTURE;
pub use vidcompat_proto::abi::v4l2::{buf_flag, memory};

/// The commands, as 64-bit programs pass them.
pub mod command {
    pub const QUERYCAP: u64 = 0x8068_5600;
    pub const G_FMT: u64 = 0xc0d0_5604;
    pub const S_FMT: u64 = 0xc0d0_5605;
    pub const REQBUFS: u64 = 0xc014_5608;
    pub const QUERYBUF: u64 = 0xc058_5609;
    pub const QBUF: u64 = 0xc058_560f;
    pub const EXPBUF: u64 = 0xc040_5610;
    pub const DQBUF: u64 = 0xc058_5611;
    pub const STREAMON: u64 = 0x4004_5612;
    pub const STREAMOFF: u64 = 0x4004_5613;
    pub const S_PARM: u64 = 0xc0cc_5616;
    pub const S_INPUT: u64 = 0xc004_5627;
    pub const TRY_FMT: u64 = 0xc0d0_5640;
    pub const S_PRIORITY: u64 = 0x4004_5644;
    pub const S_HW_FREQ_SEEK: u64 = 0x4030_5652;
    pub const CREATE_BUFS: u64 = 0xc100_565c;
    pub const PREPARE_BUF: u64 = 0xc058_565d;
    pub const REMOVE_BUFS: u64 = 0xc040_5668;
}

/// The real node, or the one of ours beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The driver's.
    Real,
    /// vidcompatd's.
    Ours,
}

/// A node under `/dev`: that of real device `number`, on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Which of the two.
    pub side: Side,
    /// N of the real `/dev/videoN`.
    pub number: u32,
}

/// The real `/dev/videoN`.
pub const fn real(number: u32) -> Node {
    Node {
        side: Side::Real,
        number,
    }
}

/// Ours beside the real `/dev/videoN`.
pub const fn ours(number: u32) -> Node {
    Node {
        side: Side::Ours,
        number,
    }
}

impl Node {
    /// Where it is.
    pub fn path(self) -> PathBuf {
        PathBuf::from(self.to_string())
    }

    /// Opens it for reading and writing.
    pub fn open(self) -> anyhow::Result<Video> {
        self.open_with(0)
    }

    /// With more flags for open(2).
    pub fn open_with(self, flags: i32) -> anyhow::Result<Video> {
        Video::at(&self.path(), flags)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = match self.side {
            Side::Ours if !both_real() => self.number + 64,
            _ => self.number,
        };
        write!(f, "/dev/video{number}")
    }
}

/// An open node.
#[derive(Debug)]
pub struct Video(pub File);

impl AsFd for Video {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// A capture buffer with this pointer and length, as for QBUF.
pub fn buffer(index: u32, m: u64, length: u32) -> V4l2Buffer {
    V4l2Buffer {
        index,
        buf_type: CAPTURE,
        memory: memory::USERPTR,
        m,
        length,
        ..V4l2Buffer::default()
    }
}

impl Video {
    /// Opens any node for reading and writing, with more flags for open(2).
    pub fn at(path: &Path, flags: i32) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path);
        file.map(Self).with_context(|| format!("open {}", path.display()))
    }

    /// read(2) of at most `size` bytes: those that came.
    pub fn read(&self, size: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; size];
        let count = (&self.0).read(&mut bytes).map_err(errno)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// write(2)
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        (&self.0).write(bytes).map_err(errno)
    }

    /// writev(2)
    pub fn write_vectored(&self, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
        (&self.0).write_vectored(parts).map_err(errno)
    }

    /// `VIDIOC_G_FMT` of a queue.
    pub fn format_of(&self, buf_type: u32) -> Result<V4l2Format, Errno> {
        let mut format = V4l2Format::new_zeroed();
        format.buf_type = buf_type;
        sys::ioctl(self, command::G_FMT, &mut format).map(|_| format)
    }

    /// `VIDIOC_S_FMT`: what the driver made of it.
    pub fn set_format(&self, mut format: V4l2Format) -> Result<V4l2Format, Errno> {
        sys::ioctl(self, command::S_FMT, &mut format).map(|_| format)
    }

    /// An ioctl on one of the buffer structs.
    pub fn on_buffer(&self, command: u64, mut buffer: V4l2Buffer) -> Result<V4l2Buffer, Errno> {
        sys::ioctl(self, command, &mut buffer).map(|_| buffer)
    }

    /// `VIDIOC_REQBUFS` with every field as given; what came back also if it failed.
    pub fn reqbufs_raw(&self, request: &mut V4l2RequestBuffers) -> Result<(), Errno> {
        sys::ioctl(self, command::REQBUFS, request).map(drop)
    }

    /// `VIDIOC_REQBUFS` of USERPTR capture buffers: how many were granted.
    pub fn reqbufs(&self, count: u32) -> Result<u32, Errno> {
        let mut request = V4l2RequestBuffers {
            count,
            buf_type: CAPTURE,
            memory: memory::USERPTR,
            ..V4l2RequestBuffers::default()
        };
        self.reqbufs_raw(&mut request).map(|()| request.count)
    }

    /// `VIDIOC_CREATE_BUFS`
    pub fn create_bufs(&self, request: &mut V4l2CreateBuffers) -> Result<(), Errno> {
        sys::ioctl(self, command::CREATE_BUFS, request).map(drop)
    }

    /// `VIDIOC_QUERYBUF`
    pub fn querybuf(&self, index: u32) -> Result<V4l2Buffer, Errno> {
        self.on_buffer(command::QUERYBUF, buffer(index, 0, 0))
    }

    /// `VIDIOC_QBUF`
    pub fn qbuf(&self, index: u32, m: u64, length: u32) -> Result<V4l2Buffer, Errno> {
        self.on_buffer(command::QBUF, buffer(index, m, length))
    }

    /// `VIDIOC_DQBUF`
    pub fn dqbuf(&self) -> Result<V4l2Buffer, Errno> {
        self.on_buffer(command::DQBUF, buffer(0, 0, 0))
    }

    /// `VIDIOC_STREAMON`
    pub fn streamon(&self) -> Result<(), Errno> {
        sys::ioctl(self, command::STREAMON, &mut CAPTURE.clone()).map(drop)
    }

    /// `VIDIOC_STREAMOFF`
    pub fn streamoff(&self) -> Result<(), Errno> {
        sys::ioctl(self, command::STREAMOFF, &mut CAPTURE.clone()).map(drop)
    }

    /// `VIDIOC_G_FMT`
    pub fn format(&self) -> Result<V4l2Format, Errno> {
        let mut format = V4l2Format::new_zeroed();
        format.buf_type = CAPTURE;
        sys::ioctl(self, command::G_FMT, &mut format).map(|_| format)
    }

    /// Bytes of a frame.
    pub fn sizeimage(&self) -> Result<u32, Errno> {
        self.format().map(|format| format.pix_sizeimage())
    }

    /// poll(2) on this file alone; no bits after `timeout` milliseconds.
    pub fn poll(&self, events: PollFlags, timeout: u16) -> Result<PollFlags, Errno> {
        let mut fds = [PollFd::new(self.as_fd(), events)];
        nix::poll::poll(&mut fds, PollTimeout::from(timeout))?;
        Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
    }
}
