//! The shim's side of the socket, with every byte in the hand of whoever attacks.

use std::fmt::Write;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg,
    socket_with, sockopt,
};
use vidcompat_proto::shim::{Answer, Ask, HELLO, Hello, Token};
use zerocopy::FromZeros;

use crate::sys;

/// Longer than the daemon lets anybody wait.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a file of ours says to the shim.
#[derive(Clone, Debug)]
pub struct Link {
    pub token: Token,
    pub socket: PathBuf,
    pub flags: u32,
}

impl Link {
    /// Asks the file.
    pub fn of(file: impl AsFd) -> Result<Self, Errno> {
        let mut hello = Hello::new_zeroed();
        sys::ioctl(file, HELLO.0.into(), &mut hello)?;
        let path = hello.socket.get(..hello.socket_len.into()).ok_or(Errno::EINVAL)?;
        Ok(Self {
            token: hello.token,
            socket: PathBuf::from(std::ffi::OsStr::from_bytes(path)),
            flags: hello.flags,
        })
    }

    /// One question on a connection of its own. `None`: the daemon has ended it without an answer.
    pub fn ask(&self, ask: Ask) -> anyhow::Result<Option<(Answer, Option<OwnedFd>)>> {
        let connection = Connection::to(&self.socket)?;
        connection.send(&ask.encode(self.token), &[])?;
        connection.receive()
    }
}

/// As an argument of a program.
pub fn hex(token: Token) -> String {
    token.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The reverse.
pub fn token(hex: &str) -> anyhow::Result<Token> {
    let bytes = u128::from_str_radix(hex, 16)?;
    Ok(bytes.to_be_bytes())
}

/// A connection.
#[derive(Debug)]
pub struct Connection(pub OwnedFd);

impl Connection {
    pub fn to(path: &Path) -> anyhow::Result<Self> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
        connect(&socket, &SocketAddrUnix::new(path)?).with_context(|| path.display().to_string())?;
        Ok(Self(socket))
    }

    /// Never waits.
    pub fn send(&self, message: &[u8], files: &[BorrowedFd<'_>]) -> Result<(), rustix::io::Errno> {
        let mut space = [MaybeUninit::uninit(); 256];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(rustix::io::Errno::NOBUFS);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.0, &[IoSlice::new(message)], &mut ancillary, flags).map(drop)
    }

    /// `None`: the end.
    pub fn receive(&self) -> anyhow::Result<Option<(Answer, Option<OwnedFd>)>> {
        let mut message = [0; 256];
        let mut space = [MaybeUninit::uninit(); 256];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let bytes = loop {
            let parts = &mut [IoSliceMut::new(&mut message)];
            match recvmsg(&self.0, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                // Comes before the answers where the daemon has left questions unread.
                Err(rustix::io::Errno::CONNRESET) => {}
                other => break other.context("no answer and no end")?.bytes,
            }
        };
        let mut files = Vec::new();
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                files.extend(fds);
            }
        }
        if bytes == 0 {
            return Ok(None);
        }
        let Ok(answer) = Answer::decode(&message[..bytes]) else {
            bail!("{:?} is no answer", &message[..bytes]);
        };
        ensure!(
            files.len() == usize::from(answer.has_file()),
            "{answer:?} with {} files",
            files.len()
        );
        Ok(Some((answer, files.pop())))
    }
}
