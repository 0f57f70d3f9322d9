//! CUDA graphs of decode steps, captured before the engine is ready.
use kernels_host::Graph;
use std::collections::BTreeMap;

/// What a graph was captured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GraphSize {
    /// Queries of each sequence.
    pub queries: usize,
    /// Sequences.
    pub sequences: usize,
    /// Longest context.
    pub max_kv: usize,
}

/// Graphs by size. A step of fewer sequences takes the next one and pads; one of shorter contexts, too.
#[derive(Default)]
pub(super) struct Graphs(BTreeMap<GraphSize, Graph>);

impl Graphs {
    /// Adds one.
    pub fn insert(&mut self, size: GraphSize, graph: Graph) {
        self.0.insert(size, graph);
    }

    /// The smallest for such a step.
    pub fn find(&self, step: GraphSize) -> Option<(GraphSize, &Graph)> {
        let with_next = GraphSize { max_kv: 0, ..step };
        let sequences =
            self.0.range(with_next..).map(|(size, _)| *size).find(|size| size.queries == step.queries)?.sequences;
        let (size, graph) = self.0.range(GraphSize { sequences, ..step }..).next()?;
        let fits = size.queries == step.queries && size.sequences == sequences;
        fits.then_some((*size, graph))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Batch sizes to capture, ascending: products take tokens in groups of 8 up to 128 and of 16 or more beyond, so nothing
/// is lost between; 27 sizes up to 256.
pub(super) fn ladder(most: usize) -> Vec<usize> {
    let mut sizes = vec![];
    let mut size = 1;
    while size < most {
        sizes.push(size);
        size += match size {
            1 => 1,
            2 => 2,
            4 => 4,
            8..128 => 8,
            128..256 => 16,
            256..512 => 32,
            _ => 64,
        };
    }
    sizes.push(most);
    sizes
}

/// Contexts to capture for a batch, ascending. Attention takes other numbers of blocks for short contexts than for long ones
/// where a batch is so small that it does not fill the GPU by itself.
pub(super) fn contexts(sequences: usize, most: usize) -> Vec<usize> {
    const SMALL_BATCH: usize = 8;
    const SHORTEST: usize = 512;
    let mut contexts = vec![most];
    if sequences <= SMALL_BATCH {
        let doubled = std::iter::successors(Some(SHORTEST), |context| Some(2 * context));
        contexts = doubled.take_while(|context| *context < most).chain([most]).collect();
    }
    contexts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_batches_have_contexts_of_their_own() {
        assert_eq!(contexts(1, 3000), [512, 1024, 2048, 3000]);
        assert_eq!(contexts(8, 512), [512]);
        assert_eq!(contexts(16, 3000), [3000]);
    }

    #[test]
    fn every_batch_has_a_size_near_it() {
        assert_eq!(ladder(1), [1]);
        assert_eq!(ladder(20), [1, 2, 4, 8, 16, 20]);
        assert_eq!(ladder(256).len(), 27);
        for most in [1, 3, 64, 100, 1000] {
            let sizes = ladder(most);
            assert_eq!(sizes.last(), Some(&most));
            assert!(sizes.windows(2).all(|pair| pair[0] < pair[1] && pair[1] <= (2 * pair[0]).max(pair[0] + 8)));
        }
    }
}
