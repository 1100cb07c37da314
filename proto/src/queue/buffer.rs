//! One buffer of the queue: `struct vb2_buffer` with its planes, as far as the client can see them.

use super::{Acquire, Backing, Claim, ClientKey, Delivery, Next};
use crate::Errno;
use crate::abi::v4l2::{PlanarBuffer, V4l2Buffer, V4l2Plane, buf_flag, buf_type};

/// vb2's states. QUEUED, ACTIVE, DONE and ERROR are one here: which of them it is only the device knows, and it
/// says so in the flags of its answers. PREPARING is never seen between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub(super) enum State {
    Dequeued,
    Queued,
}

/// `V4L2_FIELD_ALTERNATE`
const FIELD_ALTERNATE: u32 = 7;

/// Fields of QUERYBUF that the device does not know as the client must see them, because the device never saw
/// the call that changed them (or saw one that the client never made). All end when the device gets the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
struct Override {
    flags: Option<u32>,
    field: Option<u32>,
    sequence: bool,
    timestamp: bool,
    timecode: bool,
}

/// The payload of an OUTPUT plane, as the client has said it and as the device will repeat it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
struct Payload {
    client: u32,
    device: u32,
    data_offset: u32,
    /// Size of the memory that the device was given.
    size: u32,
}

#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
struct Plane {
    min_length: u32,
    client_addr: u64,
    length: u32,
    /// Payload and offset that the client must see and the device does not know: its memory was let go since the
    /// device has seen the buffer, or the device has let go of ours.
    shown: Option<(u32, u32)>,
    /// The last QBUF or PREPARE_BUF brought other memory for it.
    acquiring: bool,
    payload: Payload,
    /// The length that the device has of its memory.
    device_length: u32,
    /// No payload is larger than what the client gave, whatever the device had room for.
    max_payload: u32,
}

#[derive(Clone, Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Buffer {
    pub(super) state: State,
    /// Orders what is queued.
    pub(super) turn: u64,
    pub(super) prepared: bool,
    is_output: bool,
    holds_capture: bool,
    client: ClientKey,
    planes: Vec<Plane>,
    shown: Override,
}

impl Buffer {
    /// A fresh buffer of `buf_type`; `holds_capture`: the queue knows `V4L2_BUF_FLAG_M2M_HOLD_CAPTURE_BUF`.
    pub(super) fn new(buf_type: u32, min_lengths: &[u32], holds_capture: bool) -> Self {
        let plane = |min_length: &u32| Plane {
            min_length: *min_length,
            client_addr: 0,
            length: *min_length,
            shown: Some((0, 0)),
            acquiring: false,
            payload: Payload::default(),
            device_length: *min_length,
            max_payload: *min_length,
        };
        Self {
            state: State::Dequeued,
            turn: 0,
            prepared: false,
            is_output: buf_type::is_output(buf_type),
            holds_capture,
            client: ClientKey(0),
            planes: min_lengths.iter().map(plane).collect(),
            // The session tries the import of a fresh buffer once, which leaves traces in the driver's struct.
            shown: Override {
                flags: Some(0),
                field: Some(0),
                sequence: true,
                timestamp: true,
                timecode: true,
            },
        }
    }

    /// The memory of all planes, if the buffer has any.
    pub(super) fn claims(&self) -> Option<Vec<Claim>> {
        self.planes
            .iter()
            .map(|plane| (plane.client_addr != 0).then(|| self.claim(plane.client_addr, plane.length)))
            .collect()
    }

    fn claim(&self, client_addr: u64, length: u32) -> Claim {
        Claim {
            client: self.client,
            client_addr,
            length,
        }
    }

    /// `__verify_planes_array`
    pub(super) fn verify_planes(&self, buffer: &PlanarBuffer) -> Result<(), Errno> {
        if buffer.planes.len() < self.planes.len() {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// `vb2_fill_vb2_v4l2_buffer`: nothing of it happens to a prepared buffer.
    pub(super) fn fill(&mut self, buffer: &PlanarBuffer) -> Result<(), Errno> {
        if self.prepared {
            return Ok(());
        }
        let head = &buffer.head;
        if self.is_output {
            let fits = self
                .planes
                .iter()
                .zip(&buffer.planes)
                .all(|(_, given)| payload_fits(given));
            if !fits || head.field == FIELD_ALTERNATE {
                return Err(Errno::EINVAL);
            }
        }
        let dropped = buf_flag::STATE_MASK | buf_flag::NO_CACHE_CLEAN | buf_flag::NO_CACHE_INVALIDATE;
        let dropped = if self.is_output {
            let hold = if self.holds_capture {
                0
            } else {
                buf_flag::M2M_HOLD_CAPTURE_BUF
            };
            dropped | buf_flag::TIMECODE | hold
        } else {
            dropped | buf_flag::TSTAMP_SRC_MASK | buf_flag::OUT_MASK | buf_flag::LAST
        };
        self.shown.flags = Some(head.flags & !dropped);
        self.shown.sequence = true;
        if self.is_output {
            self.shown.field = Some(head.field);
        }
        Ok(())
    }

    /// `__prepare_userptr`, up to the points where memory is looked at.
    pub(super) fn prepare(&mut self, buffer: &PlanarBuffer, client: ClientKey) -> Result<Next, Errno> {
        self.shown.timestamp = true;
        let mut acquire = Vec::new();
        let mut then = Ok(());
        let same_client = self.client == client;
        for plane in &mut self.planes {
            plane.acquiring = false;
        }
        for (plane, given) in self.planes.iter_mut().zip(&buffer.planes) {
            let same = plane.client_addr != 0
                && plane.client_addr == given.m
                && plane.length == given.length
                && same_client;
            if same {
                continue;
            }
            if given.length < plane.min_length {
                then = Err(Errno::EINVAL);
                break;
            }
            plane.acquiring = true;
            let last = given.m.checked_add(u64::from(given.length).saturating_sub(1));
            if last.is_none_or(|last| last >> 12 == u64::MAX >> 12) {
                // Pinning refuses a range that wraps (mm/gup.c:3459); Linux 6.1 says EFAULT.
                then = Err(Errno::EOVERFLOW);
                break;
            }
            acquire.push(Claim {
                client,
                client_addr: given.m,
                length: given.length,
            });
        }
        if acquire.is_empty() {
            if let Err(errno) = then {
                self.acquire_failed(self.planes.len());
                return Err(errno);
            }
            return Ok(Next::Ready(self.claims().unwrap_or_default()));
        }
        let all = self.planes.iter().zip(&buffer.planes).map(|(_, given)| Claim {
            client,
            client_addr: given.m,
            length: given.length,
        });
        Ok(Next::Acquire(Acquire {
            all: all.collect(),
            new: acquire,
            then,
        }))
    }

    pub(super) fn acquired(&mut self, claims: &[Claim]) {
        for (plane, claim) in self.planes.iter_mut().zip(claims) {
            self.client = claim.client;
            plane.client_addr = claim.client_addr;
            plane.length = claim.length;
        }
    }

    /// The error path of `__prepare_userptr`: the old memory of the planes up to the failing one, the `good`-th of
    /// those that were to be acquired, was let go with its payload; then that of all.
    pub(super) fn acquire_failed(&mut self, good: usize) {
        let replaced = self.planes.iter_mut().filter(|plane| plane.acquiring);
        for plane in replaced.take(good.saturating_add(1)) {
            plane.shown = Some((0, 0));
        }
        for plane in &mut self.planes {
            plane.client_addr = 0;
            plane.length = 0;
        }
    }

    /// The driver's `buf_prepare` has failed: the planes are let go, their payload stays as the client gave it. The
    /// device, `now`, has lost that of a dma-buf (`__vb2_plane_dmabuf_put`).
    pub(super) fn refused(&mut self, now: &PlanarBuffer) {
        for (plane, now) in self.planes.iter_mut().zip(now.described()) {
            let Payload {
                client, data_offset, ..
            } = plane.payload;
            plane.shown = Some((client, data_offset));
            plane.device_length = now.length;
            plane.client_addr = 0;
            plane.length = 0;
        }
    }

    /// What the device is told of the payload; it is remembered what the client said.
    pub(super) fn for_device(&mut self, buffer: &PlanarBuffer, backing: &[Backing]) -> PlanarBuffer {
        let mut device = Backing::give(backing, buffer);
        if !self.is_output || self.prepared {
            return device;
        }
        let is_multi_planar = device.is_multi_planar();
        let planes = self.planes.iter_mut().zip(backing).zip(&mut device.planes);
        for ((plane, backing), given) in planes {
            let size = match backing {
                Backing::DmaBuf { length, .. } => *length,
                Backing::Mmap => plane.min_length,
            };
            // Of a single-planar dma-buf `__verify_length` compares with the length of the last one: none after a
            // failure, and then nothing but zero is let through.
            let limit = if is_multi_planar {
                size
            } else {
                size.min(plane.device_length)
            };
            // Zero means all, or to some codecs the end: that is for the driver to say.
            let told = given.bytesused.min(limit);
            plane.payload = Payload {
                client: if given.bytesused == 0 {
                    plane.length
                } else {
                    given.bytesused
                },
                device: if told == 0 { size } else { told },
                data_offset: given.data_offset,
                size,
            };
            given.bytesused = told;
        }
        device
    }

    /// The device has the buffer as the client gave it: from here on its answers are right.
    pub(super) fn given(&mut self) {
        self.shown = Override {
            timecode: self.shown.timecode && !self.is_output,
            ..Override::default()
        };
        for plane in &mut self.planes {
            plane.shown = None;
            plane.max_payload = plane.length;
            plane.device_length = plane.payload.size;
        }
    }

    /// The client has the buffer again. Only now is the driver's timecode the one of this stream (`buf_finish`).
    pub(super) fn back(&mut self) {
        if self.prepared {
            self.shown.timecode = false;
        }
        self.state = State::Dequeued;
        self.prepared = false;
    }

    /// Which bytes of a dequeued buffer belong where; of an OUTPUT buffer none.
    pub(super) fn deliveries(&self, device: &PlanarBuffer) -> Option<Vec<Delivery>> {
        let claims = self.claims()?;
        if self.is_output {
            return Some(Vec::new());
        }
        let planes = claims.into_iter().zip(&device.planes);
        Some(
            planes
                .map(|(claim, plane)| Delivery {
                    claim,
                    bytes: plane.bytesused.min(claim.length),
                })
                .collect(),
        )
    }

    /// Makes the device's `reply` the client's.
    pub(super) fn correct(&self, reply: &mut PlanarBuffer) {
        for (plane, reply) in self.planes.iter().zip(&mut reply.planes) {
            plane.correct(reply, self.is_output);
        }
        self.correct_head(&mut reply.head);
    }

    fn correct_head(&self, reply: &mut V4l2Buffer) {
        let copies = reply.flags & buf_flag::TIMESTAMP_MASK == buf_flag::TIMESTAMP_COPY;
        if let Some(flags) = self.shown.flags {
            // In a queue that copies stamps their source is the buffer's, else the queue's.
            let kept = if copies {
                buf_flag::STATE_MASK
            } else {
                buf_flag::STATE_MASK | buf_flag::TSTAMP_SRC_MASK
            };
            reply.flags = (reply.flags & kept) | (flags & !kept);
        }
        if let Some(field) = self.shown.field {
            reply.field = field;
        }
        if self.shown.sequence {
            reply.sequence = 0;
        }
        // What is copied comes from an OUTPUT buffer, and no trial has left a trace.
        if self.shown.timestamp && !copies {
            reply.timestamp = [0; 2];
        }
        if self.shown.timecode && !copies {
            reply.timecode = [0; 16];
        }
    }
}

impl Plane {
    fn correct(&self, reply: &mut V4l2Plane, is_output: bool) {
        reply.m = self.client_addr;
        reply.length = self.length;
        if let Some(shown) = self.shown {
            (reply.bytesused, reply.data_offset) = shown;
            return;
        }
        if is_output && reply.bytesused == self.payload.device {
            reply.bytesused = self.payload.client;
        }
        reply.bytesused = reply.bytesused.min(self.max_payload);
    }
}

/// `__verify_length` for USERPTR.
const fn payload_fits(given: &V4l2Plane) -> bool {
    let payload = if given.bytesused == 0 {
        given.length
    } else {
        given.bytesused
    };
    given.bytesused <= given.length && (given.data_offset == 0 || given.data_offset < payload)
}
