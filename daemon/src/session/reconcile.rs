//! What has happened to a queue since it was last written down: at most one call, for each is written down with the lock
//! held that it was made under. The device says what came of it, buffer by buffer (QUERYBUF).
//!
//! Written down as the client's, and the device has it: a QBUF that nobody was answered; the request comes again and finds
//! it done. Written down as the device's, and it is the client's: a DQBUF; the next one gets that buffer, for the driver
//! still tells what is in it.

use std::collections::VecDeque;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2RemoveBuffers, V4l2RequestBuffers, buf_flag, memory};
use vidcompat_proto::ioctl::QueueOp;

use super::device::Device;
use super::ledger::{Place, UnderWay};
use super::queues::QueueState;
use super::record::Lost;
use crate::backend::v4l2::RealNode;

/// `V4L2_BUF_FLAG_IN_REQUEST`
pub(super) const IN_REQUEST: u32 = 0x80;
/// `VIDEO_MAX_FRAME`, and more for drivers that ask for more.
const MOST_BUFFERS: u32 = 64;

/// What came of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reconciled {
    /// The queue is what it was, or has no buffers.
    Goes,
    /// It was being made one that imports, and must be made again as it was.
    Rebuild,
}

/// Makes `queue`, which is as it was written down, what the device says that it is. Its slots are not there yet.
///
/// # Errors
/// The device has another queue than was written down.
pub(super) fn reconcile(
    node: &RealNode,
    device: &Device,
    queue: &mut QueueState,
    under_way: Option<UnderWay>,
) -> Result<Reconciled, Lost> {
    let buf_type = queue.core.buf_type();
    match under_way {
        // Once more is once: whoever called it is not answered yet.
        Some(UnderWay::Streamoff) if node.stream(QueueOp::Streamoff, buf_type).is_ok() => queue.streamoff(),
        Some(UnderWay::Creating { buf_type }) => discard_new(node, queue, buf_type),
        Some(UnderWay::Removing { by, first, count }) if query(node, buf_type, first).is_err() => {
            let removed = V4l2RemoveBuffers {
                index: first,
                count,
                buf_type,
                ..V4l2RemoveBuffers::default()
            };
            queue.removed(&removed);
            queue.ledger.removed_by(by, &removed);
        }
        _ => {}
    }
    // Another than a vb2 driver gives its buffers to whom it likes.
    if device.is_no_vb2(buf_type) || (queue.core.is_empty() && queue.passed.is_none()) {
        return Ok(Reconciled::Goes);
    }
    let indices: Vec<u32> = match &queue.passed {
        Some(passed) => (0..passed.end.min(MOST_BUFFERS)).collect(),
        None => queue.core.indices().collect(),
    };
    let memory = expected_memory(queue);
    let mut lost = VecDeque::new();
    for index in indices {
        let same = query(node, buf_type, index)
            .ok()
            .filter(|now| memory.is_none_or(|memory| memory == now.head.memory));
        match same {
            Some(now) => compare(queue, &now, &mut lost),
            // An index without a buffer.
            None if queue.passed.is_some() && under_way != Some(UnderWay::Remaking) => {}
            None => return of_another(node, queue, buf_type, under_way),
        }
    }
    queue.ledger.set_lost(lost);
    Ok(Reconciled::Goes)
}

/// What was written down and what the device has are two queues.
fn of_another(
    node: &RealNode,
    queue: &mut QueueState,
    buf_type: u32,
    under_way: Option<UnderWay>,
) -> Result<Reconciled, Lost> {
    match under_way {
        // The call comes again and makes all of it anew.
        Some(UnderWay::Remaking) => {
            queue.forget_buffers();
            Ok(Reconciled::Goes)
        }
        Some(UnderWay::Exporting) => {
            let importer = queue.importer;
            queue.forget_buffers();
            queue.importer = importer;
            free_all(node, buf_type);
            Ok(Reconciled::Rebuild)
        }
        _ => Err(Lost::Device(
            "it has other buffers than were written down".to_owned(),
        )),
    }
}

/// One buffer, which the device describes as it is `now`.
fn compare(queue: &mut QueueState, now: &PlanarBuffer, lost: &mut VecDeque<u32>) {
    let index = now.head.index;
    let has = |flags| now.head.flags & flags != 0;
    let place = if has(buf_flag::QUEUED | buf_flag::DONE | IN_REQUEST) {
        Place::Device
    } else if has(buf_flag::PREPARED) {
        Place::Prepared
    } else {
        Place::Client
    };
    let entry = queue.ledger.entry(index);
    match (entry.place, place) {
        (Place::Client | Place::Prepared, Place::Device) | (Place::Client, Place::Prepared) => {
            entry.place = place;
            entry.unanswered = true;
            entry.returned = None;
            if place == Place::Device {
                queue.core.queued(index);
            } else {
                queue.core.prepared(index);
            }
        }
        (Place::Device, Place::Client | Place::Prepared) => lost.push_back(index),
        _ => {}
    }
}

fn expected_memory(queue: &QueueState) -> Option<u32> {
    match &queue.passed {
        Some(passed) => Some(passed.memory),
        None => queue.provider.map(|provider| provider.memory()),
    }
}

/// Buffers that a CREATE_BUFS has made which comes again, and that nobody knows of.
fn discard_new(node: &RealNode, queue: &QueueState, buf_type: u32) {
    if queue.core.is_empty() && queue.passed.is_none() {
        return free_all(node, buf_type);
    }
    let is_known = |index: u32| match &queue.passed {
        Some(passed) => index < passed.end,
        None => queue.core.has(index),
    };
    for index in (0..MOST_BUFFERS).filter(|index| !is_known(*index)) {
        let mut request = V4l2RemoveBuffers {
            index,
            count: 1,
            buf_type,
            ..V4l2RemoveBuffers::default()
        };
        // Where they cannot be removed they stay, unused, and the client's get other numbers.
        if query(node, buf_type, index).is_ok() && node.remove_bufs(&mut request).is_err() {
            return;
        }
    }
}

/// Frees every buffer of the device's queue.
pub(super) fn free_all(node: &RealNode, buf_type: u32) {
    for memory in [memory::MMAP, memory::DMABUF] {
        let mut nothing = V4l2RequestBuffers {
            buf_type,
            memory,
            ..V4l2RequestBuffers::default()
        };
        if node.reqbufs(&mut nothing).is_ok() {
            return;
        }
    }
}

/// What the device says of a buffer.
pub(super) fn query(node: &RealNode, buf_type: u32, index: u32) -> Result<PlanarBuffer, Errno> {
    let mut buffer = PlanarBuffer::blank(buf_type, index);
    node.buffer_ioctl(QueueOp::Querybuf, &mut buffer)?;
    Ok(buffer)
}
