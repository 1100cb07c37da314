//! The planes of a multi-planar buffer: an array in the client's memory, read before a call and written after it, as
//! `video_usercopy` does (v4l2-ioctl.c).

use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::abi::compat::{Layout, plane};
use vidcompat_proto::abi::v4l2::{MAX_PLANES, PlanarBuffer, V4l2Buffer, V4l2Plane};
use zerocopy::IntoBytes;

use super::{Requester, Session};

/// Bytes of a `struct v4l2_plane`.
fn element(abi: ClientAbi) -> usize {
    plane(abi).map_or(size_of::<V4l2Plane>(), Layout::compat_size)
}

impl Session {
    /// The client's buffer with its planes.
    ///
    /// # Errors
    /// `EINVAL` for more planes than there can be; `EFAULT` where they cannot be read.
    pub(super) fn fetch_planes(&self, head: V4l2Buffer, who: Requester) -> Result<PlanarBuffer, Errno> {
        let single = PlanarBuffer::single(head);
        if !single.is_multi_planar() {
            return Ok(single);
        }
        if head.length > MAX_PLANES {
            return Err(Errno::EINVAL);
        }
        let mut planes = Vec::new();
        if head.length > 0 {
            let element = element(who.abi);
            let mut bytes = vec![0; element * head.length as usize];
            let caller = self.caller(who.tid)?;
            caller.read(head.m, &mut bytes).map_err(|_| Errno::EFAULT)?;
            planes.extend(bytes.chunks_exact(element).map(|bytes| to_native(bytes, who.abi)));
        }
        Ok(PlanarBuffer { head, planes })
    }

    /// Writes the planes of `reply` to the array that the client named in `asked`: all that it has room for.
    ///
    /// # Errors
    /// `EFAULT` where they cannot be written.
    pub(super) fn store_planes(
        &self,
        reply: &PlanarBuffer,
        asked: &V4l2Buffer,
        who: Requester,
    ) -> Result<(), Errno> {
        if !reply.is_multi_planar() || asked.length == 0 {
            return Ok(());
        }
        // The kernel's conversion gives a 32-bit client no plane beyond those that there are (v4l2-compat-ioctl32.c:1123).
        let most = match who.abi {
            ClientAbi::Native => asked.length,
            ClientAbi::I386 | ClientAbi::Arm32 => asked.length.min(reply.head.length),
        };
        let planes = reply.planes.iter().take(most as usize);
        let bytes: Vec<u8> = planes.flat_map(|plane| from_native(plane, who.abi)).collect();
        let caller = self.caller(who.tid)?;
        caller.write(asked.m, &bytes).map_err(|_| Errno::EFAULT)
    }
}

fn to_native(bytes: &[u8], abi: ClientAbi) -> V4l2Plane {
    let mut native = V4l2Plane::default();
    match plane(abi) {
        None => native.as_mut_bytes().copy_from_slice(bytes),
        // There is no union in a plane that could have a wrong type.
        Some(layout) => drop(layout.to_native(bytes, native.as_mut_bytes())),
    }
    native
}

fn from_native(native: &V4l2Plane, abi: ClientAbi) -> Vec<u8> {
    let mut bytes = vec![0; element(abi)];
    match plane(abi) {
        None => bytes.copy_from_slice(native.as_bytes()),
        Some(layout) => layout.from_native(native.as_bytes(), &mut bytes),
    }
    bytes
}
