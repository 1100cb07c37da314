//! How long something took, counted in fixed classes: a count costs one atomic addition, and two looks can be subtracted.
//!
//! It knows nothing of what is measured. What a latency of a queue is says [`super::model::Latency`].

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the classes but the last, which has none; microseconds.
pub const BOUNDS_US: [u64; 15] = [
    20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
];

/// The classes, with what was counted so far.
#[derive(Debug, Default)]
pub struct Histogram {
    classes: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
    most_us: AtomicU64,
}

impl Histogram {
    /// Counts one that took so long.
    pub fn count(&self, us: u64) {
        let class = BOUNDS_US.iter().position(|bound| us <= *bound);
        let class = &self.classes[class.unwrap_or(BOUNDS_US.len())];
        class.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
        self.most_us.fetch_max(us, Ordering::Relaxed);
    }

    /// Of each class how many; the sum and the longest in microseconds. Not of one moment: others may count meanwhile.
    #[must_use]
    pub fn counted(&self) -> (Vec<u64>, u64, u64) {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (
            self.classes.iter().map(now).collect(),
            now(&self.sum_us),
            now(&self.most_us),
        )
    }
}

/// The bound, in microseconds, within which `percent` of 100 of `classes` lie. `None`: there are none. `Some(None)`: the
/// class without a bound has to be counted in.
#[must_use]
pub fn within(classes: &[u64], percent: u32) -> Option<Option<u64>> {
    let all: u64 = classes.iter().sum();
    if all == 0 {
        return None;
    }
    let wanted = (u128::from(all) * u128::from(percent)).div_ceil(100);
    let mut so_far = 0;
    let class = classes.iter().position(|count| {
        so_far += u128::from(*count);
        so_far >= wanted
    });
    Some(class.and_then(|class| BOUNDS_US.get(class).copied()))
}

#[cfg(test)]
mod tests {
    use super::{BOUNDS_US, Histogram, within};

    #[test]
    fn each_is_counted_in_the_class_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::default();
        for us in [0, 20, 21, 1_000_000, 1_000_001, 5_000_000] {
            histogram.count(us);
        }
        let (classes, sum, most) = histogram.counted();
        assert_eq!(classes.len(), BOUNDS_US.len() + 1);
        assert_eq!(classes[..2], [2, 1]);
        assert_eq!(classes[BOUNDS_US.len() - 1..], [1, 2]);
        assert_eq!((sum, most), (7_000_042, 5_000_000));
        assert!(BOUNDS_US.is_sorted());
    }

    #[test]
    fn a_part_of_all_lies_within_the_bound_of_the_class_that_completes_it() {
        assert_eq!(within(&[0; 16], 50), None);
        let mut classes = [0; 16];
        (classes[1], classes[4], classes[15]) = (50, 49, 1);
        assert_eq!(within(&classes, 50), Some(Some(50)));
        assert_eq!(within(&classes, 51), Some(Some(500)));
        assert_eq!(within(&classes, 99), Some(Some(500)));
        assert_eq!(within(&classes, 100), Some(None));
        assert_eq!(within(&[u64::MAX / 2, 1], 1), Some(Some(20)));
    }
}
