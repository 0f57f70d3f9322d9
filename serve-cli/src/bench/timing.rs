//! Device times: events around graphs of launches whose data rotate through more memory than the L2 cache holds.
use super::{percentile, sort};
use kernels_host::{Error, Event, Graph, Stream};

/// Kernels below this are timed as graphs: launching them one by one would time the launches.
pub const GRAPH_BELOW_US: f64 = 100.0;
/// Launches of a graph, at least.
pub const GRAPH_LAUNCHES: usize = 20;

/// Microseconds between two events around what `work` queues.
pub fn timed(stream: &Stream, work: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
    let start = Event::record(stream)?;
    work()?;
    Ok(f64::from(Event::record(stream)?.elapsed_ms(&start)?) * 1e3)
}

/// Sorted times in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Of any order; must not be NaN.
    pub fn new(mut values: Vec<f64>) -> Self {
        sort(&mut values);
        Samples(values)
    }
    /// The middle.
    pub fn median(&self) -> f64 {
        percentile(&self.0, 0.5)
    }
    /// A quantile.
    pub fn at(&self, share: f64) -> f64 {
        percentile(&self.0, share)
    }
}

/// A graph of `works` equal pieces of work.
pub struct Replay {
    graph: Graph,
    works: usize,
}

impl Replay {
    /// Records `works` calls of `work`, which gets its turn's number: it rotates its data by it.
    pub fn capture(
        stream: &Stream,
        works: usize,
        mut work: impl FnMut(&Stream, usize) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let graph = stream.capture(|stream| (0..works).try_for_each(|turn| work(stream, turn)))?;
        Ok(Replay { graph, works })
    }

    /// Microseconds of one piece of work over `repeats` replays. A replay before them keeps the GPU busy while the host
    /// queues them: without it the first one's launch would be in the time.
    pub fn sample(&self, stream: &Stream, repeats: usize) -> Result<f64, Error> {
        self.graph.launch(stream)?;
        let time = timed(stream, || (0..repeats).try_for_each(|_| self.graph.launch(stream)))?;
        Ok(time / (repeats * self.works) as f64)
    }
}

/// How many pieces of work of about `estimate_us` make a graph of about a millisecond, over `copies` sets of data.
pub fn graph_works(estimate_us: f64, copies: usize) -> usize {
    let least = if estimate_us < GRAPH_BELOW_US { GRAPH_LAUNCHES } else { 1 };
    let wanted = (1000.0 / estimate_us.max(1.0)).ceil() as usize;
    wanted.clamp(least, 256).next_multiple_of(copies.max(1))
}

/// Replays that make a sample last about `target_us`.
pub fn repeats(replay: &Replay, stream: &Stream, target_us: f64) -> Result<usize, Error> {
    let one = replay.sample(stream, 1)? * replay.works as f64;
    Ok((target_us / one.max(1.0)).ceil().clamp(1.0, 1000.0) as usize)
}

/// Times `sides` in turn, `rounds` times, each for about `target_us`: what the clocks do, they do to all.
pub fn alternate(stream: &Stream, sides: &[&Replay], rounds: usize, target_us: f64) -> Result<Vec<Samples>, Error> {
    let repeats: Vec<usize> = sides.iter().map(|side| repeats(side, stream, target_us)).collect::<Result<_, _>>()?;
    let mut samples = vec![Vec::with_capacity(rounds); sides.len()];
    for _ in 0..rounds {
        for ((side, &repeats), samples) in sides.iter().zip(&repeats).zip(&mut samples) {
            samples.push(side.sample(stream, repeats)?);
        }
    }
    Ok(samples.into_iter().map(Samples::new).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_hold_enough_launches_and_whole_rotations() {
        assert_eq!(graph_works(5.0, 6), 204);
        assert_eq!(graph_works(90.0, 1), 20);
        assert_eq!(graph_works(3000.0, 1), 1);
        assert_eq!(graph_works(3000.0, 2), 2);
        assert_eq!(graph_works(0.0, 64), 256);
    }
}
