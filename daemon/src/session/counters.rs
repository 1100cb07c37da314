//! What a queue has done, counted where it is done: atomic additions, no lock. What goes through a queue is counted for
//! its device as well, where nothing is ever taken back: [`model::Counters`] says what each is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use vidcompat_proto::abi::v4l2::{V4l2Buffer, buf_flag};

use crate::observe::latency::Histogram;
use crate::observe::model;

/// Of so many intervals the last one counts as one: the rate of a queue follows within a second or two.
const SMOOTHING: u64 = 8;
/// `V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC`
const MONOTONIC: u32 = 0x2000;
/// `V4L2_BUF_FLAG_TSTAMP_SRC_MASK`; 0 there is the end of the frame (`_EOF`).
const SOURCE_MASK: u32 = 0x0007_0000;

/// How a frame was served. One of several planes is served as the plane that costs most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    Copied,
    Imported,
    Adopted,
    /// The device's own buffer, which the client has mapped by the shim.
    Lent,
    /// A dma-buf that the client has brought itself.
    Dmabuf,
    Read,
    Written,
}

/// Since the buffers were made, of a queue; since it is served, of a device.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) frames: AtomicU64,
    by: [AtomicU64; 7],
    pub(super) imported: AtomicU64,
    pub(super) copied: AtomicU64,
    pub(super) copied_bytes: AtomicU64,
    pub(super) through_memory: AtomicU64,
    pub(super) through_object: AtomicU64,
    pub(super) resolves: AtomicU64,
    pub(super) remembered: AtomicU64,
    pub(super) faults: AtomicU64,
    latency: Histogram,
    /// Latencies that begin with the device's own timestamp.
    stamped: AtomicU64,
    /// CLOCK_MONOTONIC of the last frame, microseconds; 0: there was none.
    last_us: AtomicU64,
    /// Between two frames, smoothed; microseconds.
    interval_us: AtomicU64,
    /// Of the device.
    total: Option<Arc<Counters>>,
}

impl Counters {
    /// Counts for `total` as well.
    pub(super) fn under(total: Option<&Arc<Counters>>) -> Arc<Self> {
        Arc::new(Self {
            total: total.cloned(),
            ..Self::default()
        })
    }

    pub(super) fn add(&self, which: impl Fn(&Self) -> &AtomicU64, count: u64) {
        which(self).fetch_add(count, Ordering::Relaxed);
        if let Some(total) = &self.total {
            which(total).fetch_add(count, Ordering::Relaxed);
        }
    }

    /// A frame has gone through. Called under the lock of its queue.
    pub(super) fn frame(&self, how: Served) {
        self.add(|counters| &counters.frames, 1);
        self.add(|counters| &counters.by[how as usize], 1);
        let now = now_us();
        let last = self.last_us.swap(now, Ordering::Relaxed);
        if last == 0 {
            return;
        }
        let (interval, smoothed) = (now.saturating_sub(last), self.interval_us.load(Ordering::Relaxed));
        let smoothed = match smoothed {
            0 => interval.max(1),
            // A client that has paused: what was before says nothing any more.
            _ if interval > smoothed.saturating_mul(SMOOTHING) => 0,
            _ => (smoothed * (SMOOTHING - 1) + interval).div_ceil(SMOOTHING),
        };
        self.interval_us.store(smoothed, Ordering::Relaxed);
    }

    /// A buffer is about to be given to the client who waited for it since `since`.
    pub(super) fn answered(&self, since: Since, buffer: &V4l2Buffer) {
        let now = now_us();
        let (begun, stamped) = since.begun(buffer, now);
        let us = now.saturating_sub(begun);
        for counters in [Some(self), self.total.as_deref()].into_iter().flatten() {
            counters.latency.count(us);
            counters.stamped.fetch_add(u64::from(stamped), Ordering::Relaxed);
        }
    }

    /// Frames in a second, at the moment: none where none has come for longer than they do.
    fn fps(&self) -> f64 {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (last, interval) = (now(&self.last_us), now(&self.interval_us));
        let silent = now_us().saturating_sub(last);
        match (last, interval) {
            (0, _) | (_, 0) => 0.0,
            _ if silent > interval.saturating_mul(SMOOTHING) => 0.0,
            _ => model::per_second(1, interval),
        }
    }

    pub(super) fn model(&self) -> model::Counters {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [copied, imported, adopted, lent, dmabuf, read, written] =
            [0, 1, 2, 3, 4, 5, 6].map(|at| now(&self.by[at]));
        let (classes, sum_us, most_us) = self.latency.counted();
        model::Counters {
            frames: now(&self.frames),
            by: model::FramesBy {
                copied,
                imported,
                adopted,
                lent,
                dmabuf,
                read,
                written,
            },
            imported: now(&self.imported),
            copied: now(&self.copied),
            copied_bytes: now(&self.copied_bytes),
            through_memory: now(&self.through_memory),
            through_object: now(&self.through_object),
            resolves: now(&self.resolves),
            remembered: now(&self.remembered),
            faults: now(&self.faults),
            fps: self.fps(),
            latency: model::Latency::of(classes, sum_us, most_us, now(&self.stamped)),
        }
    }
}

/// Since when a client waits, and the moment when a sleeping one's answer was there; CLOCK_MONOTONIC in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    asked_us: u64,
    ready_us: Option<u64>,
}

impl Since {
    /// A request has come.
    pub(super) fn asked() -> Self {
        Self {
            asked_us: now_us(),
            ready_us: None,
        }
    }

    /// It slept, and the device says that it has something.
    pub(super) fn is_ready(&mut self) {
        self.ready_us = Some(now_us());
    }

    /// What both had to wait for: the frame and the one who asks for it. The device's timestamp says when the frame was
    /// there, if it is of this clock, of the frame's end, and not later than when we were told: some drivers (vivid) tell
    /// when it should have been there.
    fn begun(self, buffer: &V4l2Buffer, now_us: u64) -> (u64, bool) {
        let ours = buffer.flags & buf_flag::TIMESTAMP_MASK == MONOTONIC && buffer.flags & SOURCE_MASK == 0;
        let [seconds, us] = buffer.timestamp;
        let stamp = u64::try_from(seconds).ok().and_then(|seconds| {
            seconds
                .checked_mul(1_000_000)?
                .checked_add(u64::try_from(us).ok()?)
        });
        let latest = self.ready_us.unwrap_or(now_us);
        match stamp.filter(|stamp| ours && *stamp != 0 && *stamp <= latest) {
            Some(stamp) => (stamp.max(self.asked_us), true),
            None => (self.ready_us.unwrap_or(self.asked_us), false),
        }
    }
}

/// CLOCK_MONOTONIC, in which V4L2 devices stamp their buffers; microseconds.
pub(crate) fn now_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::{Counters, MONOTONIC, Served, Since, now_us};
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;
    use vidcompat_proto::abi::v4l2::V4l2Buffer;

    #[test]
    fn what_a_queue_counts_stays_with_its_device() {
        let total = Arc::new(Counters::default());
        for _ in 0..2 {
            let queue = Counters::under(Some(&total));
            queue.frame(Served::Adopted);
            queue.frame(Served::Read);
            queue.add(|counters| &counters.copied_bytes, 40);
            let counted = queue.model();
            assert_eq!((counted.frames, counted.by.adopted, counted.by.read), (2, 1, 1));
            assert_eq!(counted.copied_bytes, 40);
        }
        let counted = total.model();
        assert_eq!((counted.frames, counted.by.adopted, counted.by.read), (4, 2, 2));
        assert_eq!((counted.copied_bytes, counted.by.copied), (80, 0));
    }

    #[test]
    fn the_rate_is_that_of_the_last_frames_and_ends_with_them() {
        let queue = Counters::default();
        assert!(queue.model().fps.abs() < f64::EPSILON);
        for _ in 0..4 {
            queue.frame(Served::Copied);
            std::thread::sleep(Duration::from_millis(20));
        }
        let fps = queue.model().fps;
        assert!((20.0..=50.0).contains(&fps), "{fps}");
        queue.last_us.store(now_us() - 60_000_000, Ordering::Relaxed);
        assert!(queue.model().fps.abs() < f64::EPSILON);
        // The first frame after a pause says nothing about the rate, the second one does.
        queue.frame(Served::Copied);
        assert!(queue.model().fps.abs() < f64::EPSILON);
        queue.last_us.store(now_us() - 1_000_000, Ordering::Relaxed);
        queue.frame(Served::Copied);
        assert!((0.9..=1.0).contains(&queue.model().fps));
    }

    #[test]
    fn a_latency_begins_when_both_the_frame_and_the_client_are_there() {
        let stamped = |flags, us| V4l2Buffer {
            flags,
            timestamp: [3, us],
            ..V4l2Buffer::default()
        };
        let (asked, ready, now) = (3_000_100, Some(3_000_900), 3_001_000);
        let since = |ready_us| Since {
            asked_us: asked,
            ready_us,
        };
        // A client that waited, and one that came late.
        assert_eq!(
            since(ready).begun(&stamped(MONOTONIC, 500), now),
            (3_000_500, true)
        );
        assert_eq!(since(None).begun(&stamped(MONOTONIC, 50), now), (asked, true));
        // The start of the exposure, a copied stamp, one of the future, none, nonsense.
        for other in [
            stamped(MONOTONIC, 1001),
            stamped(MONOTONIC | 0x10000, 500),
            stamped(0x4000, 500),
            V4l2Buffer {
                flags: MONOTONIC,
                ..V4l2Buffer::default()
            },
            V4l2Buffer {
                flags: MONOTONIC,
                timestamp: [-1, i64::MAX],
                ..V4l2Buffer::default()
            },
        ] {
            assert_eq!(since(ready).begun(&other, now), (3_000_900, false));
            assert_eq!(since(None).begun(&other, now), (asked, false));
        }
    }
}
