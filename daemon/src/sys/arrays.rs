//! Ioctls whose struct points to an array: the pointers are set here, from slices, and never leave this file.

use std::os::fd::{AsFd, AsRawFd};

use vidcompat_proto::Errno;
use vidcompat_proto::abi::controls::V4l2ExtControl;
use vidcompat_proto::ioctl::{Array, Policy, Row};
use zerocopy::IntoBytes;

use super::Mirror;

/// What the kernel is to find behind the pointer of an extended control.
#[derive(Debug)]
pub enum HostPayload<'a> {
    /// A value and no pointer: `size` becomes 0, so that nothing is followed even if the driver takes it for one.
    None,
    /// Memory of ours, read and written.
    Bytes(&'a mut [u8]),
    /// Memory of ours that is in part out of reach: an access there is the kernel's EFAULT.
    Mirror(&'a Mirror),
    /// No memory: any access is the kernel's EFAULT.
    Unreachable,
}

/// An address that no process has memory at: the last page of all belongs to the kernel, which refuses it before it
/// looks at the length.
const NOWHERE: u64 = u64::MAX - 4095;

/// Runs the ioctl of `row` with `argument` pointing to `array`; both are read and written in place, and the pointer in
/// `argument` is 0 afterwards.
///
/// # Errors
/// What the kernel answers; `EINVAL` where the row has no such array, its elements hold pointers themselves, or a
/// length is not what `argument` says.
pub fn ioctl_with_array(
    file: impl AsFd,
    row: &Row,
    argument: &mut [u8],
    array: &mut [u8],
) -> Result<i32, Errno> {
    match (row.array, row.policy) {
        (Some(place), Policy::Array | Policy::Window) => call(file, row, place, argument, array),
        _ => Err(Errno::EINVAL),
    }
}

/// Runs an ioctl on extended controls. `payloads` has an entry for each of `controls`; afterwards the value of a
/// control that has a payload is 0: no address of ours goes out.
///
/// # Errors
/// As [`ioctl_with_array`]; `EINVAL` for a `size` beyond the payload's memory.
pub fn ext_controls(
    file: impl AsFd,
    row: &Row,
    argument: &mut [u8],
    controls: &mut [V4l2ExtControl],
    payloads: &mut [HostPayload<'_>],
) -> Result<i32, Errno> {
    let (Some(place), Policy::Controls) = (row.array, row.policy) else {
        return Err(Errno::EINVAL);
    };
    if controls.len() != payloads.len() {
        return Err(Errno::EINVAL);
    }
    for (control, payload) in controls.iter_mut().zip(payloads.iter_mut()) {
        let (pointer, len) = match payload {
            HostPayload::None => {
                control.size = 0;
                continue;
            }
            HostPayload::Bytes(bytes) => (bytes.as_mut_ptr().expose_provenance() as u64, bytes.len()),
            HostPayload::Mirror(mirror) => (mirror.host_ptr().expose_provenance() as u64, mirror.size()),
            HostPayload::Unreachable => (NOWHERE, usize::MAX),
        };
        if control.size as usize > len {
            return Err(Errno::EINVAL);
        }
        control.value = pointer.to_ne_bytes();
    }
    let result = call(file, row, place, argument, controls.as_mut_bytes());
    for (control, payload) in controls.iter_mut().zip(payloads) {
        if !matches!(payload, HostPayload::None) {
            control.value = [0; 8];
        }
    }
    result
}

/// Whatever `array` holds as pointers must be safe for the kernel to follow.
fn call(
    file: impl AsFd,
    row: &Row,
    place: Array,
    argument: &mut [u8],
    array: &mut [u8],
) -> Result<i32, Errno> {
    if argument.len() != row.command.size() || place.len(argument) != Ok(array.len()) {
        return Err(Errno::EINVAL);
    }
    row.scrub(argument);
    if !array.is_empty() {
        let pointer = array.as_mut_ptr().expose_provenance() as u64;
        argument[place.pointer_bytes()].copy_from_slice(&pointer.to_ne_bytes());
    }
    // `Ioctl` is c_ulong with glibc and c_int with musl; the kernel looks at 32 bits.
    #[allow(clippy::useless_conversion)]
    let request: libc::Ioctl = row.command.0.into();
    // SAFETY: the kernel copies `_IOC_SIZE` bytes in and out of `argument`, which is that long, and as many bytes in and
    // out of `array` as the count in `argument` announces (v4l2-ioctl.c, check_array_args), which `place.len` found to be
    // all of it; both are borrowed mutably. Elements of `Policy::Array` hold no pointers; those of
    // `Policy::Window` have one that no driver follows (`v4l2_clip.next`). An extended control's pointer
    // is followed for at most its `size` bytes as passed (v4l2-ctrls-api.c, prepare_ext_ctrls and what follows it):
    // `ext_controls` has made that 0, or checked it against the mutably borrowed memory or the mirror that it set the
    // pointer to, or set the pointer to an address that the kernel refuses.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request, argument.as_mut_ptr()) };
    let outcome = if result < 0 {
        Err(super::v4l2::last_errno())
    } else {
        Ok(result)
    };
    row.scrub(argument);
    outcome
}

#[cfg(test)]
mod tests {
    use super::{HostPayload, NOWHERE, ext_controls, ioctl_with_array};
    use vidcompat_proto::Errno;
    use vidcompat_proto::abi::controls::V4l2ExtControl;
    use vidcompat_proto::ioctl::{Row, V4L2};

    fn row(name: &str) -> &'static Row {
        V4L2.iter().find(|row| row.name == name).expect("in the table")
    }

    /// An argument that announces `count` elements and holds garbage for a pointer.
    fn argument(row: &Row, count: u32) -> Vec<u8> {
        let array = row.array.expect("an array");
        let mut argument = vec![0; row.command.size()];
        argument[array.count..array.count + 4].copy_from_slice(&count.to_ne_bytes());
        argument[array.pointer_bytes()].fill(0xaa);
        argument
    }

    #[test]
    fn an_array_of_another_length_than_announced_never_reaches_the_kernel() {
        let null = std::fs::File::open("/dev/null").expect("a null device");
        let edid = row("VIDIOC_S_EDID");
        for (count, len, outcome) in [
            (2, 256, Errno::ENOTTY),
            (0, 0, Errno::ENOTTY),
            (2, 255, Errno::EINVAL),
            (2, 0, Errno::EINVAL),
            (3, 256, Errno::EINVAL),
            (257, 257 * 128, Errno::EINVAL),
        ] {
            let mut argument = argument(edid, count);
            let mut array = vec![0; len];
            assert_eq!(
                ioctl_with_array(&null, edid, &mut argument, &mut array),
                Err(outcome),
                "{count} {len}"
            );
        }
        assert_eq!(
            ioctl_with_array(&null, edid, &mut [0; 36], &mut []),
            Err(Errno::EINVAL)
        );
    }

    #[test]
    fn elements_with_pointers_go_through_the_function_that_sets_them_only() {
        let null = std::fs::File::open("/dev/null").expect("a null device");
        let controls = row("VIDIOC_G_EXT_CTRLS");
        let mut raw = argument(controls, 1);
        assert_eq!(
            ioctl_with_array(&null, controls, &mut raw, &mut [0; 20]),
            Err(Errno::EINVAL)
        );
        let flat = row("VIDIOC_G_CTRL");
        assert_eq!(
            ioctl_with_array(&null, flat, &mut [0; 8], &mut []),
            Err(Errno::EINVAL)
        );
    }

    #[test]
    fn a_size_beyond_the_memory_is_refused_and_no_address_comes_back() {
        let null = std::fs::File::open("/dev/null").expect("a null device");
        let get = row("VIDIOC_G_EXT_CTRLS");
        let control = |size| V4l2ExtControl {
            id: 1,
            size,
            value: [0xaa; 8],
            ..V4l2ExtControl::default()
        };
        let mut memory = [0; 16];
        let mut one = |size| {
            let mut controls = [control(size)];
            let outcome = ext_controls(
                &null,
                get,
                &mut argument(get, 1),
                &mut controls,
                &mut [HostPayload::Bytes(&mut memory)],
            );
            (outcome, controls[0].value)
        };
        assert_eq!(one(17).0, Err(Errno::EINVAL));
        assert_eq!(one(16), (Err(Errno::ENOTTY), [0; 8]));

        let mut controls = [control(5), control(u32::MAX)];
        let mut raw = argument(get, 2);
        let mut payloads = [HostPayload::None, HostPayload::Unreachable];
        let outcome = ext_controls(&null, get, &mut raw, &mut controls, &mut payloads);
        assert_eq!(outcome, Err(Errno::ENOTTY));
        assert_eq!((controls[0].size, controls[0].value), (0, [0xaa; 8]));
        assert_eq!((controls[1].size, controls[1].value), (u32::MAX, [0; 8]));
        assert!(raw[24..32].iter().all(|byte| *byte == 0));
        assert_eq!(
            ext_controls(&null, get, &mut raw, &mut controls, &mut payloads[..1]),
            Err(Errno::EINVAL)
        );
    }

    #[test]
    fn nowhere_is_an_efault_whatever_the_length() {
        use std::os::fd::AsRawFd;
        let zero = std::fs::File::open("/dev/zero").expect("a zero device");
        for len in [1usize, 4096, 1 << 20] {
            let address: *mut libc::c_void =
                std::ptr::without_provenance_mut(usize::try_from(NOWHERE).expect("64 bits"));
            // SAFETY: the address belongs to the kernel, which is what this test shows.
            let count = unsafe { libc::read(zero.as_raw_fd(), address, len) };
            let errno = std::io::Error::last_os_error().raw_os_error();
            assert_eq!((count, errno), (-1, Some(libc::EFAULT)));
        }
    }
}
