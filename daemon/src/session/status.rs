//! What `vidcompat status` tells of an open file.
//!
//! Whoever asks waits for no driver: where a call holds the session for long, the file is told as busy.

use std::sync::{MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use vidcompat_proto::abi::v4l2::{PlanarBuffer, buf_flag};
use vidcompat_proto::ioctl::QueueOp;

use super::counters::{Counters, Served};
use super::passed::Passed;
use super::queues::{QueueState, Slot};
use super::serve::{How, Way};
use super::{Session, State};
use crate::observe::model;

/// How long a call of the client may hold the session meanwhile.
const PATIENCE: Duration = Duration::from_millis(50);
/// vb2's own limit is 64 on 6.12 unless a driver wants more.
const MOST_SHOWN: usize = 256;

impl Session {
    /// The queues that have buffers; `None`: a call has held the session for too long.
    pub fn status(&self) -> Option<Vec<model::Queue>> {
        let mut state = self.lock_soon()?;
        let told = state.queues.each_mut().into_iter();
        let mut queues: Vec<_> = told.filter_map(|queue| self.queue_status(queue)).collect();
        queues.extend(stream_status("video capture", "read()", state.frames.counters()));
        queues.extend(stream_status("video output", "write()", state.writer.counters()));
        Some(queues)
    }

    fn lock_soon(&self) -> Option<MutexGuard<'_, State>> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.state.try_lock() {
                Ok(state) => return Some(state),
                Err(TryLockError::Poisoned(state)) => return Some(state.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() < end => {
                    thread::sleep(Duration::from_millis(1))
                }
                Err(TryLockError::WouldBlock) => return None,
            }
        }
    }

    fn queue_status(&self, queue: &QueueState) -> Option<model::Queue> {
        let passed = queue.passed.as_ref().map(Passed::memory_name);
        if queue.core.is_empty() && passed.is_none() {
            return None;
        }
        let buf_type = queue.core.buf_type();
        let buffer = |(index, slot): (&u32, &Slot)| model::Buffer {
            index: *index,
            state: self.buffer_state(buf_type, *index).to_owned(),
            planes: slot.ways.iter().map(|way| plane_status(queue, way)).collect(),
        };
        let (adopted, not_adopted) = queue.adoption.told();
        Some(model::Queue {
            adopted,
            not_adopted,
            buf_type: model::type_name(buf_type),
            memory: passed.unwrap_or("USERPTR").to_owned(),
            provider: queue.provider.map(|provider| provider.to_string()),
            streaming: queue.core.is_streaming(),
            importer: queue.importer.map(|importer| importer.to_string()),
            counters: queue.counters.model(),
            buffers: match &queue.passed {
                Some(passed) => self.passed_buffers(buf_type, passed),
                None => queue.slots.iter().map(buffer).collect(),
            },
        })
    }

    /// Buffers of which we know no more than the device.
    fn passed_buffers(&self, buf_type: u32, passed: &Passed) -> Vec<model::Buffer> {
        let indices = passed.indices().take(MOST_SHOWN);
        let buffer = |index| {
            let (state, length) = self.device_says(buf_type, index)?;
            let (how, what) = match passed.served() {
                Served::Lent => (model::How::Lent, "the device's own buffer, mapped by the client"),
                _ => (model::How::Imported, "a dma-buf of the client's own"),
            };
            let plane = model::Plane {
                length,
                how,
                what: Some(what.to_owned()),
                ..model::Plane::default()
            };
            Some(model::Buffer {
                index,
                state: state.to_owned(),
                planes: vec![plane],
            })
        };
        indices.filter_map(buffer).collect()
    }

    /// As the device's flags say.
    fn buffer_state(&self, buf_type: u32, index: u32) -> &'static str {
        self.device_says(buf_type, index)
            .map_or("unknown", |(state, _)| state)
    }

    /// The state, and the bytes of all planes; `None`: it has no such buffer.
    fn device_says(&self, buf_type: u32, index: u32) -> Option<(&'static str, u64)> {
        let mut buffer = PlanarBuffer::blank(buf_type, index);
        self.node.buffer_ioctl(QueueOp::Querybuf, &mut buffer).ok()?;
        let has = |flag| buffer.head.flags & flag != 0;
        let state = match () {
            () if has(buf_flag::QUEUED) => "queued",
            () if has(buf_flag::DONE) => "done",
            () if has(buf_flag::PREPARED) => "prepared",
            () => "dequeued",
        };
        let planes = buffer.described().iter();
        Some((state, planes.map(|plane| u64::from(plane.length)).sum()))
    }
}

/// What is read or written instead of queued, if anything is.
fn stream_status(buf_type: &str, call: &str, counters: &Counters) -> Option<model::Queue> {
    let counters = counters.model();
    (counters != model::Counters::default()).then(|| model::Queue {
        buf_type: buf_type.to_owned(),
        memory: call.to_owned(),
        streaming: true,
        counters,
        ..model::Queue::default()
    })
}

fn plane_status(queue: &QueueState, way: &Way) -> model::Plane {
    let (how, why) = match &way.how {
        How::Import(_) if queue.adoption.has(&way.claim) => (model::How::Adopted, None),
        How::Import(_) | How::Inherited(_) => (model::How::Imported, None),
        How::Copy { why, .. } => (model::How::Copied, Some(why.clone())),
    };
    model::Plane {
        client_addr: way.claim.client_addr,
        length: u64::from(way.claim.length),
        how,
        what: Some(way.what()),
        why,
    }
}
