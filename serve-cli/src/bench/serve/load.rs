//! When requests are sent, and sending them.
use super::client::{Outcome, Target};
use super::dataset::{Ask, normal, uniform};
use crate::terminal::Progress;
use anyhow::Result;
use kernels_host::case::Rng;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// One request of a run.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// When it was sent, in seconds since the run began.
    pub start: f64,
    /// What became of it.
    pub outcome: Outcome,
}

/// All requests of a run, in the order of their prompts.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Seconds until the last one had ended.
    pub seconds: f64,
    /// The requests.
    pub sent: Vec<Sent>,
}

/// A number of the gamma distribution with mean `shape` (Marsaglia and Tsang, 2000).
fn gamma(rng: &mut Rng, shape: f64) -> f64 {
    if shape < 1.0 {
        return gamma(rng, shape + 1.0) * (1.0 - uniform(rng)).powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - uniform(rng)).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

/// When `n` requests are sent, in seconds: `rate` a second, with gaps of a gamma distribution whose shape is `burstiness`
/// (1: a Poisson process, less: bursts, more: even). Scaled as vLLM does it, so that the last one comes when `rate` says.
pub fn schedule(n: usize, rate: f64, burstiness: f64, seed: u64) -> Vec<f64> {
    if rate.is_infinite() {
        return vec![0.0; n];
    }
    let mut rng = Rng::new(!seed);
    let mut at = 0.0;
    let mut times: Vec<f64> = Vec::with_capacity(n);
    for _ in 0..n {
        times.push(at);
        at += gamma(&mut rng, burstiness) / (rate * burstiness);
    }
    let (last, wanted) = (times.last().copied().unwrap_or(0.0), n.saturating_sub(1) as f64 / rate);
    if last > 0.0 {
        times.iter_mut().for_each(|time| *time *= wanted / last);
    }
    times
}

/// Sends all requests when `times` says, at most `most` at once, and waits for their answers.
///
/// # Errors
/// A task was lost.
pub async fn run(
    target: &Arc<Target>,
    asks: Vec<Ask>,
    times: &[f64],
    most: Option<usize>,
    progress: &Progress,
) -> Result<Run> {
    let total = asks.len();
    let gate = Arc::new(Semaphore::new(most.unwrap_or(total).max(1)));
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for (i, ask) in asks.into_iter().enumerate() {
        let (target, gate, at) = (target.clone(), gate.clone(), Duration::from_secs_f64(times[i]));
        tasks.spawn(async move {
            if !at.is_zero() {
                tokio::time::sleep_until((start + at).into()).await;
            }
            // Never closed.
            let _permit = gate.acquire().await;
            let start = start.elapsed().as_secs_f64();
            (i, Sent { start, outcome: target.ask(&ask).await })
        });
    }
    let mut sent = vec![Sent::default(); total];
    let mut done = 0;
    while let Some(ended) = tasks.join_next().await {
        let (i, one) = ended?;
        sent[i] = one;
        done += 1;
        progress.set(done, total as u64);
    }
    Ok(Run { seconds: start.elapsed().as_secs_f64(), sent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_their_rate_and_burstiness() {
        let variation = |burstiness: f64| {
            let times = schedule(4001, 10.0, burstiness, 7);
            assert!((times[4000] - 400.0).abs() < 1e-6, "{}", times[4000]);
            let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(gaps.iter().all(|gap| *gap >= 0.0));
            let variance = gaps.iter().map(|gap| (gap - 0.1).powi(2)).sum::<f64>() / gaps.len() as f64;
            variance.sqrt() / 0.1
        };
        // A gamma distribution's deviation over its mean is one over the root of its shape.
        for (burstiness, expected) in [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5), (100.0, 0.1)] {
            let found = variation(burstiness);
            assert!((found / expected - 1.0).abs() < 0.1, "{burstiness}: {found}, not {expected}");
        }
        assert_eq!(schedule(3, f64::INFINITY, 1.0, 7), [0.0; 3]);
        assert!(schedule(0, 1.0, 1.0, 7).is_empty());
    }
}
