//! How long things take, in buckets of a power of two: one relaxed addition to record, quantiles when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The last bucket begins at 2^23 µs, 8 s; nothing here takes longer.
pub(super) const BUCKETS: usize = 25;

/// Counts by duration: bucket `n` holds what took less than `2^n` µs and no less than half of that.
#[derive(Debug, Default)]
pub(super) struct Histogram([AtomicU64; BUCKETS]);

/// A histogram at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latencies(pub [u64; BUCKETS]);

impl Histogram {
    pub(super) fn add(&self, took: Duration) {
        self.add_many(took, 1);
    }

    pub(super) fn add_many(&self, took: Duration, count: u64) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.0[bucket.min(BUCKETS - 1)].fetch_add(count, Relaxed);
    }

    pub(super) fn snapshot(&self) -> Latencies {
        Latencies(std::array::from_fn(|n| self.0[n].load(Relaxed)))
    }
}

impl Latencies {
    /// Microseconds that `share` of all were below, to the next power of two; 0 if there were none.
    pub fn quantile(&self, share: f64) -> u64 {
        let all: u64 = self.0.iter().sum();
        let wanted = ((all as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.0.iter().enumerate() {
            seen += count;
            if all > 0 && seen >= wanted {
                return 1 << bucket;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_next_power_of_two() {
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot().quantile(0.5), 0);
        for micros in [3, 3, 3, 900] {
            histogram.add(Duration::from_micros(micros));
        }
        histogram.add(Duration::from_secs(3_600));
        let seen = histogram.snapshot();
        assert_eq!((seen.quantile(0.5), seen.quantile(0.8), seen.quantile(1.0)), (4, 1024, 1 << 24));
    }
}
