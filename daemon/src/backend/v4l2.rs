//! A real V4L2 node, opened once for each open of a client, so that priority, ownership, events and controls stay
//! the driver's.
//!
//! Non-blocking, for waiting is ours; but see [`RealNode::blocking_ioctl`]. It knows nothing of clients.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use v4l2r::ioctl::{Capability, QueryCapError};
use vidcompat_proto::Errno;
use vidcompat_proto::abi::controls::{CONTROL_ID_MASK, V4l2ExtControl, V4l2QueryExtCtrl};
use vidcompat_proto::abi::v4l2::{
    PlanarBuffer, V4l2CreateBuffers, V4l2ExportBuffer, V4l2Format, V4l2RemoveBuffers, V4l2RequestBuffers,
};
use vidcompat_proto::ioctl::{self, QueueOp, Row};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::sys::{self, CpuUse, HostPayload, Mapping};

/// `VIDIOC_G_FMT`
const G_FMT: u8 = 4;

/// `VIDIOC_QUERY_EXT_CTRL`
const QUERY_EXT_CTRL: u8 = 103;

/// An open real node.
#[derive(Debug)]
pub struct RealNode {
    file: Arc<File>,
}

impl RealNode {
    /// Opens `path` with the access mode in `flags` (`O_RDONLY`, `O_WRONLY`, `O_RDWR`).
    ///
    /// # Errors
    /// What the driver says.
    pub fn open(path: &Path, flags: libc::c_int) -> io::Result<Self> {
        let access = flags & libc::O_ACCMODE;
        let file = OpenOptions::new()
            // Also for a client that only writes: what the device fills is read here, not through the client's file.
            .read(true)
            .write(access != libc::O_RDONLY)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        Ok(Self { file: Arc::new(file) })
    }

    /// A node that a daemon before us has opened.
    ///
    /// # Errors
    /// What fcntl says.
    pub fn again(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        // It may have been killed while the file was blocking ([`WhileBlocking`]).
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { file: Arc::new(file) })
    }

    /// The file's metadata.
    ///
    /// # Errors
    /// What fstat says.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Who it says it is (`VIDIOC_QUERYCAP`).
    ///
    /// # Errors
    /// `ENOTTY` for what is no V4L2 node.
    pub fn capability(&self) -> io::Result<Capability> {
        v4l2r::ioctl::querycap(&*self.file).map_err(|QueryCapError::IoctlError(errno)| errno.into())
    }

    /// `V4L2_CAP_*` of the node as it is now: v4l2loopback with `exclusive_caps` turns from an output into a capture
    /// device and back. None where the driver does not answer.
    pub fn device_caps(&self) -> u32 {
        let capability = self.capability();
        capability.map_or(0, |capability| capability.device_caps().bits())
    }

    /// Runs the ioctl of `row` with the bytes of its struct.
    ///
    /// # Errors
    /// What the driver says.
    pub fn ioctl(&self, row: &Row, argument: &mut [u8]) -> Result<i32, Errno> {
        sys::ioctl(self, row, argument)
    }

    /// As [`RealNode::ioctl`], on a file that is blocking meanwhile, for every other call on it too.
    ///
    /// # Errors
    /// What the driver says.
    pub fn blocking_ioctl(&self, row: &Row, argument: &mut [u8]) -> Result<i32, Errno> {
        let _blocking = WhileBlocking::begin(&self.file)?;
        self.ioctl(row, argument)
    }

    /// Runs the ioctl of `row`, whose struct announces `array`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn array_ioctl(&self, row: &Row, argument: &mut [u8], array: &mut [u8]) -> Result<i32, Errno> {
        sys::ioctl_with_array(self, row, argument, array)
    }

    /// Runs the ioctl of `row` on extended controls, with a payload for each.
    ///
    /// # Errors
    /// What the driver says.
    pub fn ext_controls(
        &self,
        row: &Row,
        argument: &mut [u8],
        controls: &mut [V4l2ExtControl],
        payloads: &mut [HostPayload<'_>],
    ) -> Result<i32, Errno> {
        sys::ext_controls(self, row, argument, controls, payloads)
    }

    /// `VIDIOC_QUERY_EXT_CTRL` of the control with this `id`, whose flags are ignored.
    ///
    /// # Errors
    /// What the driver says.
    pub fn query_ext_ctrl(&self, id: u32) -> Result<V4l2QueryExtCtrl, Errno> {
        let mut query = V4l2QueryExtCtrl::new_zeroed();
        query.id = id & CONTROL_ID_MASK;
        self.ioctl(ioctl::row(QUERY_EXT_CTRL), query.as_mut_bytes())?;
        Ok(query)
    }

    fn queue_ioctl<T: FromBytes + IntoBytes + Immutable>(
        &self,
        op: QueueOp,
        argument: &mut T,
    ) -> Result<(), Errno> {
        self.ioctl(ioctl::queue_row(op), argument.as_mut_bytes())
            .map(drop)
    }

    /// `VIDIOC_REQBUFS`
    ///
    /// # Errors
    /// What the driver says.
    pub fn reqbufs(&self, request: &mut V4l2RequestBuffers) -> Result<(), Errno> {
        self.queue_ioctl(QueueOp::Reqbufs, request)
    }

    /// `VIDIOC_CREATE_BUFS`
    ///
    /// # Errors
    /// What the driver says.
    pub fn create_bufs(&self, request: &mut V4l2CreateBuffers) -> Result<(), Errno> {
        self.queue_ioctl(QueueOp::CreateBufs, request)
    }

    /// `VIDIOC_REMOVE_BUFS`
    ///
    /// # Errors
    /// What the driver says.
    pub fn remove_bufs(&self, request: &mut V4l2RemoveBuffers) -> Result<(), Errno> {
        self.queue_ioctl(QueueOp::RemoveBufs, request)
    }

    /// `VIDIOC_QUERYBUF`, `QBUF`, `DQBUF` or `PREPARE_BUF`.
    ///
    /// # Errors
    /// What the driver says; `EINVAL` for a USERPTR buffer with a pointer, which would be one of ours.
    pub fn buffer_ioctl(&self, op: QueueOp, buffer: &mut PlanarBuffer) -> Result<(), Errno> {
        sys::buffer_ioctl(self, ioctl::queue_row(op), buffer)
    }

    /// `VIDIOC_STREAMON` or `STREAMOFF`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn stream(&self, op: QueueOp, buf_type: u32) -> Result<(), Errno> {
        let mut argument = buf_type;
        self.queue_ioctl(op, &mut argument)
    }

    /// Bytes of a frame of all planes together, as `VIDIOC_G_FMT` tells it; `None` where it does not.
    pub fn frame_size(&self, buf_type: u32) -> Option<u64> {
        self.format(buf_type).ok()?.frame_size()
    }

    /// Bytes of the first buffer that this file's driver has of a single-planar queue; `None`: it has none.
    pub fn buffer_length(&self, buf_type: u32) -> Option<u32> {
        let mut buffer = PlanarBuffer::blank(buf_type, 0);
        self.buffer_ioctl(QueueOp::Querybuf, &mut buffer).ok()?;
        buffer.planes.first().map(|plane| plane.length)
    }

    /// `fmt.pix.field` (of a multi-planar queue `fmt.pix_mp.field`) of `VIDIOC_G_FMT`: `enum v4l2_field`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn field(&self, buf_type: u32) -> Result<u32, Errno> {
        self.format(buf_type).map(|format| format.pix_field())
    }

    fn format(&self, buf_type: u32) -> Result<V4l2Format, Errno> {
        let mut format = V4l2Format {
            buf_type,
            padding: 0,
            fmt: [0; 200],
        };
        self.ioctl(ioctl::row(G_FMT), format.as_mut_bytes())?;
        Ok(format)
    }

    /// Does the driver know the ioctl of `row` at all? Only for a row that [`Row::probe`] names: it is called with
    /// a buffer type (register space) that nothing has, which a driver that knows the ioctl refuses before it does
    /// anything (v4l2-ioctl.c, check_fmt; videobuf2-v4l2.c).
    pub fn knows(&self, row: &Row) -> bool {
        let mut argument = vec![0xff; row.command.size()];
        self.ioctl(row, &mut argument) != Err(Errno::ENOTTY)
    }

    /// What poll(2) says now. Before the node streams this has side effects that only a client may ask for:
    /// POLLIN starts read() emulation (KERNEL.md B7).
    pub fn poll(&self, events: PollFlags) -> PollFlags {
        sys::poll(self, events)
    }

    /// Has the device been unplugged, or its driver removed? Has no side effect.
    pub fn is_gone(&self) -> bool {
        // v4l2-dev.c, v4l2_poll
        self.poll(PollFlags::empty()).contains(PollFlags::POLLHUP)
    }

    /// read(2)
    ///
    /// # Errors
    /// What the driver says, `EAGAIN` where it would wait.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.file).read(buffer)
    }

    /// write(2)
    ///
    /// # Errors
    /// As [`RealNode::read`].
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.file).write(bytes)
    }

    /// The descriptor, for a [`super::Watch`]; the node is closed when both are gone.
    pub fn descriptor(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// `VIDIOC_EXPBUF`: a plane of an MMAP buffer as a dma-buf, to be read and written.
    ///
    /// # Errors
    /// What the driver says.
    pub fn export(&self, request: &V4l2ExportBuffer) -> Result<OwnedFd, Errno> {
        sys::export_buffer(self, request).map_err(|errno| Errno::from_raw(errno as i32))
    }

    /// The file alone, to be given away: only of a node that was opened for that.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn into_file(self) -> io::Result<OwnedFd> {
        Arc::try_unwrap(self.file)
            .or_else(|shared| shared.try_clone())
            .map(OwnedFd::from)
    }

    /// Maps a plane of an MMAP buffer for what `cpu` says: `offset` and `len` are what QUERYBUF says.
    ///
    /// # Errors
    /// What mmap says.
    pub fn map(&self, offset: u32, len: u32, cpu: CpuUse) -> io::Result<Mapping> {
        Mapping::shared(self, i64::from(offset), len as usize, cpu)
    }
}

impl AsFd for RealNode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// As long as this is there, the file is in blocking mode.
struct WhileBlocking<'a>(&'a File);

impl<'a> WhileBlocking<'a> {
    fn begin(file: &'a File) -> Result<Self, Errno> {
        set_flags(file, OFlag::empty())?;
        Ok(Self(file))
    }
}

impl Drop for WhileBlocking<'_> {
    fn drop(&mut self) {
        // Nothing can fail that has just succeeded (fs/fcntl.c, `setfl`).
        if let Err(error) = set_flags(self.0, OFlag::O_NONBLOCK) {
            tracing::error!(%error, "a real node stays in blocking mode");
        }
    }
}

/// Of what F_SETFL can change a real node's file has O_NONBLOCK only.
fn set_flags(file: &File, flags: OFlag) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_SETFL(flags))
        .map(drop)
        .map_err(|errno| Errno::from_raw(errno as i32))
}
