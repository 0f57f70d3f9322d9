//! How long readers wait for tokens, counted where the engine's thread hands them out.
use std::time::Duration;

/// Upper bound of the first bucket, in seconds.
const FIRST: f64 = 1e-4;

/// Buckets: two to a doubling, from 0.1 ms to 105 s, and one for what takes longer.
const BUCKETS: usize = 42;

/// Counts of durations in buckets of geometric width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyHistogram {
    counts: [u64; BUCKETS],
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        LatencyHistogram { counts: [0; BUCKETS] }
    }
}

impl LatencyHistogram {
    /// Counts one.
    pub fn add(&mut self, duration: Duration) {
        let doublings = (duration.as_secs_f64() / FIRST).log2();
        let bucket = (2.0 * doublings).ceil().clamp(0.0, BUCKETS as f64 - 1.0);
        self.counts[bucket as usize] += 1;
    }

    /// Durations in each bucket: not cumulated.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Upper bounds of the buckets, in seconds; the last has none.
    pub fn bounds() -> impl Iterator<Item = f64> {
        (0..BUCKETS - 1).map(|bucket| FIRST * (bucket as f64 / 2.0).exp2())
    }
}

/// How long readers have waited, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// From a request's submission to its first token.
    pub first_token: LatencyHistogram,
    /// From each token of an answer to the next.
    pub inter_token: LatencyHistogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_in_the_bucket_of_the_first_bound_that_holds_them() {
        let bounds: Vec<f64> = LatencyHistogram::bounds().collect();
        for (micros, bucket) in
            [(0, 0), (100, 0), (101, 1), (141, 1), (142, 2), (200, 2), (201, 3), (1 << 40, BUCKETS - 1)]
        {
            let mut histogram = LatencyHistogram::default();
            let duration = Duration::from_micros(micros);
            histogram.add(duration);
            assert_eq!(histogram.counts()[bucket], 1, "{micros} µs");
            assert!(bounds.get(bucket).is_none_or(|bound| duration.as_secs_f64() <= bound + 1e-12), "{micros} µs");
        }
        assert!(bounds[bounds.len() - 1] > 100.0);
    }
}
