//! An ioctl's struct, between the client's layout and this program's. What the fields mean is not looked at here.

use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::abi::compat::Layout;
use vidcompat_proto::ioc::Command;
use vidcompat_proto::ioctl::{Row, lookup_compat};

/// How a client's struct lies in its bytes.
#[derive(Debug)]
pub struct Shape {
    /// `None`: as here.
    layout: Option<&'static Layout>,
    /// What the client gave, and zeroes where it gave nothing: as long as its number says.
    given: Vec<u8>,
}

impl Shape {
    /// The row of `command` for a client of `abi`, and the shape of its `input`.
    ///
    /// # Errors
    /// `ENOTTY`: there is no such ioctl.
    pub fn of(command: Command, abi: ClientAbi, input: &[u8]) -> Result<(&'static Row, Self), Errno> {
        let (row, layout) = lookup_compat(abi, command).ok_or(Errno::ENOTTY)?;
        let mut given = vec![0; command.size()];
        let count = input.len().min(given.len());
        given[..count].copy_from_slice(&input[..count]);
        Ok((row, Self { layout, given }))
    }

    /// Whose layout the arrays have that the struct points to. A 32-bit client that calls an ioctl by its 64-bit number
    /// means 64-bit arrays, as in the kernel (v4l2-compat-ioctl32.c:1067).
    pub fn abi(&self, abi: ClientAbi) -> ClientAbi {
        self.layout.map_or(ClientAbi::Native, |_| abi)
    }

    /// The struct of `row`.
    ///
    /// # Errors
    /// `EINVAL` for a format of a type that there is not.
    pub fn native(&self, row: &Row) -> Result<Vec<u8>, Errno> {
        let Some(layout) = self.layout else {
            return Ok(self.given.clone());
        };
        let mut native = vec![0; row.command.size()];
        layout.to_native(&self.given, &mut native)?;
        Ok(native)
    }

    /// An answer as the client knows the struct.
    pub fn answer(mut self, native: &[u8]) -> Vec<u8> {
        match self.layout {
            None => native.to_vec(),
            Some(layout) => {
                layout.from_native(native, &mut self.given);
                self.given
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Shape;
    use vidcompat_proto::Errno;
    use vidcompat_proto::abi::ClientAbi;
    use vidcompat_proto::ioc::{Command, Direction};

    #[test]
    fn a_short_input_is_filled_up_and_a_long_one_cut() {
        let command = Command::new(Direction::ReadWrite, b'V', 15, 88);
        for len in [0, 1, 87, 88, 500] {
            let (row, shape) = Shape::of(command, ClientAbi::I386, &vec![7; len]).expect("QBUF");
            let native = shape.native(row).expect("no format");
            assert_eq!(
                (native.len(), native.iter().filter(|byte| **byte == 7).count()),
                (88, len.min(88))
            );
            assert_eq!(shape.abi(ClientAbi::I386), ClientAbi::Native);
        }
    }

    #[test]
    fn a_32_bit_buffer_goes_there_and_back_with_its_pointer() {
        let command = Command::new(Direction::ReadWrite, b'V', 15, 68);
        assert!(Shape::of(command, ClientAbi::Native, &[]).is_err_and(|errno| errno == Errno::ENOTTY));
        let mut given = [0; 68];
        given[0] = 3;
        given[52..56].copy_from_slice(&0xf000_1234_u32.to_ne_bytes());
        let (row, shape) = Shape::of(command, ClientAbi::I386, &given).expect("QBUF");
        let native = shape.native(row).expect("no format");
        assert_eq!(
            (native[0], &native[64..72]),
            (3, &0xf000_1234_u64.to_ne_bytes()[..])
        );
        assert_eq!(shape.abi(ClientAbi::I386), ClientAbi::I386);
        assert_eq!(shape.answer(&native), given);
    }
}
