//! Structs of extended controls (64-bit layout, `linux/videodev2.h`), and how far the kernel follows a payload pointer.
//!
//! The bounds are those of v4l2-ctrls-api.c (6.1 to 6.12: `prepare_ext_ctrls`, `user_to_new`, `ptr_to_user`). What
//! safety rests on is one rule of it: **the kernel never touches more than `size` bytes behind a payload pointer, with
//! `size` as it was passed**. It lowers `size` to what the control holds, or gives up; it raises it only when it gives
//! up.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `V4L2_CTRL_ID_MASK`: the rest of an id are flags, which G, S and TRY ignore.
pub const CONTROL_ID_MASK: u32 = 0x0fff_ffff;

/// `V4L2_CTRL_FLAG_*`
pub mod control_flag {
    /// The value is behind a pointer.
    pub const HAS_PAYLOAD: u32 = 0x0100;
    /// An array with as many elements as were set last, `dims[0]` at most.
    pub const DYNAMIC_ARRAY: u32 = 0x0800;
}

/// `struct v4l2_ext_controls`, 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct V4l2ExtControls {
    /// A control class, or one of `V4L2_CTRL_WHICH_*`.
    pub which: u32,
    /// Number of controls.
    pub count: u32,
    /// Which control failed.
    pub error_idx: u32,
    /// A request of the client, for `V4L2_CTRL_WHICH_REQUEST_VAL`.
    pub request_fd: i32,
    /// Reserved.
    pub reserved: u32,
    /// Padding.
    pub padding: u32,
    /// Where the controls are.
    pub controls: u64,
}

/// `struct v4l2_ext_control`, 20 bytes without padding in every ABI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct V4l2ExtControl {
    /// See [`CONTROL_ID_MASK`].
    pub id: u32,
    /// Bytes of the payload, 0 for a control that has none.
    pub size: u32,
    /// Reserved.
    pub reserved2: u32,
    /// `value`, `value64` or the pointer to the payload, unaligned: a 32-bit program has its pointer in the first four
    /// bytes.
    pub value: [u8; 8],
}

/// `struct v4l2_query_ext_ctrl`, 232 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct V4l2QueryExtCtrl {
    /// Which control.
    pub id: u32,
    /// `enum v4l2_ctrl_type`
    pub control_type: u32,
    /// For people.
    pub name: [u8; 32],
    /// Of a string: the fewest characters.
    pub minimum: i64,
    /// Of a string: the most characters.
    pub maximum: i64,
    /// Step of the value.
    pub step: u64,
    /// Value at the beginning.
    pub default_value: i64,
    /// See [`control_flag`].
    pub flags: u32,
    /// Bytes of an element; of a string: of the longest, with its NUL.
    pub elem_size: u32,
    /// Number of elements now.
    pub elems: u32,
    /// How many of `dims` count.
    pub nr_of_dims: u32,
    /// Elements in each direction.
    pub dims: [u32; 4],
    /// Reserved.
    pub reserved: [u32; 32],
}

/// How much a control with a payload can hold, in bytes, as the device has just said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    element: u64,
    most: u64,
    /// The kernel takes whole elements of whatever size is passed.
    dynamic: bool,
}

impl Payload {
    /// What `control` says of its payload, if it has one.
    #[must_use]
    pub fn of(control: &V4l2QueryExtCtrl) -> Option<Self> {
        if control.flags & control_flag::HAS_PAYLOAD == 0 {
            return None;
        }
        let dynamic = control.flags & control_flag::DYNAMIC_ARRAY != 0;
        let elements = if dynamic { control.dims[0] } else { control.elems };
        let element = u64::from(control.elem_size).max(1);
        Some(Self {
            element,
            most: element * u64::from(elements),
            dynamic,
        })
    }

    /// The size to pass to the kernel for a client's `size`: the same up to one element more than the control can
    /// hold, which is as much too large as any larger number. The kernel gives it back changed, or does not care.
    #[must_use]
    pub fn passed(&self, size: u32) -> u32 {
        u32::try_from(self.most.saturating_add(self.element)).map_or(size, |most| size.min(most))
    }

    /// How many bytes of the client's payload the kernel can touch when `size` is passed.
    ///
    /// Some of them only: a text may end early, a dynamic array may have fewer elements, and an array for which `size`
    /// is too small is not touched at all, unless it has become smaller since the device was asked.
    #[must_use]
    pub fn touched(&self, size: u32) -> u32 {
        let most = u32::try_from(self.most).unwrap_or(u32::MAX);
        let touched = size.min(most);
        match u32::try_from(self.element) {
            Ok(element) if self.dynamic => touched / element * element,
            _ => touched,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Payload, V4l2QueryExtCtrl, control_flag};
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    fn control(flags: u32, elem_size: u32, elems: u32, dims: &[u32]) -> V4l2QueryExtCtrl {
        let mut control = V4l2QueryExtCtrl::new_zeroed();
        control.flags = flags;
        control.elem_size = elem_size;
        control.elems = elems;
        control.nr_of_dims = u32::try_from(dims.len()).expect("four at most");
        control.dims[..dims.len()].copy_from_slice(dims);
        control
    }

    fn payload(flags: u32, elem_size: u32, elems: u32, dims: &[u32]) -> Payload {
        let flags = flags | control_flag::HAS_PAYLOAD;
        Payload::of(&control(flags, elem_size, elems, dims)).expect("a payload")
    }

    #[test]
    fn a_plain_integer_has_no_payload() {
        assert_eq!(Payload::of(&control(0, 4, 1, &[])), None);
    }

    #[test]
    fn a_matrix_holds_all_its_elements_and_a_larger_size_is_lowered_to_too_large() {
        let matrix = payload(0, 2, 128, &[8, 16]);
        assert_eq!(
            [100, 256, 257, 258, u32::MAX].map(|size| matrix.passed(size)),
            [100, 256, 257, 258, 258]
        );
        assert_eq!([100, 256, 258].map(|size| matrix.touched(size)), [100, 256, 256]);
    }

    #[test]
    fn a_string_holds_its_longest_text() {
        let string = payload(0, 5, 1, &[]);
        assert_eq!(string.passed(1000), 10);
        assert_eq!([0, 3, 10].map(|size| string.touched(size)), [0, 3, 5]);
    }

    #[test]
    fn a_dynamic_array_is_touched_in_whole_elements_up_to_its_most() {
        let array = payload(control_flag::DYNAMIC_ARRAY, 4, 2, &[100]);
        assert_eq!([3, 7, 399, 404].map(|size| array.touched(size)), [0, 4, 396, 400]);
        // 403 bytes still round down to 100 elements; 404 are 101, which the kernel refuses with ENOSPC.
        assert_eq!([403, 405].map(|size| array.passed(size)), [403, 404]);
    }

    proptest! {
        /// No number of the client's or of a mad driver makes us hold less than the kernel was told of.
        #[test]
        fn never_is_more_touched_than_was_passed(
            flags in any::<u32>(), elem_size in any::<u32>(), elems in any::<u32>(), dim in any::<u32>(),
            size in any::<u32>(),
        ) {
            let payload = payload(flags, elem_size, elems, &[dim]);
            let passed = payload.passed(size);
            prop_assert!(passed <= size);
            prop_assert!(payload.touched(passed) <= passed);
        }
    }
}
