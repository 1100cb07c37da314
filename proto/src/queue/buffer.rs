//! One buffer of the queue: `struct vb2_buffer` as far as the client can see it.

use super::{Claim, ClientKey, Next};
use crate::Errno;
use crate::abi::v4l2::{V4l2Buffer, buf_flag};

/// vb2's states. QUEUED, ACTIVE, DONE and ERROR are one here: which of them it is only the device knows, and it
/// says so in the flags of its answers. PREPARING is never seen between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Dequeued,
    Queued,
}

/// Fields of QUERYBUF that the device does not know as the client must see them, because the device never saw
/// the call that changed them (or saw one that the client never made). All end when the device gets the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Override {
    bytesused: bool,
    flags: Option<u32>,
    sequence: bool,
    timestamp: bool,
    timecode: bool,
}

#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) state: State,
    pub(super) prepared: bool,
    min_length: u32,
    client: ClientKey,
    client_addr: u64,
    length: u32,
    shown: Override,
    /// No payload is larger than what the client gave, whatever the device had room for.
    max_payload: u32,
}

impl Buffer {
    pub(super) fn new(min_length: u32) -> Self {
        Self {
            state: State::Dequeued,
            prepared: false,
            min_length,
            client: ClientKey(0),
            client_addr: 0,
            length: min_length,
            // The session tries the import of a fresh buffer once, which leaves a payload in the driver's struct.
            shown: Override {
                bytesused: true,
                flags: Some(0),
                sequence: true,
                timestamp: true,
                timecode: true,
            },
            max_payload: min_length,
        }
    }

    pub(super) fn claim(&self) -> Option<Claim> {
        (self.client_addr != 0).then_some(Claim {
            client: self.client,
            client_addr: self.client_addr,
            length: self.length,
        })
    }

    /// `vb2_fill_vb2_v4l2_buffer` for a capture buffer: nothing of it happens to a prepared one.
    pub(super) fn fill(&mut self, flags: u32) {
        if self.prepared {
            return;
        }
        let dropped = buf_flag::STATE_MASK
            | buf_flag::TSTAMP_SRC_MASK
            | buf_flag::OUT_MASK
            | buf_flag::LAST
            | buf_flag::NO_CACHE_CLEAN
            | buf_flag::NO_CACHE_INVALIDATE;
        self.shown.flags = Some(flags & !dropped);
        self.shown.sequence = true;
    }

    /// `__prepare_userptr`, up to the point where the memory is looked at.
    pub(super) fn prepare(&mut self, buffer: &V4l2Buffer, client: ClientKey) -> Result<Next, Errno> {
        self.shown.timestamp = true;
        let same = self.client_addr != 0
            && self.client_addr == buffer.m
            && self.length == buffer.length
            && self.client == client;
        if same {
            return Ok(Next::Ready);
        }
        if buffer.length < self.min_length {
            self.release();
            return Err(Errno::EINVAL);
        }
        let claim = Claim {
            client,
            client_addr: buffer.m,
            length: buffer.length,
        };
        let last = buffer.m.checked_add(u64::from(buffer.length).saturating_sub(1));
        if last.is_none_or(|last| last >> 12 == u64::MAX >> 12) {
            // Pinning refuses a range that wraps (mm/gup.c:3459); Linux 6.1 says EFAULT.
            self.acquire_failed();
            return Err(Errno::EOVERFLOW);
        }
        Ok(Next::Acquire(claim))
    }

    pub(super) fn acquired(&mut self, claim: Claim) {
        self.client = claim.client;
        self.client_addr = claim.client_addr;
        self.length = claim.length;
    }

    /// The error path of `__prepare_userptr` after the old memory was let go.
    pub(super) fn acquire_failed(&mut self) {
        self.shown.bytesused = true;
        self.release();
    }

    fn release(&mut self) {
        self.client_addr = 0;
        self.length = 0;
    }

    /// The device has the buffer as the client gave it: from here on its answers are right.
    pub(super) fn given(&mut self) {
        self.shown = Override {
            timecode: self.shown.timecode,
            ..Override::default()
        };
        self.max_payload = self.length;
    }

    /// The client has the buffer again. Only now is the driver's timecode the one of this stream (`buf_finish`).
    pub(super) fn back(&mut self) {
        if self.prepared {
            self.shown.timecode = false;
        }
        self.state = State::Dequeued;
        self.prepared = false;
    }

    pub(super) fn correct(&self, reply: &mut V4l2Buffer) {
        reply.m = self.client_addr;
        reply.length = self.length;
        reply.bytesused = reply.bytesused.min(self.max_payload);
        if self.shown.bytesused {
            reply.bytesused = 0;
        }
        if let Some(flags) = self.shown.flags {
            reply.flags = (reply.flags & (buf_flag::STATE_MASK | buf_flag::TSTAMP_SRC_MASK)) | flags;
        }
        if self.shown.sequence {
            reply.sequence = 0;
        }
        if self.shown.timestamp {
            reply.timestamp = [0; 2];
        }
        if self.shown.timecode {
            reply.timecode = [0; 16];
        }
    }
}
