//! Vertical blanks: the card's own where its driver counts them, else a timer of the same rate.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use drm::{Device as _, VblankWaitFlags, VblankWaitTarget};

use super::card::Card;
use crate::backend::output::Vsync;

/// See the module. The output says what card is open; who waits does not keep it open for longer than he waits.
#[derive(Debug)]
pub struct Blanks {
    pipe: u32,
    card: Mutex<Weak<Card>>,
    nanoseconds: AtomicU64,
    began: Instant,
}

impl Blanks {
    /// Of the CRTC with that number.
    pub fn new(pipe: u32, refresh_mhz: u32) -> Self {
        let blanks = Self {
            pipe,
            card: Mutex::default(),
            nanoseconds: AtomicU64::default(),
            began: Instant::now(),
        };
        blanks.set_refresh(refresh_mhz);
        blanks
    }

    /// The mode has changed.
    pub fn set_refresh(&self, refresh_mhz: u32) {
        let nanoseconds = 1_000_000_000_000 / u64::from(refresh_mhz.max(1));
        self.nanoseconds.store(nanoseconds, Ordering::Relaxed);
    }

    /// We show something on `card`, or (an empty one) no longer.
    pub fn set_card(&self, card: Weak<Card>) {
        *self.card.lock().unwrap_or_else(PoisonError::into_inner) = card;
    }

    fn card(&self) -> Option<Arc<Card>> {
        self.card.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// Waits for the `n`th blank from now, or (0) asks for the last one's number. `None`: the driver does not count them
    /// (`EOPNOTSUPP`), or the CRTC is off (`EINVAL`).
    fn hardware(&self, n: u32) -> Option<u32> {
        let card = self.card()?;
        let target = VblankWaitTarget::Relative(n);
        let reply = card.wait_vblank(target, VblankWaitFlags::empty(), self.pipe, 0);
        reply.ok().map(|reply| reply.frame())
    }

    fn timer(&self) -> u64 {
        let passed = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        passed / self.nanoseconds.load(Ordering::Relaxed).max(1)
    }
}

impl Vsync for Blanks {
    fn wait(&self) {
        if self.hardware(1).is_some() {
            return;
        }
        let next = (self.timer() + 1) * self.nanoseconds.load(Ordering::Relaxed);
        thread::sleep(Duration::from_nanos(next).saturating_sub(self.began.elapsed()));
    }

    fn count(&self) -> u32 {
        self.hardware(0)
            .unwrap_or_else(|| u32::try_from(self.timer() & u64::from(u32::MAX)).unwrap_or(0))
    }

    fn period(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }
}
