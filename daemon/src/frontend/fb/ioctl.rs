//! Ioctls of a framebuffer: fetched from the program's memory, done, and brought back, as fb_chrdev.c does it.
//!
//! The kernel copies nothing by itself, for the numbers do not say what (unrestricted ioctls). So a call comes in rounds: the
//! first has nothing but the argument, and each is answered with the areas that are needed, or with the result. Nothing ties
//! one round to the next, and between them the program may have changed what it points to: each round begins from what it
//! has now.

use std::sync::atomic::{AtomicUsize, Ordering};

use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::abi::fb::compat::{FIX_WRITTEN, FixScreenInfo32};
use vidcompat_proto::abi::fb::{BLANK_POWERDOWN, Con2FbMap, VarScreenInfo};
use vidcompat_proto::ioctl::fbdev::{Argument, Fbio, Row};
use vidcompat_proto::shim::Seek;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::cmap;
use super::file::FbFile;
use super::position::CallId;
use crate::backend::framebuffer::FramebufferFile;
use crate::cuse::{ClientArea, IoctlRequest};

/// One round of a call.
#[derive(Clone, Copy)]
pub(super) struct Round<'a> {
    pub(super) tid: u32,
    pub(super) abi: ClientAbi,
    pub(super) client_arg: u64,
    /// What the kernel has fetched.
    pub(super) input: &'a [u8],
    /// Bytes that it has room for.
    pub(super) out_size: usize,
    /// Was it called by the shim, which can fetch a file?
    pub(super) has_shim: bool,
    pub(super) call: CallId,
}

/// How a round ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The call is done; these bytes go back to the areas that were asked for.
    Done(Vec<u8>),
    /// Another round with these areas.
    Again(Areas),
}

/// What a call needs of the program's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Areas {
    pub(super) input: Vec<ClientArea>,
    pub(super) output: Vec<ClientArea>,
}

impl Areas {
    fn struct_of(round: &Round<'_>, size: usize, argument: Argument) -> Self {
        let whole = vec![ClientArea {
            client_addr: round.client_arg,
            length: size as u64,
        }];
        match argument {
            Argument::Number => Self::default(),
            Argument::Out => Self {
                output: whole,
                ..Self::default()
            },
            Argument::InOut => Self {
                input: whole.clone(),
                output: whole,
            },
            Argument::In | Argument::ArraysIn | Argument::ArraysOut => Self {
                input: whole,
                ..Self::default()
            },
        }
    }

    /// Does any begin behind what a program of `abi` can have? The kernel takes that for a mistake of ours.
    pub(super) fn leave(&self, abi: ClientAbi) -> bool {
        let last = match abi {
            ClientAbi::Native => u64::MAX,
            ClientAbi::I386 | ClientAbi::Arm32 => u64::from(u32::MAX),
        };
        self.input
            .iter()
            .chain(&self.output)
            .any(|area| area.client_addr > last)
    }

    /// Has `round` been given them?
    pub(super) fn are_in(&self, round: &Round<'_>) -> bool {
        let bytes = |areas: &[ClientArea]| areas.iter().map(|area| area.length).sum::<u64>();
        bytes(&self.input) == round.input.len() as u64 && bytes(&self.output) == round.out_size as u64
    }
}

impl<'a> Round<'a> {
    /// Of a request, by a thread of a program of `abi`.
    pub(super) fn of(request: &IoctlRequest<'a>, tid: u32, abi: ClientAbi, has_shim: bool) -> Self {
        Self {
            tid,
            abi,
            client_arg: request.client_arg,
            input: request.input,
            out_size: request.out_size as usize,
            has_shim,
            call: CallId {
                unique: request.reply.first_unique(),
                is_resent: request.reply.is_resent(),
            },
        }
    }

    /// The struct that the program has given.
    pub(super) fn given<T: FromBytes>(&self) -> Result<T, Errno> {
        T::read_from_prefix(self.input)
            .map(|(given, _)| given)
            .map_err(|_| Errno::EFAULT)
    }
}

/// A call by the shim that is none of fbdev's: `bytes` go back.
pub(super) fn tell(round: &Round<'_>, bytes: &[u8]) -> Next {
    let areas = Areas::struct_of(round, bytes.len(), Argument::Out);
    if areas.are_in(round) {
        Next::Done(bytes.to_vec())
    } else {
        Next::Again(areas)
    }
}

/// lseek, told by the shim.
pub(super) fn seek(file: &FbFile, round: &Round<'_>) -> Result<Next, Errno> {
    let areas = Areas::struct_of(round, size_of::<Seek>(), Argument::InOut);
    if !areas.are_in(round) {
        return Ok(Next::Again(areas));
    }
    let mut seek: Seek = round.given()?;
    seek.offset = file.position.seek(seek.offset, seek.whence, round.call)?;
    file.commit();
    Ok(done(&seek))
}

fn done(bytes: &(impl IntoBytes + Immutable)) -> Next {
    Next::Done(bytes.as_bytes().to_vec())
}

/// The ioctl of `row`.
///
/// # Errors
/// What the program gets.
pub(super) fn fbio(file: &FbFile, row: &Row, round: &Round<'_>) -> Result<Next, Errno> {
    let behind = &*file.behind;
    if row.is_drivers && round.abi != ClientAbi::Native && !round.has_shim && !behind.has_compat_ioctl() {
        return Err(Errno::ENOTTY);
    }
    let areas = Areas::struct_of(round, row.size_for(round.abi), row.argument);
    let is_there = areas.are_in(round);
    match row.op {
        // Without a look at the argument.
        Fbio::Cursor => Err(Errno::EINVAL),
        Fbio::Blank => match u32::try_from(round.client_arg) {
            Ok(level @ ..=BLANK_POWERDOWN) => behind.fbioblank(level).map(|()| Next::Done(Vec::new())),
            _ => Err(Errno::EINVAL),
        },
        // A driver that does not know it does not look at the argument either.
        Fbio::GetVblank => match behind.fbioget_vblank()? {
            vblank if is_there => Ok(done(&vblank)),
            _ => Ok(Next::Again(areas)),
        },
        Fbio::Waitforvsync if !is_there && behind.needs_crtc() => Ok(Next::Again(areas)),
        Fbio::Waitforvsync => {
            let crtc = if is_there { round.given()? } else { 0 };
            let _waits = Waiting::new().ok_or(Errno::ENOMEM)?;
            behind.fbio_waitforvsync(crtc).map(|()| Next::Done(Vec::new()))
        }
        Fbio::GetDmabuf if !round.has_shim => Err(Errno::ENOTTY),
        Fbio::GetCmap => cmap::get(behind, round, areas),
        Fbio::PutCmap => cmap::put(behind, round, areas),
        Fbio::GetFscreeninfo if round.abi != ClientAbi::Native => fix_of_32_bits(behind, round),
        _ if !is_there => Ok(Next::Again(areas)),
        Fbio::GetVscreeninfo => Ok(done(&behind.fbioget_vscreeninfo()?)),
        Fbio::PutVscreeninfo => {
            let mut var: VarScreenInfo = round.given()?;
            behind.fbioput_vscreeninfo(&mut var)?;
            Ok(done(&var))
        }
        Fbio::GetFscreeninfo => Ok(done(&behind.fbioget_fscreeninfo()?)),
        Fbio::PanDisplay => {
            let mut var: VarScreenInfo = round.given()?;
            behind.fbiopan_display(&mut var)?;
            Ok(done(&var))
        }
        Fbio::GetCon2fbmap => {
            let mut map: Con2FbMap = round.given()?;
            behind.fbioget_con2fbmap(&mut map)?;
            Ok(done(&map))
        }
        Fbio::PutCon2fbmap => {
            behind.fbioput_con2fbmap(&round.given()?)?;
            Ok(Next::Done(Vec::new()))
        }
        Fbio::GetDmabuf => {
            let ticket = file.exported.keep(behind.dma_buf()?, true);
            Ok(done(&[ticket, libc::O_CLOEXEC]))
        }
    }
}

/// FBIOGET_FSCREENINFO of a 32-bit program, whose struct is not written as a whole.
fn fix_of_32_bits(behind: &dyn FramebufferFile, round: &Round<'_>) -> Result<Next, Errno> {
    let areas = Areas {
        input: Vec::new(),
        output: FIX_WRITTEN
            .map(|written| ClientArea {
                client_addr: round.client_arg.saturating_add(written.start as u64),
                length: (written.end - written.start) as u64,
            })
            .to_vec(),
    };
    if !areas.are_in(round) {
        return Ok(Next::Again(areas));
    }
    let fix = FixScreenInfo32::from(behind.fbioget_fscreeninfo()?);
    let bytes = fix.as_bytes();
    Ok(Next::Done(
        FIX_WRITTEN
            .into_iter()
            .flat_map(|written| &bytes[written])
            .copied()
            .collect(),
    ))
}

/// Of all nodes: each keeps a thread for as long as a refresh takes, of which a node has 128.
const MOST_WAITING: usize = 64;
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// A call that waits for a vertical blank.
struct Waiting;

impl Waiting {
    /// `None`: so many wait that others would not be served.
    fn new() -> Option<Self> {
        if WAITING.fetch_add(1, Ordering::Relaxed) < MOST_WAITING {
            return Some(Self);
        }
        WAITING.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}
