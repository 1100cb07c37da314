//! From a pointer to what stands behind it: the `vma_tryget_dma_buf()` that the kernel never got, from outside.
//!
//! A stretch of a client's memory is cut into its mappings; each is shown to the kinds of memory that we know
//! ([`KINDS`], in this order), until one says that it is its own. What comes of it says how the bytes can be had: by
//! import of a dma-buf, without a copy; through a mapping of the same object in this process; or, as of plain memory,
//! through the client's own address space.
//!
//! The rule that all kinds keep: nothing is reached that the client's own mapping does not give. Only a mapping that is
//! shared, and writable where a device is to write to it (readable where it is to read), is served through the object
//! behind it, and only the mapped range; a private mapping is plain memory. The object is taken from the client's own
//! fds or the mapping itself, and compared with what is mapped (device and inode), never opened because a name says so.
//!
//! Nothing here knows of a queue: which way a buffer is served is decided by `session::serve`.

mod behind;
mod device;
mod dma_buf;
mod flush;
mod framebuffer;
mod gem;
mod importable;
mod memfd;
mod modules;
mod own;
mod plain;
mod policy;
mod screen;
mod v4l2_buffer;
mod witness;

use std::cell::OnceCell;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use crate::client::BlockedThread;
use crate::sys::{MemoryFault, Vma};

pub use behind::{Behind, Segment};
pub use flush::Flush;
pub use importable::Importable;
pub use modules::importer_of;
pub use own::{Export, Exports, OwnBuffers};
pub use policy::{Importer, Policy, PolicyError, Rule, Verdict};
pub use witness::Witness;

/// At most so many of a client's open files of one device are tried.
const MAX_FILES: usize = 64;

/// What a device does with the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It fills it (CAPTURE): the client must be able to write there.
    Write,
    /// It reads it (OUTPUT).
    Read,
}

/// Who looks, at whom, and what for.
#[derive(Clone, Copy)]
pub struct Look<'a> {
    /// The client: its mappings, its fds.
    pub client: &'a BlockedThread,
    /// What the device does.
    pub access: Access,
    /// Into what kind of queue.
    pub importer: Importer,
    /// What may be imported there.
    pub policy: &'a Policy,
    /// Our own dma-bufs.
    pub own: &'a OwnBuffers,
}

impl Look<'_> {
    /// May a dma-buf of this exporter be imported?
    ///
    /// # Errors
    /// The reason why not, for status and `explain`.
    pub fn may_import(&self, exporter: &str) -> Result<(), String> {
        match self.policy.verdict(exporter, self.importer) {
            Verdict::Import => Ok(()),
            Verdict::Bounce => Err(format!("{exporter} is not imported into {}", self.importer)),
            Verdict::Never => Err(format!("{exporter} must not be imported into {}", self.importer)),
        }
    }
}

/// How bytes are copied to and from a stretch.
#[derive(Clone, Debug)]
pub enum CopyBy {
    /// Through the client's address space (`process_vm_writev(2)`).
    Memory,
    /// Through a mapping of the same object in this process.
    Object {
        /// What is to be mapped.
        file: Arc<File>,
        /// The offset for mmap(2), whole pages.
        offset: u64,
        /// The stretch's first byte lies so many bytes behind what `offset` names: less than a page, or more where an
        /// object can only be mapped from its start.
        skip: u64,
        /// `file` is a dma-buf: `DMA_BUF_IOCTL_SYNC` around the access.
        sync: bool,
    },
}

/// What a kind has found behind a stretch.
#[derive(Clone, Debug)]
pub struct Found {
    /// For people: `dma-buf 17 (system)`, `buffer 2 of /dev/video3`.
    pub what: String,
    /// Without a copy. `Err` is the reason why not.
    pub import: Result<Importable, String>,
    /// With one. `Err`: not at all, and why; that is EFAULT unless the import serves.
    pub copy: Result<CopyBy, String>,
    /// Where several objects could be mapped at the same address without the mapping looking different (buffers of
    /// one V4L2 queue): by what a change is noticed.
    pub frame: Option<Witness>,
    /// To be run after each frame that was written there, by a device or by a copy: it is a framebuffer, which does not
    /// notice.
    pub flush: Option<Arc<Flush>>,
}

impl Found {
    /// Memory that only the client's address space leads to.
    pub fn memory(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            import: Err("plain memory is copied".to_owned()),
            copy: Ok(CopyBy::Memory),
            frame: None,
            flush: None,
        }
    }
}

/// A kind of memory.
pub trait Kind: Sync {
    /// As status, log and `explain` call it.
    fn name(&self) -> &'static str;

    /// It is only about character devices of this major number, and is asked about nothing else. `None`: about any file.
    fn major(&self) -> Option<u32> {
        None
    }

    /// What stands behind `range`, which lies within `vma`. `None`: it is of another kind.
    ///
    /// `vma` allows what the look is for. It is shared and has a file, except for the last kind, which is shown
    /// everything.
    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found>;
}

/// The kinds, in the order in which they are asked: first those that the mapping itself tells apart, then those for
/// which its file must be looked at.
const KINDS: &[&dyn Kind] = &[
    &own::Own,
    &screen::Screen,
    &dma_buf::DmaBuf,
    &memfd::Memfd,
    &v4l2_buffer::V4l2Buffer,
    &framebuffer::Framebuffer,
    &gem::Gem,
    &device::Device,
];

/// So many mappings of a stretch are shown to the kinds, which may go through all fds of the client for each, and keep
/// an fd and a mapping of ours; a client can cut its memory into 65,000. What comes behind is plain memory or nothing.
const MOST_OBJECTS: usize = 8;

/// What stands behind `length` bytes from `client_addr`. Plain memory is one segment, however many mappings it has.
///
/// # Errors
/// [`MemoryFault::Fault`] where a page is not mapped, does not allow the access, or can be had in no way.
pub fn resolve(look: &Look<'_>, client_addr: u64, length: u32) -> Result<Behind, MemoryFault> {
    let end = client_addr
        .checked_add(u64::from(length))
        .ok_or(MemoryFault::Fault)?;
    let mut segments: Vec<Segment> = Vec::new();
    let mut asked = 0;
    look.client.each_mapping(client_addr..end, |vma| {
        let range = vma.start.max(client_addr)..vma.end.min(end);
        let segment = examine(look, vma, range, &mut asked);
        if segment.found.copy.is_err() && segment.found.import.is_err() {
            return Err(MemoryFault::Fault);
        }
        match segments.last_mut() {
            Some(last) if last.kind == plain::NAME && segment.kind == plain::NAME => {
                last.range.end = segment.range.end;
            }
            _ => segments.push(segment),
        }
        Ok(())
    })?;
    Ok(Behind { segments })
}

/// The same, hiding nothing: for `explain`, also what cannot be served. Ends where nothing is mapped.
pub fn examine_all(look: &Look<'_>, client_addr: u64, length: u32) -> Behind {
    let end = client_addr.saturating_add(u64::from(length));
    let mut segments = Vec::new();
    let mut asked = 0;
    // A hole is where the last segment ends.
    let _ = look.client.each_mapping(client_addr..end, |vma| {
        let range = vma.start.max(client_addr)..vma.end.min(end);
        segments.push(examine(look, vma, range, &mut asked));
        Ok(())
    });
    Behind { segments }
}

/// `asked` counts the mappings that were shown to the kinds.
fn examine(look: &Look<'_>, vma: Vma, range: Range<u64>, asked: &mut usize) -> Segment {
    let allowed = match look.access {
        Access::Write => vma.writable,
        Access::Read => true,
    };
    let has_object = vma.shared && vma.inode != 0 && (vma.readable || look.access == Access::Write);
    let ask = allowed && has_object && *asked < MOST_OBJECTS;
    *asked += usize::from(ask);
    let device = OnceCell::new();
    let is_about = |kind: &&&dyn Kind| {
        let device = || *device.get_or_init(|| look.client.device_of(&vma));
        let same = |major| device().is_some_and(|(of_vma, _)| of_vma == major);
        ask && kind.major().is_none_or(same)
    };
    let by_kind = KINDS
        .iter()
        .filter(is_about)
        .copied()
        .find_map(|kind| Some((kind.name(), kind.find(look, &vma, &range)?)));
    let (kind, mut found) = by_kind.unwrap_or_else(|| plain::find(look, &vma, &range, allowed));
    if !vma.writable && found.import.is_ok() {
        // A queue that is `bidirectional` (videobuf2-core.h); the driver's own USERPTR wants the right to write there.
        found.import = Err("it is read-only, and some drivers write to what they put out".to_owned());
    }
    Segment {
        vma,
        range,
        kind,
        found,
    }
}
