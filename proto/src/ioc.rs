//! Ioctl command numbers taken apart and put together (`asm-generic/ioctl.h`).

/// Which way the argument of an ioctl travels, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `_IO`: nothing travels, or the argument is a plain number.
    None,
    /// `_IOW`: the client gives.
    Write,
    /// `_IOR`: the client receives.
    Read,
    /// `_IOWR`: both.
    ReadWrite,
}

impl Direction {
    const fn bits(self) -> u32 {
        match self {
            Direction::None => 0,
            Direction::Write => 1,
            Direction::Read => 2,
            Direction::ReadWrite => 3,
        }
    }
}

/// A 32-bit ioctl command.
///
/// Old programs pass it sign-extended in a `long`; the kernel truncates it before a driver sees it, and so do
/// we by never holding more than 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Command(pub u32);

impl Command {
    /// `_IOC(direction, magic, number, size)`; `size` is in bytes and below 16384.
    #[must_use]
    pub const fn new(direction: Direction, magic: u8, number: u8, size: u16) -> Self {
        assert!(size < 1 << 14, "an ioctl number holds 14 bits of size");
        Self((direction.bits() << 30) | ((size as u32) << 16) | ((magic as u32) << 8) | number as u32)
    }

    /// `_IOC_NR`.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// `_IOC_TYPE`.
    #[must_use]
    pub const fn magic(self) -> u8 {
        self.0.to_le_bytes()[1]
    }

    /// `_IOC_SIZE`, in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        ((self.0 >> 16) & 0x3fff) as usize
    }

    /// `_IOC_DIR`.
    #[must_use]
    pub const fn direction(self) -> Direction {
        match self.0 >> 30 {
            0 => Direction::None,
            1 => Direction::Write,
            2 => Direction::Read,
            _ => Direction::ReadWrite,
        }
    }

    /// Does the client receive the argument back?
    #[must_use]
    pub const fn is_read(self) -> bool {
        matches!(self.direction(), Direction::Read | Direction::ReadWrite)
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, Direction};

    #[test]
    fn vidioc_qbuf_has_the_number_of_the_header() {
        let qbuf = Command::new(Direction::ReadWrite, b'V', 15, 88);
        assert_eq!(qbuf.0, 0xc058_560f);
        assert_eq!((qbuf.number(), qbuf.magic(), qbuf.size()), (15, b'V', 88));
        assert!(qbuf.is_read());
    }
}
