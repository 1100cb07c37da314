//! What the client shim and the daemon say to each other: numbers of ioctls on the client's own file, and messages of
//! one size on a socket. Bytes only; neither side's work is known here.
//!
//! The shim keeps no state about a file. With the ioctls that need it, it says in the call itself that it is there:
//! [`spoken`] is the same ioctl under another letter. A node that does not know the letter says `ENOTTY`, and the shim
//! calls again without: so an old daemon, another version, or a real node are served as if there were no shim.
//!
//! What CUSE cannot carry, an fd, comes over the socket that [`Hello`] names. Each side refuses another version
//! ([`Ask::decode`], [`Answer::decode`]) and loses nothing but the shim's help by it.

mod message;

pub use message::{Answer, Ask, AskError, MESSAGE_BYTES, Move, Outcome, Token};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ioc::{Command, Direction};

/// Of everything here. A change that the other side would misunderstand gets another number.
pub const VERSION: u16 = 1;

/// The letter (`_IOC_TYPE`) of ioctls that say that the shim is there: another one for each [`VERSION`], so that who is of
/// another version is told `ENOTTY` by the first call and goes on without the shim.
pub const LETTER: u8 = 0xd5 + VERSION.to_le_bytes()[0];

/// `VIDIOC_*` or `FBIO*` as the shim says it: the same struct, size and number under our letter.
#[must_use]
pub const fn spoken(command: Command) -> Command {
    Command((command.0 & !0xff00) | ((LETTER as u32) << 8))
}

/// The `VIDIOC_*` that the shim means by `command`, if it is one of the shim's.
#[must_use]
pub const fn meant(command: Command) -> Option<Command> {
    if command.magic() == LETTER {
        Some(Command((command.0 & !0xff00) | ((b'V' as u32) << 8)))
    } else {
        None
    }
}

/// The `FBIO*` that the shim means by `command`, if it is one of the shim's.
#[must_use]
pub const fn meant_of_framebuffer(command: Command) -> Option<Command> {
    if command.magic() == LETTER {
        Some(Command((command.0 & !0xff00) | ((b'F' as u32) << 8)))
    } else {
        None
    }
}

/// `FBIOGET_DMABUF`: the framebuffer's memory as a dma-buf. No header of the kernel's own has it: SoC vendors' kernels and the
/// programs made for them have this number and struct (`struct fb_dmabuf_export { __u32 fd; __u32 flags; }`). The shim says
/// it in our letter; what stands in `fd` then is a ticket.
pub const FBIOGET_DMABUF: Command = Command::new(Direction::Read, b'F', 0x21, 8);

/// lseek(2) on a framebuffer of ours, which CUSE does not tell of: a [`Seek`], given and got back. Its number is none of
/// fbdev's.
#[allow(clippy::cast_possible_truncation)] // 16
pub const SEEK: Command = Command::new(Direction::ReadWrite, LETTER, 0xf1, size_of::<Seek>() as u16);

/// The same layout for 32- and 64-bit clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Seek {
    /// lseek's; comes back as the new position.
    pub offset: i64,
    /// `SEEK_*`
    pub whence: u32,
    /// 0.
    pub reserved: u32,
}

/// Asks for a [`Hello`]. Its number is none of V4L2's.
#[allow(clippy::cast_possible_truncation)] // 132
pub const HELLO: Command = Command::new(Direction::Read, LETTER, 0xf0, size_of::<Hello>() as u16);

/// Where to ask, and what proves that one may. The same layout for 32- and 64-bit clients.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Hello {
    /// [`VERSION`] of the daemon.
    pub version: u16,
    /// Bytes of `socket` that count.
    pub socket_len: u16,
    /// [`MAY_ADOPT`]
    pub flags: u32,
    /// For this file and the user who has asked.
    pub token: [u8; 16],
    /// Path of the socket, a `SOCK_SEQPACKET`.
    pub socket: [u8; 108],
}

/// In [`Hello::flags`]: the operator lets buffers be adopted.
pub const MAY_ADOPT: u32 = 1;

/// The errno by which a QBUF or PREPARE_BUF of the shim's says: first fetch what there is to move ([`Ask::NextMove`]),
/// then call again. `EBADE`, which no driver gives.
pub const MOVE_FIRST: i32 = 52;

/// Is this the device number of a framebuffer of ours?
#[must_use]
pub const fn is_our_framebuffer(major: u32, minor: u32) -> bool {
    major == 29 && minor >= 256
}

/// Is this a device number of ours? V4L2's own minors end at 255, and so do fbdev's.
#[must_use]
pub const fn is_ours(major: u32, minor: u32) -> bool {
    matches!(major, 81 | 29) && minor >= 256
}

#[cfg(test)]
mod tests {
    use super::{HELLO, SEEK, is_our_framebuffer, is_ours, meant, meant_of_framebuffer, spoken};
    use crate::ioc::{Command, Direction};

    #[test]
    fn the_shims_qbuf_is_qbuf_under_another_letter() {
        let qbuf = Command::new(Direction::ReadWrite, b'V', 15, 88);
        assert_eq!(spoken(qbuf).0, 0xc058_d60f);
        assert_eq!(meant(spoken(qbuf)), Some(qbuf));
        assert_eq!(meant(qbuf), None);
        assert_eq!(HELLO.size(), 132);
    }

    #[test]
    fn the_shims_export_is_one_of_a_framebuffer() {
        let export = Command(0x8008_4621);
        assert_eq!(meant_of_framebuffer(spoken(export)), Some(export));
        assert_eq!(meant_of_framebuffer(export), None);
        assert_eq!(SEEK.size(), 16);
    }

    #[test]
    fn real_nodes_are_not_ours() {
        assert!(is_ours(81, 256) && is_ours(29, 300));
        assert!(is_our_framebuffer(29, 256) && !is_our_framebuffer(29, 255) && !is_our_framebuffer(81, 256));
        assert!(!is_ours(81, 255) && !is_ours(29, 0) && !is_ours(226, 256));
    }
}
