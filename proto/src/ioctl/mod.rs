//! The ioctl table: no row, no ioctl.
//!
//! A command that has no row is answered `ENOTTY` and nothing of it reaches a device, so a struct whose pointers
//! we do not know can never make the kernel follow a client's pointer inside the daemon.

mod compat;
pub mod fbdev;
mod v4l2;

use crate::Errno;
use crate::ioc::{Command, Direction};

pub use compat::lookup_compat;
pub use v4l2::ROWS as V4L2;

/// What becomes of an ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The real device gets the same bytes and answers.
    Pass,
    /// As `Pass`, but the driver checks `CAP_SYS_ADMIN` and would see the daemon's: only for a client that has it.
    Privileged,
    /// The queue core decides.
    Queue(QueueOp),
    /// As `Pass`, with the array that the struct points to ([`Row::array`]) carried along.
    Array,
    /// As `Pass`; the clips of an overlay window, which only older kernels look at, are carried along like an array.
    Window,
    /// As `Array`, and the elements are extended controls, which may point to a payload.
    Controls,
    /// As `Pass`, and waits where the client's file is blocking.
    Dqevent,
    /// As `Pass`, and the driver waits where the client's file is blocking, but says `EAGAIN` at once where it is not.
    Seek,
    /// Returns an fd, which CUSE cannot: `EINVAL`, unless the client shim has called and fetches it.
    Expbuf,
    /// Answered so, unless the real device does not know the ioctl at all (then `ENOTTY`).
    Refuse(Errno),
}

/// The ioctls of a buffer queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueOp {
    /// `VIDIOC_REQBUFS`
    Reqbufs,
    /// `VIDIOC_QUERYBUF`
    Querybuf,
    /// `VIDIOC_QBUF`
    Qbuf,
    /// `VIDIOC_DQBUF`
    Dqbuf,
    /// `VIDIOC_STREAMON`
    Streamon,
    /// `VIDIOC_STREAMOFF`
    Streamoff,
    /// `VIDIOC_CREATE_BUFS`
    CreateBufs,
    /// `VIDIOC_PREPARE_BUF`
    PrepareBuf,
    /// `VIDIOC_REMOVE_BUFS`
    RemoveBufs,
}

/// An array that a struct points to. The kernel copies it in before the call and out after it, whichever way the
/// ioctl goes (v4l2-ioctl.c, `check_array_args` and `video_usercopy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    /// In which structs there is one; `None`: in all.
    pub when: Option<When>,
    /// Byte offset of the pointer (8 bytes) in the 64-bit struct.
    pub pointer: usize,
    /// Byte offset of the number of elements (a `u32`).
    pub count: usize,
    /// Bytes of an element, the same in every ABI.
    pub element: usize,
    /// So many elements at most,
    pub limit: u32,
    /// else this.
    pub beyond: Errno,
}

impl Array {
    /// Bytes of the array that `argument` announces; 0: there is none, and the pointer means nothing.
    ///
    /// # Errors
    /// Too many elements.
    pub fn len(&self, argument: &[u8]) -> Result<usize, Errno> {
        if !self.applies(argument) {
            return Ok(0);
        }
        match read_u32(argument, self.count) {
            Some(count) if count <= self.limit => Ok(count as usize * self.element),
            _ => Err(self.beyond),
        }
    }

    /// Is there an array in `argument` at all?
    #[must_use]
    pub fn applies(&self, argument: &[u8]) -> bool {
        self.when.is_none_or(|when| when.applies(argument))
    }

    /// Where the pointer stands in the struct.
    #[must_use]
    pub const fn pointer_bytes(&self) -> std::ops::Range<usize> {
        self.pointer..self.pointer + 8
    }
}

fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    let raw = bytes.get(offset..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*raw))
}

/// Bytes of a struct that hold a client's pointer (or count what it points to).
///
/// They are zeroed before the kernel sees the struct: it would follow them in the daemon's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// In which structs they are one.
    pub when: When,
    /// Byte offset in the 64-bit struct.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

/// When bytes are a pointer, said as: one of these values is at this byte offset (a `u32`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When {
    /// Byte offset.
    pub offset: usize,
    /// Values.
    pub is_one_of: &'static [u32],
}

impl When {
    fn applies(&self, argument: &[u8]) -> bool {
        read_u32(argument, self.offset).is_some_and(|value| self.is_one_of.contains(&value))
    }
}

impl Pointer {
    fn applies(&self, argument: &[u8]) -> bool {
        self.when.applies(argument)
    }
}

/// One ioctl that a client may call. Rows exist in this table only: that none of them lets the kernel follow a
/// pointer is what makes it safe to call them with a client's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// Name in `linux/videodev2.h`.
    pub name: &'static str,
    /// Number of the 64-bit ABI. The number holds the size, so another layout has another number and no row.
    pub command: Command,
    /// What becomes of it.
    pub policy: Policy,
    /// `INFO_FL_ALWAYS_COPY` (v4l2-ioctl.c): the argument is copied back also when the call fails.
    pub always_copy: bool,
    /// Pointers to keep from the kernel.
    pub pointers: &'static [Pointer],
    /// The array that the struct points to.
    pub array: Option<Array>,
    /// The number of the ioctl by which a device can be asked, without consequences, whether it knows this one:
    /// an argument of all ones is refused, or nothing is given at all (`_IOR`).
    pub probe: Option<u8>,
}

impl Row {
    const fn new(name: &'static str, direction: Direction, number: u8, size: u16, policy: Policy) -> Self {
        Self {
            name,
            command: Command::new(direction, b'V', number, size),
            policy,
            always_copy: false,
            pointers: &[],
            array: None,
            probe: match policy {
                Policy::Queue(_) | Policy::Expbuf | Policy::Refuse(_) => Some(number),
                _ => None,
            },
        }
    }

    const fn always_copy(mut self) -> Self {
        self.always_copy = true;
        self
    }

    const fn pointers(mut self, pointers: &'static [Pointer]) -> Self {
        self.pointers = pointers;
        self
    }

    const fn array(mut self, array: Array) -> Self {
        self.array = Some(array);
        self
    }

    const fn probe(mut self, number: u8) -> Self {
        self.probe = Some(number);
        self
    }

    /// Zeroes what would be a pointer in `argument`, the struct of this row.
    pub fn scrub(&self, argument: &mut [u8]) {
        if let Some(bytes) = self
            .array
            .filter(|array| array.applies(argument))
            .and_then(|array| argument.get_mut(array.pointer_bytes()))
        {
            bytes.fill(0);
        }
        for pointer in self.pointers.iter() {
            let range = pointer.offset..pointer.offset + pointer.len;
            if pointer.applies(argument)
                && let Some(bytes) = argument.get_mut(range)
            {
                bytes.fill(0);
            }
        }
    }
}

/// The row of `command`, if a client may call it.
#[must_use]
pub fn lookup(command: Command) -> Option<&'static Row> {
    let at = V4L2
        .binary_search_by_key(&command.number(), |row| row.command.number())
        .ok()?;
    Some(&V4L2[at]).filter(|row| row.command == command)
}

/// The row with `number`.
///
/// # Panics
/// There is none: only for numbers known to be in the table.
#[must_use]
pub fn row(number: u8) -> &'static Row {
    let at = V4L2.binary_search_by_key(&number, |row| row.command.number());
    &V4L2[at.expect("the number is one of the table")]
}

/// The row of a queue ioctl.
#[must_use]
pub fn queue_row(op: QueueOp) -> &'static Row {
    row(match op {
        QueueOp::Reqbufs => 8,
        QueueOp::Querybuf => 9,
        QueueOp::Qbuf => 15,
        QueueOp::Dqbuf => 17,
        QueueOp::Streamon => 18,
        QueueOp::Streamoff => 19,
        QueueOp::CreateBufs => 92,
        QueueOp::PrepareBuf => 93,
        QueueOp::RemoveBufs => 104,
    })
}

#[cfg(test)]
mod tests {
    use super::{Policy, V4L2, lookup};
    use crate::ioc::Command;
    use proptest::prelude::*;

    #[test]
    fn rows_ascend_by_number_as_the_lookup_needs() {
        assert!(
            V4L2.windows(2)
                .all(|pair| pair[0].command.number() < pair[1].command.number())
        );
    }

    #[test]
    fn every_row_is_found_by_its_own_command() {
        for row in V4L2 {
            assert_eq!(lookup(row.command), Some(row));
        }
    }

    #[test]
    fn overlay_window_pointers_are_scrubbed_and_pixel_formats_left_alone() {
        let row = V4L2
            .iter()
            .find(|row| row.name == "VIDIOC_G_FMT")
            .expect("in the table");
        let mut overlay = vec![0xaa; 208];
        overlay[..4].copy_from_slice(&3u32.to_ne_bytes());
        row.scrub(&mut overlay);
        assert!(
            overlay[32..40]
                .iter()
                .chain(&overlay[48..56])
                .all(|byte| *byte == 0)
        );
        assert_eq!(overlay[31], 0xaa);

        let mut capture = vec![0xaa; 208];
        capture[..4].copy_from_slice(&1u32.to_ne_bytes());
        row.scrub(&mut capture);
        assert!(capture[4..].iter().all(|byte| *byte == 0xaa));
    }

    #[test]
    fn a_userptr_and_a_planes_pointer_are_scrubbed_and_an_fd_is_not() {
        let row = super::queue_row(super::QueueOp::Qbuf);
        let buffer = |buf_type: u32, memory: u32| {
            let mut raw = vec![0xaa; 88];
            raw[4..8].copy_from_slice(&buf_type.to_ne_bytes());
            raw[60..64].copy_from_slice(&memory.to_ne_bytes());
            row.scrub(&mut raw);
            (
                raw[64..72].iter().all(|byte| *byte == 0),
                raw[72..76].iter().all(|byte| *byte == 0),
            )
        };
        assert_eq!(buffer(1, 2), (true, false));
        assert_eq!(buffer(9, 4), (true, true));
        assert_eq!(buffer(1, 4), (false, false));
    }

    #[test]
    fn the_pointer_to_an_array_is_scrubbed_and_its_count_is_bounded() {
        for (name, limit, element, beyond) in [
            ("VIDIOC_G_EDID", 256u32, 128, crate::Errno::EINVAL),
            ("VIDIOC_S_EXT_CTRLS", 1024, 20, crate::Errno::EINVAL),
        ] {
            let row = V4L2.iter().find(|row| row.name == name).expect("in the table");
            let array = row.array.expect("an array");
            let mut raw = vec![0xaa; row.command.size()];
            row.scrub(&mut raw);
            assert!(raw[array.pointer_bytes()].iter().all(|byte| *byte == 0));
            assert!(raw[..array.pointer].iter().all(|byte| *byte == 0xaa));
            for (count, len) in [
                (0, Ok(0)),
                (1, Ok(element)),
                (limit, Ok(limit as usize * element)),
                (limit + 1, Err(beyond)),
                (u32::MAX, Err(beyond)),
            ] {
                raw[array.count..array.count + 4].copy_from_slice(&count.to_ne_bytes());
                assert_eq!(array.len(&raw), len);
            }
            assert_eq!(array.len(&raw[..4]), Err(beyond));
        }
    }

    #[test]
    fn arrays_belong_to_the_rows_whose_policy_carries_them() {
        for row in V4L2 {
            let carried = matches!(row.policy, Policy::Array | Policy::Window | Policy::Controls);
            assert_eq!(row.array.is_some(), carried, "{}", row.name);
            if let Some(array) = row.array {
                assert!(array.pointer + 8 <= row.command.size() && array.count + 4 <= row.command.size());
                assert_eq!(row.always_copy, row.policy != Policy::Window, "{}", row.name);
            }
        }
    }

    #[test]
    fn a_row_with_a_pointer_is_never_longer_than_its_struct() {
        for row in V4L2 {
            for pointer in row.pointers {
                assert!(pointer.offset + pointer.len <= row.command.size(), "{}", row.name);
            }
        }
    }

    #[test]
    fn every_queue_ioctl_has_its_row_and_probes_are_rows() {
        for row in V4L2 {
            if let Policy::Queue(op) = row.policy {
                assert_eq!(super::queue_row(op), row);
            }
            if let Some(number) = row.probe {
                assert_eq!(super::row(number).command.number(), number);
            }
        }
    }

    #[test]
    fn expbuf_has_a_policy_of_its_own_because_cuse_cannot_return_an_fd() {
        let row = V4L2
            .iter()
            .find(|row| row.name == "VIDIOC_EXPBUF")
            .expect("in the table");
        assert_eq!(row.policy, Policy::Expbuf);
    }

    proptest! {
        /// A number that differs in any bit (size, direction, magic) finds nothing.
        #[test]
        fn no_other_number_finds_a_row(raw in any::<u32>()) {
            let known = V4L2.iter().any(|row| row.command.0 == raw);
            prop_assert_eq!(lookup(Command(raw)).is_some(), known);
        }

        #[test]
        fn one_flipped_bit_finds_no_row_or_another_rows_own(at in 0..V4L2.len(), bit in 0u32..32) {
            let raw = V4L2[at].command.0 ^ (1 << bit);
            prop_assert_eq!(lookup(Command(raw)).map(|row| row.command.0).unwrap_or(raw), raw);
            prop_assert!(lookup(Command(raw)) != Some(&V4L2[at]));
        }
    }
}
