//! An MMAP buffer of a V4L2 queue: a mapped camera or codec node.
//!
//! The mapping does not say which buffer it is: vb2 clears the offset that told it (videobuf2-core.c, `vb2_mmap`), so
//! that what is shown is the place within the buffer. So each buffer that could be meant is exported by the client's
//! own open file, mapped here, and compared with what the client has mapped; one that is the same is it beyond doubt,
//! and what has been compared is what is used. The order of the client's mappings, lengths or contents would be guesses.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use vidcompat_proto::abi::v4l2::{PlanarBuffer, buf_flag, buf_type, memory};
use vidcompat_proto::ioctl::{QueueOp, queue_row};

use super::client_file;
use super::witness::{self, Witness};
use super::{CopyBy, Found, Importable, Kind, Look};
use crate::sys::{self, Vma};

/// `VIDEO_MAJOR` (media/v4l2-dev.h), and how many minors are V4L2's: ours are behind them.
const MAJOR: u32 = 81;
const MINORS: u32 = 256;

/// The kinds of queue that a node can have buffers of.
const TYPES: [u32; 12] = [
    buf_type::VIDEO_CAPTURE,
    buf_type::VIDEO_OUTPUT,
    buf_type::VIDEO_CAPTURE_MPLANE,
    buf_type::VIDEO_OUTPUT_MPLANE,
    buf_type::VBI_CAPTURE,
    buf_type::VBI_OUTPUT,
    buf_type::SLICED_VBI_CAPTURE,
    buf_type::SLICED_VBI_OUTPUT,
    buf_type::SDR_CAPTURE,
    buf_type::SDR_OUTPUT,
    buf_type::META_CAPTURE,
    buf_type::META_OUTPUT,
];

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
}

/// What has been found out about the buffer.
struct Known {
    name: String,
    dma_buf: Arc<OwnedFd>,
    exporter: String,
    size: u64,
    inode: u64,
    witness: Witness,
}

impl Kind for V4l2Buffer {
    fn name(&self) -> &'static str {
        "V4L2 buffer"
    }

    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        let (major, minor) = client_file::device_of(look, vma)?;
        if major != MAJOR || minor >= MINORS {
            return None;
        }
        let node = String::from_utf8_lossy(&vma.name);
        let place = vma.offset + (range.start - vma.start);
        let known = identify(look, vma, range, place);
        let import = known.as_ref().map_err(String::clone).and_then(|known| {
            look.may_import(&known.exporter).map(|()| Importable {
                fd: Arc::clone(&known.dma_buf),
                exporter: known.exporter.clone(),
                inode: known.inode,
                size: known.size,
                offset: place,
                flush: None,
            })
        });
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
        })
    }
}

/// Which buffer it is.
///
/// # Errors
/// Why that cannot be known, for people.
fn identify(look: &Look<'_>, vma: &Vma, range: &Range<u64>, place: u64) -> Result<Known, String> {
    let files = client_file::of_mapping(look, vma);
    if files.is_empty() {
        return Err("the client has closed the device that it has mapped".to_owned());
    }
    let seen = witness::of_client(look.client, range)?;
    let mapped = vma.offset + (vma.end - vma.start);
    let mut refused = None;
    for file in &files {
        for (plane, name) in planes(file, mapped) {
            let exported = sys::export_buffer(file, plane.buf_type, plane.index, plane.plane);
            let dma_buf = match exported {
                Ok(dma_buf) => dma_buf,
                Err(errno) => {
                    refused = Some(errno);
                    continue;
                }
            };
            if !seen.is_of(&dma_buf, place) {
                continue;
            }
            let (exporter, size) =
                client_file::exporter_of(&dma_buf).ok_or("nothing is known of its dma-buf")?;
            let inode = rustix::fs::fstat(&dma_buf)
                .map_err(|error| error.to_string())?
                .st_ino;
            return Ok(Known {
                name,
                dma_buf: Arc::new(dma_buf),
                exporter,
                size,
                inode,
                witness: seen.witness(),
            });
        }
    }
    Err(match refused {
        Some(Errno::EBUSY) => "its buffers belong to another open file".to_owned(),
        Some(errno) => format!("its buffers cannot be exported: {errno}"),
        None => "it is none of the buffers that its device has now".to_owned(),
    })
}

/// The planes of MMAP buffers of `file` that somebody has mapped (or exported) and that have at least `mapped` bytes.
fn planes(file: &File, mapped: u64) -> Vec<(Plane, String)> {
    let mut found = Vec::new();
    for buf_type in TYPES {
        let mut missing = 0;
        for index in 0..MAX_BUFFERS {
            let mut buffer = PlanarBuffer::blank(buf_type, index);
            if sys::buffer_ioctl(file, queue_row(QueueOp::Querybuf), &mut buffer).is_err() {
                missing += 1;
                if missing > MAX_GAP {
                    break;
                }
                continue;
            }
            missing = 0;
            if buffer.head.memory != memory::MMAP {
                break;
            }
            if buffer.head.flags & buf_flag::MAPPED == 0 {
                continue;
            }
            for (plane, described) in (0..).zip(buffer.described()) {
                if u64::from(described.length).next_multiple_of(4096) >= mapped {
                    let name = match buffer.is_multi_planar() {
                        true => format!("buffer {index}, plane {plane}"),
                        false => format!("buffer {index}"),
                    };
                    found.push((
                        Plane {
                            buf_type,
                            index,
                            plane,
                        },
                        name,
                    ));
                }
            }
        }
    }
    found
}
