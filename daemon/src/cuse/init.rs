//! The CUSE_INIT handshake (fs/fuse/cuse.c:316-459).

use std::io::{self, IoSlice};
use std::sync::Arc;

use polyfuse_kernel::{
    CUSE_INIT, CUSE_UNRESTRICTED_IOCTL, cuse_init_in, cuse_init_out, fuse_in_header, fuse_out_header,
};
use zerocopy::{FromBytes, IntoBytes};

use super::channel::{Channel, MAX_IO, READ_BUFFER};

const PROTOCOL_MAJOR: u32 = 7;
/// What we speak; the kernel asks at least 11, and 16 for 64-bit retry vectors (cuse.c:336, ioctl.c:93).
const PROTOCOL_MINOR: u32 = 31;

/// The character device to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Name below `/dev`.
    pub name: String,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Does the kernel leave it to us which bytes of a client an ioctl needs, and ask again with them? Else it copies what
    /// the ioctl's number says.
    pub unrestricted: bool,
}

/// A handshake that failed; the node was not made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The channel broke.
    #[error("/dev/cuse could not be read: {0}")]
    Read(#[source] io::Error),
    /// The channel broke.
    #[error("/dev/cuse could not be written: {0}")]
    Write(#[source] io::Error),
    /// The other end does not speak the protocol.
    #[error("/dev/cuse sent something that is no CUSE_INIT (opcode {opcode}, protocol {major}.{minor})")]
    Protocol {
        /// FUSE opcode
        opcode: u32,
        /// FUSE major version
        major: u32,
        /// FUSE minor version
        minor: u32,
    },
    /// The kernel ended the channel.
    #[error(
        "/dev/{name} was not made: its name or device number {major}:{minor} is taken; is another vidcompatd running?"
    )]
    Refused {
        /// Name below `/dev`.
        name: String,
        /// Device number.
        major: u32,
        /// Device number.
        minor: u32,
    },
    /// A name that cannot be a device's.
    #[error("`{0}` cannot be the name of a device")]
    Name(String),
}

/// What the handshake tells of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Of the FUSE protocol 7.
    pub minor: u32,
}

impl Kernel {
    /// What the kernel asks on a new channel, which is good for nothing else then.
    ///
    /// # Errors
    /// See [`InitError`].
    pub fn of(channel: Arc<Channel>) -> Result<Self, InitError> {
        let (_, minor) = asked(&channel)?;
        Ok(Self { minor })
    }

    /// Does it send unanswered requests again ([`Channel::resend`])? `FUSE_HAS_RESEND` came with 7.40, Linux 6.9.
    #[must_use]
    pub fn resends(self) -> bool {
        self.minor >= 40
    }
}

/// The kernel's CUSE_INIT: the request's number, and the minor version of the protocol.
fn asked(channel: &Channel) -> Result<(u64, u32), InitError> {
    let mut buffer = vec![0; READ_BUFFER];
    let size = channel.read(&mut buffer).map_err(InitError::Read)?;
    let message = &buffer[..size];
    let (header, body) = fuse_in_header::read_from_prefix(message).unwrap_or_default();
    let (init, _) = cuse_init_in::read_from_prefix(body).unwrap_or_default();
    if header.opcode == CUSE_INIT && init.major == PROTOCOL_MAJOR {
        return Ok((header.unique, init.minor));
    }
    Err(InitError::Protocol {
        opcode: header.opcode,
        major: init.major,
        minor: init.minor,
    })
}

/// Answers the kernel's CUSE_INIT: pieces of [`MAX_IO`] bytes.
///
/// When this returns the kernel has processed the answer. The write does not say whether it liked it: a device number or
/// a name that is taken ends the channel (cuse.c:352-383). A node of another kind that has the name stays, silently.
///
/// # Errors
/// See [`InitError`].
pub fn initialize(channel: &Arc<Channel>, node: &NodeSpec) -> Result<Kernel, InitError> {
    if node.name.is_empty() || node.name.len() > 64 || node.name.contains(['\0', '=', '\n']) {
        return Err(InitError::Name(node.name.clone()));
    }
    let (unique, minor) = asked(channel)?;
    let reply = cuse_init_out {
        major: PROTOCOL_MAJOR,
        minor: PROTOCOL_MINOR,
        flags: if node.unrestricted {
            CUSE_UNRESTRICTED_IOCTL
        } else {
            0
        },
        max_read: MAX_IO,
        max_write: MAX_IO,
        dev_major: node.major,
        dev_minor: node.minor,
        ..cuse_init_out::default()
    };
    let info = format!("DEVNAME={}\0", node.name);
    let len = size_of::<fuse_out_header>() + size_of::<cuse_init_out>() + info.len();
    let out = fuse_out_header {
        len: u32::try_from(len).unwrap_or(u32::MAX),
        error: 0,
        unique,
    };
    channel
        .write(&[
            IoSlice::new(out.as_bytes()),
            IoSlice::new(reply.as_bytes()),
            IoSlice::new(info.as_bytes()),
        ])
        .map_err(InitError::Write)?;
    if channel.is_connected() {
        return Ok(Kernel { minor });
    }
    let NodeSpec {
        name, major, minor, ..
    } = node.clone();
    Err(InitError::Refused { name, major, minor })
}
