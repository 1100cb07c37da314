//! Vertical blanks of a screen that nobody sees: a clock's.

use std::time::{Duration, Instant};

use crate::backend::output::Vsync;

/// See the module.
#[derive(Debug)]
pub(super) struct Paced {
    start: Instant,
    period: Duration,
}

impl Paced {
    /// So many pictures in 1000 seconds.
    pub(super) fn new(refresh_mhz: u32) -> Self {
        Self {
            start: Instant::now(),
            period: Duration::from_secs(1000) / refresh_mhz.max(1),
        }
    }

    fn periods(&self) -> u128 {
        self.start.elapsed().as_nanos() / self.period.as_nanos().max(1)
    }
}

impl Vsync for Paced {
    fn wait(&self) {
        let now = self.start.elapsed().as_nanos();
        let period = self.period.as_nanos().max(1);
        let left = period - now % period;
        std::thread::sleep(Duration::from_nanos(u64::try_from(left).unwrap_or(0)));
    }

    fn count(&self) -> u32 {
        // Wraps, as the kernel's does.
        u32::try_from(self.periods() & u128::from(u32::MAX)).unwrap_or(0)
    }

    fn period(&self) -> Duration {
        self.period
    }
}

#[cfg(test)]
mod tests {
    use super::{Paced, Vsync};

    #[test]
    fn a_wait_ends_with_the_next_period() {
        let paced = Paced::new(100_000);
        let before = paced.count();
        for _ in 0..3 {
            paced.wait();
        }
        assert!(paced.count() - before >= 3);
        assert_eq!(paced.period().as_millis(), 10);
    }
}
