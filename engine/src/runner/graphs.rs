//! CUDA graphs of decode steps, captured before the engine is ready.
use kernels_host::Graph;
use std::collections::BTreeMap;

/// Graphs by queries of a sequence and number of sequences. A step of fewer sequences takes the next one and pads.
#[derive(Default)]
pub(super) struct Graphs(BTreeMap<(usize, usize), Graph>);

impl Graphs {
    /// Adds one.
    pub fn insert(&mut self, queries: usize, sequences: usize, graph: Graph) {
        self.0.insert((queries, sequences), graph);
    }

    /// The smallest for a step of so many sequences with so many queries each, and its number of sequences.
    pub fn find(&self, queries: usize, sequences: usize) -> Option<(usize, &Graph)> {
        let (&(_, sequences), graph) = self.0.range((queries, sequences)..(queries + 1, 0)).next()?;
        Some((sequences, graph))
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

#[cfg(test)]
mod tests {
    use super::*;

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
