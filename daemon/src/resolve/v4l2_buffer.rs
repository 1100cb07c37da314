//! An MMAP buffer of a V4L2 queue: a mapped camera or codec node.
//!
//! The mapping does not say which buffer it is: vb2 clears the offset that told it (videobuf2-core.c, `vb2_mmap`), so
//! that what is shown is the place within the buffer. So each buffer that could be meant is exported by the client's
//! own open file, mapped here, and compared with what the client has mapped; one that is the same is it beyond doubt,
//! and what has been compared is what is used. The order of the client's mappings, lengths or contents would be guesses.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use v4l2r::ioctl::Capability;
use vidcompat_proto::abi::format::{capture_types, output_types};
use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2ExportBuffer, V4l2Plane, buf_flag, memory};
use vidcompat_proto::ioctl::{QueueOp, queue_row};

use super::witness::{self, Witness};
use super::{CopyBy, Found, Importable, Kind, Look, MAX_FILES};
use crate::sys::{self, Vma};

/// `VIDEO_MAJOR` (media/v4l2-dev.h), and how many minors are V4L2's: ours are behind them.
const MAJOR: u32 = 81;
const MINORS: u32 = 256;

/// A queue has at most so many buffers (videobuf2-core.h, `MAX_BUFFER_INDEX`), and once buffers have been removed there
/// are gaps: a queue has ended where so many are missing.
const MAX_BUFFERS: u32 = 1024;
const MAX_GAP: u32 = 32;

/// See the module.
pub(super) struct V4l2Buffer;

/// A plane of a buffer.
#[derive(Clone, Copy)]
struct Plane {
    buf_type: u32,
    index: u32,
    plane: u32,
    is_one_of_several: bool,
}

impl Plane {
    /// Its export, to be read and written.
    fn request(&self) -> V4l2ExportBuffer {
        V4l2ExportBuffer {
            buf_type: self.buf_type,
            index: self.index,
            plane: self.plane,
            flags: libc::O_RDWR.cast_unsigned(),
            ..V4l2ExportBuffer::default()
        }
    }

    fn name(&self) -> String {
        match self.is_one_of_several {
            true => format!("buffer {}, plane {}", self.index, self.plane),
            false => format!("buffer {}", self.index),
        }
    }
}

/// What has been found out about the buffer.
struct Known {
    name: String,
    dma_buf: Arc<OwnedFd>,
    witness: Witness,
}

impl Kind for V4l2Buffer {
    fn name(&self) -> &'static str {
        "V4L2 buffer"
    }

    fn major(&self) -> Option<u32> {
        Some(MAJOR)
    }

    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        if look.client.device_of(vma)?.1 >= MINORS {
            return None;
        }
        let node = String::from_utf8_lossy(&vma.name);
        let place = vma.offset + (range.start - vma.start);
        let known = identify(look, vma, range, place);
        let import = known
            .as_ref()
            .map_err(String::clone)
            .and_then(|known| Importable::of(look, Arc::clone(&known.dma_buf), place));
        let copy = match look.client.touch(range.start) {
            Ok(()) => Ok(CopyBy::Memory),
            Err(_) => known.as_ref().map_err(String::clone).and_then(|known| {
                let file = known.dma_buf.try_clone().map_err(|error| error.to_string())?;
                Ok(CopyBy::Object {
                    file: Arc::new(File::from(file)),
                    // Whatever the offset, some are mapped from their start (vb2_vmalloc_mmap).
                    offset: 0,
                    skip: place,
                    sync: true,
                })
            }),
        };
        Some(Found {
            what: match &known {
                Ok(known) => format!("{} of {node}", known.name),
                Err(_) => format!("a buffer of {node}"),
            },
            import,
            copy,
            frame: known.ok().map(|known| known.witness),
            flush: None,
        })
    }
}

/// Which buffer it is.
///
/// # Errors
/// Why that cannot be known, for people.
fn identify(look: &Look<'_>, vma: &Vma, range: &Range<u64>, place: u64) -> Result<Known, String> {
    let mut files = look.client.files_of(vma, |file| file.link == vma.name).peekable();
    if files.peek().is_none() {
        return Err("the client has closed the device that it has mapped".to_owned());
    }
    let seen = witness::of_client(look.client, range)?;
    let mapped = vma.offset + (vma.end - vma.start);
    let mut refused = None;
    for file in files.take(MAX_FILES) {
        for plane in planes(&file, mapped) {
            let exported = sys::export_buffer(&file, &plane.request());
            let dma_buf = match exported {
                Ok(dma_buf) => dma_buf,
                Err(errno) => {
                    refused = Some(errno);
                    continue;
                }
            };
            if seen.is_of(&dma_buf, place) {
                return Ok(Known {
                    name: plane.name(),
                    dma_buf: Arc::new(dma_buf),
                    witness: seen.witness(),
                });
            }
        }
    }
    Err(match refused {
        Some(Errno::EBUSY) => "its buffers belong to another open file".to_owned(),
        Some(errno) => format!("its buffers cannot be exported: {errno}"),
        None => "it is none of the buffers that its device has now".to_owned(),
    })
}

/// The planes of MMAP buffers of `node` that somebody has mapped (or exported) and that have at least `mapped` bytes.
fn planes(node: &impl AsFd, mapped: u64) -> impl Iterator<Item = Plane> {
    let is_candidate = move |described: &V4l2Plane| {
        let whole = u64::from(described.length).next_multiple_of(4096);
        whole >= mapped
    };
    let of_buffer = move |buffer: PlanarBuffer| {
        let is_mapped = buffer.head.flags & buf_flag::MAPPED != 0;
        let described = buffer.described().iter().filter(|_| is_mapped).zip(0..);
        let planes = described.filter(|(described, _)| is_candidate(described));
        let plane = |(_, plane)| Plane {
            buf_type: buffer.head.buf_type,
            index: buffer.head.index,
            plane,
            is_one_of_several: buffer.is_multi_planar(),
        };
        planes.map(plane).collect::<Vec<_>>()
    };
    let types = types(node).into_iter();
    types
        .flat_map(|buf_type| buffers(node, buf_type))
        .flat_map(of_buffer)
}

/// The queues that the node says it has; all, where it says nothing.
fn types(node: &impl AsFd) -> Vec<u32> {
    let told = v4l2r::ioctl::querycap(&node.as_fd()).map_or(0, |told: Capability| told.device_caps().bits());
    let of = |caps| capture_types(caps).chain(output_types(caps)).collect();
    let mut types: Vec<u32> = of(told);
    if types.is_empty() {
        types = of(u32::MAX);
    }
    // A device may say in two ways that it has one.
    types.dedup();
    types
}

/// The MMAP buffers of a queue; the iterator asks the device as it goes.
fn buffers(node: &impl AsFd, buf_type: u32) -> impl Iterator<Item = PlanarBuffer> {
    let mut missing = 0;
    let asked = (0..MAX_BUFFERS).map_while(move |index| {
        let mut buffer = PlanarBuffer::blank(buf_type, index);
        let there = sys::buffer_ioctl(node, queue_row(QueueOp::Querybuf), &mut buffer).is_ok();
        missing = if there { 0 } else { missing + 1 };
        if missing > MAX_GAP || there && buffer.head.memory != memory::MMAP {
            return None;
        }
        Some(there.then_some(buffer))
    });
    asked.flatten()
}
