//! Times in buckets: two additions to count one, on the hot path of whoever measures.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds in microseconds: from an answer out of memory to a caller's patience.
const BOUNDS: [u64; 16] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000,
    10_000_000,
];

/// Counts durations.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for what is longer; not cumulative.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

/// A [`Histogram`] at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Latency {
    /// Upper bound in seconds, and how many up to the bound before; the last bound is without end.
    pub buckets: Vec<(f64, u64)>,
    pub count: u64,
    pub sum_seconds: f64,
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        self.observe_many(took, 1);
    }

    /// `times` durations that were the same, as those of one batch.
    pub fn observe_many(&self, took: Duration, times: u64) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let at = BOUNDS.partition_point(|bound| bound * 1_000 < ns);
        self.buckets[at].fetch_add(times, Relaxed);
        self.sum_ns.fetch_add(ns.saturating_mul(times), Relaxed);
    }

    #[allow(clippy::cast_precision_loss, reason = "seconds for people: 53 bits of nanoseconds are 104 days")]
    pub fn snapshot(&self) -> Latency {
        let bounds = BOUNDS.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(&self.buckets).map(|(bound, count)| (bound, count.load(Relaxed))).collect();
        Latency {
            count: buckets.iter().map(|(_, count)| count).sum(),
            sum_seconds: self.sum_ns.load(Relaxed) as f64 / 1e9,
            buckets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::default();
        for us in [1, 10, 11, 25, 20_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let Latency { buckets, count, sum_seconds } = histogram.snapshot();
        assert_eq!((buckets[0], buckets[1].1, buckets[16].1), ((0.000_01, 2), 2, 1));
        assert_eq!(count, 5);
        assert!((sum_seconds - 20.000_047).abs() < 1e-9, "{sum_seconds}");
    }
}
