//! The ioctls of a buffer with its planes.

use std::os::fd::{AsFd, AsRawFd};

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{MAX_PLANES, PlanarBuffer, memory};
use vidcompat_proto::ioctl::{Policy, QueueOp, Row};
use zerocopy::IntoBytes;

/// Runs the QUERYBUF, QBUF, DQBUF or PREPARE_BUF of `row` on `file` with `buffer` and its planes, changed in place.
///
/// # Errors
/// What the kernel answers; `EINVAL` for another row, for more planes than there can be, and for a USERPTR buffer with
/// a pointer, which would be one of ours.
pub fn buffer_ioctl(file: impl AsFd, row: &Row, buffer: &mut PlanarBuffer) -> Result<(), Errno> {
    let takes_a_buffer = matches!(
        row.policy,
        Policy::Queue(QueueOp::Querybuf | QueueOp::Qbuf | QueueOp::Dqbuf | QueueOp::PrepareBuf)
    );
    let points = buffer.head.memory == memory::USERPTR && buffer.planes.iter().any(|plane| plane.m != 0);
    let count = u32::try_from(buffer.planes.len()).unwrap_or(u32::MAX);
    if !takes_a_buffer || points || count > MAX_PLANES {
        return Err(Errno::EINVAL);
    }
    if !buffer.is_multi_planar() {
        let mut head = buffer.to_head();
        super::ioctl(file, row, head.as_mut_bytes())?;
        *buffer = PlanarBuffer::single(head);
        return Ok(());
    }
    let mut head = buffer.head;
    head.length = count;
    head.m = match count {
        0 => 0,
        // A usize has at most 64 bits.
        _ => buffer.planes.as_mut_ptr().expose_provenance() as u64,
    };
    // `Ioctl` is c_ulong with glibc and c_int with musl; the kernel looks at 32 bits.
    #[allow(clippy::useless_conversion)]
    let request: libc::Ioctl = row.command.0.into();
    // SAFETY: the row's struct is `struct v4l2_buffer`, which `head` is. Of a multi-planar buffer the kernel follows
    // `m.planes` for `length` elements of 64 bytes, both ways (v4l2-ioctl.c, check_array_args): that is our own vector,
    // alive and borrowed mutably during the call. A pointer within a plane it follows only for USERPTR, and there is
    // none then.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request, &raw mut head) };
    let errno = std::io::Error::last_os_error();
    head.m = 0;
    buffer.head = head;
    if result < 0 {
        return Err(Errno::from_raw(errno.raw_os_error().unwrap_or(libc::EIO)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::buffer_ioctl;
    use vidcompat_proto::Errno;
    use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2Plane, buf_type, memory};
    use vidcompat_proto::ioctl::{QueueOp, V4L2, queue_row};

    #[test]
    fn pointers_too_many_planes_and_other_structs_never_reach_the_kernel() {
        let null = std::fs::File::open("/dev/null").expect("a null device");
        let row = queue_row(QueueOp::Qbuf);
        for buf_type in [buf_type::VIDEO_CAPTURE, buf_type::VIDEO_OUTPUT_MPLANE] {
            let mut good = PlanarBuffer::blank(buf_type, 0);
            assert_eq!(buffer_ioctl(&null, row, &mut good), Err(Errno::ENOTTY));
            let mut pointing = PlanarBuffer::blank(buf_type, 0);
            pointing.head.memory = memory::USERPTR;
            pointing.planes[0].m = 4096;
            assert_eq!(buffer_ioctl(&null, row, &mut pointing), Err(Errno::EINVAL));
            assert_eq!(
                buffer_ioctl(&null, &V4L2[0], &mut PlanarBuffer::blank(buf_type, 0)),
                Err(Errno::EINVAL)
            );
        }
        let mut many = PlanarBuffer::blank(buf_type::VIDEO_OUTPUT_MPLANE, 0);
        many.planes.push(V4l2Plane::default());
        assert_eq!(buffer_ioctl(&null, row, &mut many), Err(Errno::EINVAL));
    }
}
