//! What a session does for the client shim: memory to map, and exported buffers to fetch.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2ExportBuffer, buf_type};
use vidcompat_proto::ioctl::QueueOp;
use vidcompat_proto::queue::Help;

use super::record::{ExportImage, ExportedPlane};
use super::{Session, State};
use crate::backend::v4l2::RealNode;
use crate::resolve::{Export, Exports};

/// What EXPBUF has left and nobody has fetched: as many are written down.
const MOST_TICKETS: usize = 32;
/// Buffers that clients have mapped: as many are written down.
const MOST_EXPORTS: usize = 64;

fn exported_plane(request: &V4l2ExportBuffer) -> ExportedPlane {
    ExportedPlane {
        buf_type: request.buf_type,
        index: request.index,
        plane: request.plane,
        flags: request.flags,
    }
}

fn request_for(plane: ExportedPlane) -> V4l2ExportBuffer {
    V4l2ExportBuffer {
        buf_type: plane.buf_type,
        index: plane.index,
        plane: plane.plane,
        flags: plane.flags,
        ..V4l2ExportBuffer::default()
    }
}

/// mmap's `prot` and `flags`.
#[derive(Clone, Copy, Debug)]
struct Protection {
    prot: libc::c_int,
    flags: libc::c_int,
}

impl Protection {
    /// What the kernel says of a file that was opened with `access_mode` before it asks the driver (mm/mmap.c, `do_mmap`).
    fn suits_file(self, access_mode: libc::c_int) -> Result<(), Errno> {
        let writes = self.is_shared() && self.prot & libc::PROT_WRITE != 0;
        match access_mode {
            libc::O_RDWR => Ok(()),
            libc::O_RDONLY if !writes => Ok(()),
            _ => Err(Errno::EACCES),
        }
    }

    /// `vb2_mmap` (videobuf2-core.c:2470): shared only; what a device writes must be readable, what it reads writable. A
    /// shared mapping of a file that was opened for reading only does not count as shared (`VM_SHARED`, mm/mmap.c).
    fn suits_queue(self, buf_type: u32, access_mode: libc::c_int) -> bool {
        let needed = if buf_type::is_output(buf_type) {
            libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        self.is_shared() && access_mode != libc::O_RDONLY && self.prot & needed != 0
    }

    fn is_shared(self) -> bool {
        matches!(
            self.flags & libc::MAP_TYPE,
            libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE
        )
    }
}

impl Session {
    /// `VIDIOC_EXPBUF`: the fd of the struct is a ticket, to be fetched.
    pub(super) fn expbuf(&self, request: &mut V4l2ExportBuffer, help: Help) -> Result<(), Errno> {
        let row = vidcompat_proto::ioctl::row(16);
        if !self.device.knows(&self.node, row) {
            return Err(Errno::ENOTTY);
        }
        if help == Help::None {
            return Err(Errno::EINVAL);
        }
        let mut state = self.lock();
        // In the client's eyes these are USERPTR buffers, whatever the device has (videobuf2-core.c:2381).
        if !state.queues.of(request.buf_type).core.is_empty() {
            return Err(Errno::EINVAL);
        }
        // What the kernel clears before a driver sees it.
        (request.fd, request.reserved) = (0, [0; 11]);
        let fd = self.node.export(request)?;
        let close_on_exec = request.flags & libc::O_CLOEXEC.cast_unsigned() != 0;
        request.fd = self.exported.keep(fd, close_on_exec);
        if self.is_kept() {
            // Nobody comes for the oldest.
            let surplus = (state.tickets.len() + 1).saturating_sub(MOST_TICKETS);
            state.tickets.drain(..surplus);
            state
                .tickets
                .push((request.fd.cast_unsigned(), exported_plane(request)));
            self.commit(&state);
        }
        Ok(())
    }

    /// mmap on the node, with `prot` (`PROT_*`) and `flags` (`MAP_*`): the file to map instead, and from where.
    ///
    /// A buffer is exported, and mapped as a dma-buf: the same memory, and the kernel knows that the buffer is in use. The
    /// session's own file is never given away, for whoever has it could take its O_NONBLOCK, and us with it.
    ///
    /// # Errors
    /// What mmap on the real node says.
    pub fn map_for_shim(
        self: &Arc<Self>,
        offset: u64,
        length: u64,
        prot: u32,
        flags: u32,
    ) -> Result<(OwnedFd, u64), Errno> {
        let wanted = Protection {
            prot: prot.cast_signed(),
            flags: flags.cast_signed(),
        };
        wanted.suits_file(self.access_mode)?;
        if self.node.is_gone() {
            return Err(Errno::ENODEV);
        }
        let mut state = self.lock();
        let (request, size) = state
            .queues
            .each()
            .into_iter()
            .find_map(|queue| {
                let passed = queue.passed.as_ref()?;
                self.plane_at(queue.core.buf_type(), passed.mmap_indices(), offset)
            })
            .ok_or(Errno::EINVAL)?;
        let pages = u64::from(size).next_multiple_of(4096);
        let is_vb2 = !self.device.is_no_vb2(request.buf_type);
        if is_vb2 && (!wanted.suits_queue(request.buf_type, self.access_mode) || length > pages) {
            return Err(Errno::EINVAL);
        }
        match self.node.export(&request) {
            Ok(fd) => {
                let exports: Weak<dyn Exports> = Arc::<Self>::downgrade(self);
                let passed = state.queues.of_mut(request.buf_type).passed.as_mut();
                if let Some(name) = passed.map(|passed| passed.name(request.index)) {
                    let own = self.device.own();
                    match own.add_export(&fd, exports, Export { request, name }) {
                        Ok(key) => self.remember_export(&mut state, key, &request, name),
                        Err(error) => {
                            tracing::debug!(%error, "a buffer of ours will not be known again");
                        }
                    }
                }
                Ok((fd, 0))
            }
            // v4l2loopback. Its buffers belong to the device and not to a file; the kernel asks it for itself.
            Err(Errno::ENOTTY) => {
                let node = RealNode::open(self.device.path(), self.access_mode)
                    .and_then(|node| self.device.is_still(node))
                    .and_then(RealNode::into_file);
                let errno = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::ENODEV));
                Ok((node.map_err(errno)?, offset))
            }
            Err(errno) => Err(errno),
        }
    }

    /// A daemon after us, too, knows what is mapped so.
    fn remember_export(
        &self,
        state: &mut State,
        (st_dev, inode, exporter): (u64, u64, String),
        request: &V4l2ExportBuffer,
        name: u64,
    ) {
        if !self.is_kept() {
            return;
        }
        let surplus = (state.exports.len() + 1).saturating_sub(MOST_EXPORTS);
        state.exports.drain(..surplus);
        state.exports.push(ExportImage {
            st_dev,
            inode,
            exporter,
            what: exported_plane(request),
            name,
        });
        self.commit(state);
    }

    /// What was remembered so.
    pub(super) fn know_exports_again(self: &Arc<Self>) {
        let state = self.lock();
        for export in &state.exports {
            let exports: Weak<dyn Exports> = Arc::<Self>::downgrade(self);
            let again = Export {
                request: request_for(export.what),
                name: export.name,
            };
            let key = (export.st_dev, export.inode);
            self.device
                .own()
                .add_export_again(key, &export.exporter, exports, again);
        }
    }

    /// What EXPBUF is asked for the plane at `offset`, and the plane's bytes.
    fn plane_at(
        &self,
        buf_type: u32,
        indices: std::ops::Range<u32>,
        offset: u64,
    ) -> Option<(V4l2ExportBuffer, u32)> {
        indices.into_iter().find_map(|index| {
            let mut buffer = PlanarBuffer::blank(buf_type, index);
            self.node.buffer_ioctl(QueueOp::Querybuf, &mut buffer).ok()?;
            let mut planes = (0..).zip(buffer.described());
            let (plane, found) = planes.find(|(_, plane)| plane.m & 0xffff_ffff == offset)?;
            let request = V4l2ExportBuffer {
                buf_type,
                index,
                plane,
                // As the file of the node: a mapping can do no more.
                flags: self.access_mode.cast_unsigned(),
                ..V4l2ExportBuffer::default()
            };
            Some((request, found.length))
        })
    }

    /// What EXPBUF has left under `ticket`, once; and whether it is to be close-on-exec.
    ///
    /// # Errors
    /// `ENOENT`: nothing.
    pub fn fetch_for_shim(&self, ticket: u32) -> Result<(OwnedFd, bool), Errno> {
        let mut state = self.lock();
        let at = state.tickets.iter().position(|(known, _)| *known == ticket);
        let left = at.map(|at| state.tickets.remove(at));
        if let Some(there) = self.exported.take(ticket) {
            return Ok(there);
        }
        // It was left by a daemon before us.
        let (_, plane) = left.ok_or(Errno::ENOENT)?;
        let file = self.node.export(&request_for(plane))?;
        Ok((file, plane.flags & libc::O_CLOEXEC.cast_unsigned() != 0))
    }
}

impl Exports for Session {
    fn export_again(&self, export: &Export) -> Option<OwnedFd> {
        let state = self.lock();
        let queue = state.queues.of(export.request.buf_type);
        queue
            .passed
            .as_ref()
            .filter(|passed| passed.is_named(export.request.index, export.name))?;
        let request = V4l2ExportBuffer {
            flags: libc::O_RDWR.cast_unsigned(),
            ..export.request
        };
        self.node.export(&request).ok()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a session of {}", self.device.path().display())
    }
}

#[cfg(test)]
mod tests {
    use super::Protection;
    use libc::{MAP_PRIVATE, MAP_SHARED, O_RDONLY, O_RDWR, O_WRONLY, PROT_READ, PROT_WRITE};
    use vidcompat_proto::Errno;
    use vidcompat_proto::abi::v4l2::buf_type::{VIDEO_CAPTURE, VIDEO_OUTPUT};

    /// What the real vivid says on Linux 6.12.
    #[test]
    fn a_mapping_suits_the_file_first_and_then_the_queue() {
        let says = |prot, flags, access_mode, buf_type| {
            let wanted = Protection { prot, flags };
            wanted.suits_file(access_mode)?;
            match wanted.suits_queue(buf_type, access_mode) {
                true => Ok(()),
                false => Err(Errno::EINVAL),
            }
        };
        let both = PROT_READ | PROT_WRITE;
        for (prot, capture, output) in [
            (both, Ok(()), Ok(())),
            (PROT_READ, Ok(()), Err(Errno::EINVAL)),
            (PROT_WRITE, Err(Errno::EINVAL), Ok(())),
            (0, Err(Errno::EINVAL), Err(Errno::EINVAL)),
        ] {
            assert_eq!(says(prot, MAP_SHARED, O_RDWR, VIDEO_CAPTURE), capture, "{prot}");
            assert_eq!(says(prot, MAP_SHARED, O_RDWR, VIDEO_OUTPUT), output, "{prot}");
            for flags in [MAP_SHARED, MAP_PRIVATE] {
                let denied = Err(Errno::EACCES);
                assert_eq!(
                    says(prot, flags, O_WRONLY, VIDEO_OUTPUT),
                    denied,
                    "{prot} {flags}"
                );
            }
        }
        for prot in [both, PROT_READ] {
            assert_eq!(says(prot, MAP_PRIVATE, O_RDWR, VIDEO_CAPTURE), Err(Errno::EINVAL));
            assert_eq!(
                says(prot, MAP_PRIVATE, O_RDONLY, VIDEO_CAPTURE),
                Err(Errno::EINVAL)
            );
        }
        assert_eq!(
            says(PROT_READ, MAP_SHARED, O_RDONLY, VIDEO_CAPTURE),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            says(both, MAP_SHARED, O_RDONLY, VIDEO_CAPTURE),
            Err(Errno::EACCES)
        );
    }
}
