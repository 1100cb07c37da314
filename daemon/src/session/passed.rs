//! Queues that the device has as the client sees them: of dma-bufs that the client brings itself (`V4L2_MEMORY_DMABUF`),
//! where only the numbers of the fds mean something else here than there, and, for a client with the shim, of the device's
//! own buffers (`V4L2_MEMORY_MMAP`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2Buffer, V4l2Plane, buf_flag, memory};
use vidcompat_proto::ioctl::QueueOp;
use vidcompat_proto::queue::Queue;

use super::Session;
use super::counters::Served;
use super::ledger::CallId;
use super::reconcile::IN_REQUEST;
use crate::client::BlockedThread;

/// No fd: the driver answers as for one that the client does not have.
const NO_FD: u32 = u32::MAX;

/// What we know of such a queue.
#[derive(Debug)]
pub(super) struct Passed {
    /// `V4L2_MEMORY_*`
    pub(super) memory: u32,
    /// Numbers of its own buffers that were asked for, by index: never used for another buffer.
    pub(super) ids: BTreeMap<u32, u64>,
    /// No buffer has a higher index, nor this.
    pub(super) end: u32,
    /// Dma-bufs by index of the buffer.
    pub(super) imported: BTreeMap<u32, Imported>,
}

/// The next name of a buffer.
static NEXT_NAME: AtomicU64 = AtomicU64::new(1);

/// What the client has given for a buffer last. Our fds stay open as long, so that a number that the driver repeats has
/// one meaning.
#[derive(Debug, Default)]
pub(super) struct Imported {
    /// The driver keeps what it has, whatever the next QBUF says.
    pub(super) prepared: bool,
    pub(super) planes: Vec<Plane>,
    /// The client's number of the request that it was queued in, which the driver repeats as ours.
    pub(super) request_fd: u32,
}

#[derive(Debug)]
pub(super) struct Plane {
    pub(super) client_fd: u32,
    ours: Ours,
}

#[derive(Debug)]
enum Ours {
    Fd(OwnedFd),
    /// What it was in a daemon before us. The device has the dma-buf, and repeats the number.
    Was(u32),
    None,
}

impl Plane {
    /// As a daemon before us has left it.
    pub(super) fn again(client_fd: u32, our_number: Option<u32>) -> Self {
        Self {
            client_fd,
            ours: our_number.map_or(Ours::None, Ours::Was),
        }
    }

    /// Our number of it, if it was a dma-buf.
    pub(super) fn our_number(&self) -> Option<u32> {
        match &self.ours {
            Ours::Fd(fd) => Some(fd.as_raw_fd().cast_unsigned()),
            Ours::Was(number) => Some(*number),
            Ours::None => None,
        }
    }

    fn number(&self) -> u32 {
        self.our_number().unwrap_or(NO_FD)
    }
}

/// Of an fd or an offset only the low half of the union counts.
const fn low_half(m: u64) -> u32 {
    (m & 0xffff_ffff) as u32
}

impl Passed {
    pub(super) fn new(memory: u32, count: u32) -> Self {
        Self {
            memory,
            ids: BTreeMap::new(),
            end: count,
            imported: BTreeMap::new(),
        }
    }

    /// There are buffers up to `end` now.
    pub(super) fn created(&mut self, end: u32) {
        self.end = self.end.max(end);
    }

    /// The names that a daemon before us gave are nobody else's.
    pub(super) fn named_again(&mut self, names: &[(u32, u64)]) {
        self.ids.extend(names.iter().copied());
        let highest = names.iter().map(|(_, name)| name.saturating_add(1)).max();
        NEXT_NAME.fetch_max(highest.unwrap_or_default(), Ordering::Relaxed);
    }

    /// Names buffer `index` from now on, as long as it is not removed: another one can get its index.
    pub(super) fn name(&mut self, index: u32) -> u64 {
        let next = || NEXT_NAME.fetch_add(1, Ordering::Relaxed);
        *self.ids.entry(index).or_insert_with(next)
    }

    /// Is this the name of buffer `index`?
    pub(super) fn is_named(&self, index: u32, name: u64) -> bool {
        self.ids.get(&index) == Some(&name)
    }

    /// Is nothing in `head` a file of the client's?
    pub(super) fn needs_no_caller(&self, head: &V4l2Buffer) -> bool {
        self.memory == memory::MMAP && head.flags & buf_flag::REQUEST_FD == 0
    }

    /// For people.
    pub(super) fn memory_name(&self) -> &'static str {
        if self.memory == memory::MMAP {
            "MMAP"
        } else {
            "DMABUF"
        }
    }

    /// How its frames are served.
    pub(super) fn served(&self) -> Served {
        if self.memory == memory::MMAP {
            Served::Lent
        } else {
            Served::Dmabuf
        }
    }

    /// The indices that a buffer may have.
    pub(super) fn indices(&self) -> Range<u32> {
        0..self.end
    }

    /// The indices that buffers of the device's own may have.
    pub(super) fn mmap_indices(&self) -> Range<u32> {
        0..if self.memory == memory::MMAP { self.end } else { 0 }
    }

    pub(super) fn removed(&mut self, indices: Range<u32>) {
        self.ids.retain(|index, _| !indices.contains(index));
        self.imported.retain(|index, _| !indices.contains(index));
    }

    pub(super) fn streamoff(&mut self) {
        for imported in self.imported.values_mut() {
            imported.prepared = false;
        }
    }

    pub(super) fn dequeued(&mut self, index: u32) {
        if let Some(imported) = self.imported.get_mut(&index) {
            imported.prepared = false;
        }
    }

    /// A daemon before us gave the device what is `asked`, and did not live to write down which dma-bufs these are.
    pub(super) fn given_before(&mut self, device: &PlanarBuffer, asked: &PlanarBuffer) {
        if self.memory != memory::DMABUF {
            return;
        }
        let imported = self.imported.entry(asked.head.index).or_default();
        if imported.prepared {
            return;
        }
        let planes = asked.planes.iter().zip(device.described());
        let has = device.head.flags & (buf_flag::QUEUED | buf_flag::DONE | buf_flag::PREPARED | IN_REQUEST);
        *imported = Imported {
            // Another thread may have got it back by now; then the next QBUF brings others.
            prepared: has != 0,
            planes: planes
                .map(|(asked, device)| Plane::again(low_half(asked.m), Some(low_half(device.m))))
                .collect(),
            request_fd: asked.head.request_fd,
        };
    }

    /// The device's answer with the client's own numbers.
    pub(super) fn reply(&self, device: &PlanarBuffer, asked: &PlanarBuffer) -> PlanarBuffer {
        let mut planes = Queue::planes_of(device, asked);
        let described = device.described().len();
        let known = self.imported.get(&device.head.index);
        for (at, plane) in planes.iter_mut().take(described).enumerate() {
            let given = known.and_then(|imported| imported.planes.get(at));
            let offset_or_fd = if self.memory == memory::MMAP {
                low_half(plane.m)
            } else {
                given
                    .filter(|given| given.number() == low_half(plane.m))
                    .map_or(0, |given| given.client_fd)
            };
            // The other half of the union is the caller's, and stays.
            let rest = asked.planes.get(at).map_or(0, |asked| asked.m & !0xffff_ffff);
            plane.m = rest | u64::from(offset_or_fd);
        }
        let mut head = V4l2Buffer {
            m: asked.head.m,
            ..device.head
        };
        if head.flags & buf_flag::REQUEST_FD != 0 {
            head.request_fd = known.map_or(0, |imported| imported.request_fd);
        }
        PlanarBuffer { head, planes }
    }
}

impl Session {
    /// QBUF or PREPARE_BUF of a buffer of such a queue. `caller` may be missing where [`Passed::needs_no_caller`].
    pub(super) fn give_passed(
        &self,
        op: QueueOp,
        asked: &PlanarBuffer,
        caller: Option<&BlockedThread>,
        call: CallId,
    ) -> Result<PlanarBuffer, Errno> {
        let head = &asked.head;
        let in_request = head.flags & buf_flag::REQUEST_FD != 0;
        if in_request && head.memory != memory::MMAP {
            return Err(self.refuse_request(op, asked));
        }
        // What is no request is -1 to the driver, which says so.
        let request = caller
            .filter(|_| in_request)
            .and_then(|caller| caller.request(head.request_fd.cast_signed()));
        let brought = || {
            let plane = |plane: &V4l2Plane| Plane {
                client_fd: low_half(plane.m),
                ours: caller
                    .and_then(|caller| caller.dma_buf(low_half(plane.m).cast_signed()))
                    .map_or(Ours::None, Ours::Fd),
            };
            asked.planes.iter().map(plane).collect::<Vec<_>>()
        };
        // Not under the lock: looking into another process can take its time.
        let mut brought = if head.memory == memory::DMABUF {
            brought()
        } else {
            Vec::new()
        };
        let mut state = self.lock();
        let queue = state.queues.of_mut(head.buf_type);
        let ledger = &mut queue.ledger;
        let Some(passed) = &mut queue.passed else {
            // Another thread has called REQBUFS meanwhile.
            return Err(Errno::EINVAL);
        };
        let mut device = Queue::without_references(asked);
        if head.memory == memory::MMAP {
            let kept = buf_flag::NO_CACHE_CLEAN | buf_flag::NO_CACHE_INVALIDATE | buf_flag::REQUEST_FD;
            device.head.flags |= head.flags & kept;
            device.head.request_fd = match &request {
                Some(request) => request.as_raw_fd().cast_unsigned(),
                None if in_request => NO_FD,
                None => 0,
            };
        }
        for (plane, brought) in device.planes.iter_mut().zip(&brought) {
            plane.m = u64::from(brought.number());
        }
        let outcome = self.node.buffer_ioctl(op, &mut device);
        let keeps = |device: &PlanarBuffer| device.head.flags & buf_flag::PREPARED != 0;
        let taken = match outcome {
            Ok(()) => true,
            Err(_) => {
                // A driver that refuses to start streaming keeps the buffer prepared (videobuf2-core.c:1884).
                let mut now = PlanarBuffer::blank(head.buf_type, head.index);
                self.node.buffer_ioctl(QueueOp::Querybuf, &mut now).is_ok() && keeps(&now)
            }
        };
        // An index that no buffer has leaves nothing behind.
        if taken {
            let imported = passed.imported.entry(head.index).or_default();
            imported.request_fd = head.request_fd;
            if !imported.prepared {
                imported.planes = std::mem::take(&mut brought);
                imported.prepared = true;
            }
        }
        outcome?;
        ledger.given(op, head.index, call);
        let reply = passed.reply(&device, asked);
        self.commit(&state);
        Ok(reply)
    }

    /// No requests for dma-bufs, which a driver looks up by their numbers when the *client* queues the request: what a queue without them says, after its other checks.
    fn refuse_request(&self, op: QueueOp, asked: &PlanarBuffer) -> Errno {
        let mut now = PlanarBuffer::blank(asked.head.buf_type, asked.head.index);
        let known = self.node.buffer_ioctl(QueueOp::Querybuf, &mut now).is_ok();
        let queued = now.head.flags & (buf_flag::QUEUED | buf_flag::DONE) != 0;
        if op == QueueOp::PrepareBuf || !known || queued || asked.head.memory == memory::USERPTR {
            Errno::EINVAL
        } else {
            Errno::EBADR
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Passed;
    use vidcompat_proto::abi::v4l2::{PlanarBuffer, buf_flag, buf_type, memory};

    #[test]
    fn a_dma_buf_that_a_daemon_before_us_gave_is_called_what_the_client_calls_it() {
        let buffer = |fd| {
            let mut buffer = PlanarBuffer::blank(buf_type::VIDEO_CAPTURE, 1);
            buffer.planes.truncate(1);
            buffer.planes[0].m = fd;
            buffer
        };
        let (asked, mut device) = (buffer(7), buffer(31));
        device.head.flags = buf_flag::QUEUED;
        let mut passed = Passed::new(memory::DMABUF, 3);
        assert_eq!(passed.reply(&device, &asked).planes[0].m, 0);
        passed.given_before(&device, &asked);
        assert_eq!(passed.reply(&device, &asked).planes[0].m, 7);
        passed.given_before(&device, &buffer(8));
        assert_eq!(passed.reply(&device, &asked).planes[0].m, 7, "it is prepared");
        passed.dequeued(1);
        device.head.flags = 0;
        passed.given_before(&device, &buffer(8));
        assert!(!passed.imported[&1].prepared, "the device has given it back");
    }

    #[test]
    fn a_buffer_that_has_the_index_of_a_removed_one_is_another() {
        let mut passed = Passed::new(memory::MMAP, 3);
        let names = [0, 1, 2].map(|index| passed.name(index));
        assert!(passed.is_named(1, names[1]) && passed.name(1) == names[1]);
        assert!(!passed.is_named(0, names[1]) && !passed.is_named(3, names[1]));
        passed.removed(1..2);
        assert!(!passed.is_named(1, names[1]));
        passed.created(2);
        assert!(passed.name(1) != names[1] && !passed.is_named(1, names[1]));
        assert!(passed.is_named(0, names[0]) && passed.is_named(2, names[2]));
        assert!(
            !Passed::new(memory::MMAP, 3).is_named(0, names[0]),
            "another queue"
        );
    }
}
