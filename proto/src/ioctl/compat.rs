//! Which row a 32-bit client's number means: the rows and the layouts together, no list of its own.

use super::{Row, V4L2, lookup};
use crate::abi::ClientAbi;
use crate::abi::compat::{Layout, layouts};
use crate::ioc::Command;

/// The row of `command` as a client of `abi` means it, if a client may call it, and how its struct lies in the client's
/// memory where it is not that of the row.
///
/// The number holds the size of the struct and so says which layout it is. The 64-bit number from a 32-bit client is
/// what it says, as in the kernel (`v4l2_compat_translate_cmd()`).
#[must_use]
pub fn lookup_compat(abi: ClientAbi, command: Command) -> Option<(&'static Row, Option<&'static Layout>)> {
    if let Some(row) = lookup(command) {
        return Some((row, None));
    }
    let layout = layouts(abi, command.number())
        .iter()
        .find(|layout| layout.compat_size() == command.size())?;
    let at = V4L2
        .binary_search_by_key(&command.number(), |row| row.command.number())
        .ok()?;
    let row = V4L2.get(at)?;
    let same = row.command.magic() == command.magic() && row.command.direction() == command.direction();
    same.then_some((row, Some(layout)))
}

#[cfg(test)]
mod tests {
    use super::lookup_compat;
    use crate::abi::ClientAbi::{self, Arm32, I386, Native};
    use crate::abi::compat::layouts;
    use crate::ioc::{Command, Direction};
    use crate::ioctl::{V4L2, lookup};
    use proptest::prelude::*;

    #[test]
    fn the_sizes_of_a_32_bit_buffer_are_qbuf_for_whom_they_are_right() {
        let found = |abi, size| {
            let command = Command::new(Direction::ReadWrite, b'V', 15, size);
            lookup_compat(abi, command)
                .map(|(row, layout)| (row.name, layout.map(|layout| layout.compat_size())))
        };
        let qbuf = |size| Some(("VIDIOC_QBUF", Some(size)));
        let native = Some(("VIDIOC_QBUF", None));
        assert_eq!(
            [68, 76, 80, 88].map(|size| found(Native, size)),
            [None, None, None, native]
        );
        assert_eq!(
            [68, 76, 80, 88].map(|size| found(I386, size)),
            [qbuf(68), qbuf(76), None, native]
        );
        assert_eq!(
            [68, 76, 80, 88].map(|size| found(Arm32, size)),
            [qbuf(68), None, qbuf(80), native]
        );
    }

    #[test]
    fn a_row_is_found_by_its_own_number_and_by_that_of_each_layout() {
        for abi in [Native, I386, Arm32] {
            for row in V4L2 {
                assert_eq!(lookup_compat(abi, row.command), Some((row, None)));
                for layout in layouts(abi, row.command.number()) {
                    let size = u16::try_from(layout.compat_size()).expect("14 bits");
                    let command = Command::new(row.command.direction(), b'V', row.command.number(), size);
                    assert_eq!(
                        lookup_compat(abi, command),
                        Some((row, Some(*layout))),
                        "{}",
                        row.name
                    );
                    assert_eq!(layout.native_size(), row.command.size(), "{}", row.name);
                }
            }
        }
    }

    fn any_abi() -> impl Strategy<Value = ClientAbi> {
        proptest::sample::select(vec![Native, I386, Arm32])
    }

    /// Numbers near those that mean something: any row's number with a size of any layout, one bit flipped or none.
    fn near() -> impl Strategy<Value = Command> {
        let sizes = [0u16, 24, 36, 44, 60, 64, 68, 76, 80, 120, 128, 204, 248];
        let flip = proptest::option::of(0u32..32);
        (0..V4L2.len(), proptest::sample::select(sizes.to_vec()), flip).prop_map(|(at, size, flip)| {
            let row = V4L2[at].command;
            let command = Command::new(row.direction(), row.magic(), row.number(), size);
            Command(command.0 ^ flip.map_or(0, |bit| 1 << bit))
        })
    }

    proptest! {
        /// Whatever is found is the row of this number, and the number is that of the row with the layout's size.
        #[test]
        fn what_is_found_is_what_was_meant(abi in any_abi(), command in near()) {
            let Some((row, layout)) = lookup_compat(abi, command) else {
                prop_assert!(lookup(command).is_none());
                return Ok(());
            };
            let size = layout.map_or(row.command.size(), |layout| layout.compat_size());
            prop_assert_eq!(command.size(), size);
            prop_assert_eq!(command.0 & !(0x3fff << 16), row.command.0 & !(0x3fff << 16));
            prop_assert!(layout.is_none() || abi != Native);
        }

        #[test]
        fn a_native_client_has_the_rows_and_nothing_else(raw in any::<u32>()) {
            let found = lookup_compat(Native, Command(raw));
            prop_assert_eq!(found, lookup(Command(raw)).map(|row| (row, None)));
        }
    }
}
