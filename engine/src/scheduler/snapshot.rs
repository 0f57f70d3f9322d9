//! The scheduler's state at one moment, for whoever watches. Computed only when asked for: O(pages).
use super::config::SchedulerMetrics;
use super::sequence::State;
use super::{Scheduler, Sequence};
use crate::kv::PAGE_TOKENS;

/// Most cells of a snapshot's map: a cache of 100 000 pages is still drawn, and sent, in a few kilobytes.
pub const MAX_CELLS: usize = 8192;

/// Most sequences that a snapshot lists.
pub const MAX_VIEWS: usize = 256;

/// What sequences and pages do at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Counts and state.
    pub metrics: SchedulerMetrics,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Sequences in the order of service, those that run first; the first [`MAX_VIEWS`].
    pub sequences: Vec<SequenceView>,
    /// Pages that one cell of `map` stands for; the last cell may stand for fewer.
    pub pages_per_cell: usize,
    /// The pages in the order of their numbers, as runs of equal cells; at most [`MAX_CELLS`] cells.
    pub map: Vec<CellRun>,
}

/// One sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceView {
    /// Which request: they are counted from 0.
    pub request: u64,
    /// Which of the request's answers.
    pub index: u32,
    /// Whether it runs; it waits otherwise.
    pub running: bool,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of prompt and answer so far.
    pub tokens: usize,
    /// Of these, tokens whose keys and values are in the cache.
    pub computed: usize,
    /// Most tokens of prompt and answer.
    pub total: usize,
    /// Pages that it holds.
    pub pages: usize,
    /// The page of its first block: sequences that share a prefix have the same.
    pub group: Option<u32>,
}

/// What a page, or the busiest page of a cell, is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// Nothing.
    #[default]
    Free,
    /// It holds a block for later prompts; nobody uses it at present.
    Cached {
        /// The page of the first block of the same prefix.
        group: u32,
    },
    /// Sequences hold it.
    Used {
        /// How many.
        refs: u32,
        /// The page of the first block of the same sequence.
        group: u32,
    },
}

/// Cells that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellRun {
    /// How many.
    pub cells: u32,
    /// What they are.
    pub cell: Cell,
}

impl Scheduler {
    /// What sequences and pages do now.
    pub fn snapshot(&self) -> Snapshot {
        let running = self.running.iter().map(|at| &self.sequences[*at]);
        let waiting = self.waiting.values().map(|at| &self.sequences[*at]);
        let pages_per_cell = self.blocks.pages().div_ceil(MAX_CELLS).max(1);
        Snapshot {
            metrics: self.metrics(),
            page_tokens: PAGE_TOKENS,
            sequences: running.chain(waiting).take(MAX_VIEWS).map(view).collect(),
            pages_per_cell,
            map: runs(&self.cells(), pages_per_cell),
        }
    }

    /// What each page is used for.
    fn cells(&self) -> Vec<Cell> {
        let mut cells = vec![Cell::Free; self.blocks.pages()];
        self.blocks.cached(|page, group| cells[page as usize] = Cell::Cached { group });
        for at in &self.running {
            let pages = &self.sequences[*at].pages;
            let Some(group) = pages.first().copied() else { continue };
            for &page in pages {
                cells[page as usize] = Cell::Used { refs: self.blocks.holders(page), group };
            }
        }
        cells
    }
}

fn view(sequence: &Sequence) -> SequenceView {
    SequenceView {
        request: sequence.request.0,
        index: sequence.index,
        running: sequence.state == State::Running,
        prompt: sequence.shared.prompt.len(),
        tokens: sequence.tokens.len(),
        computed: sequence.computed,
        total: sequence.total,
        pages: sequence.pages.len(),
        group: sequence.pages.first().copied(),
    }
}

/// Runs of cells, each the busiest of `per_cell` pages.
fn runs(pages: &[Cell], per_cell: usize) -> Vec<CellRun> {
    let mut runs: Vec<CellRun> = Vec::new();
    for cell in pages.chunks(per_cell).filter_map(|pages| pages.iter().max().copied()) {
        match runs.last_mut() {
            Some(run) if run.cell == cell => run.cells += 1,
            _ => runs.push(CellRun { cells: 1, cell }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::super::{Limits, Sampled, SchedulerConfig, SequenceRequest, StepOutput};
    use super::*;

    fn scheduler(pages: usize) -> Scheduler {
        let limits = Limits { max_tokens: 1024, max_sequences: 4, max_model_len: 4096 };
        Scheduler::new(SchedulerConfig::new(limits), pages)
    }

    fn step(scheduler: &mut Scheduler) {
        let plan = scheduler.plan().unwrap();
        let sampled = Sampled { tokens: vec![7], logprobs: Vec::new() };
        let output = StepOutput { samples: vec![sampled; plan.samples.len()], pooled: Vec::new() };
        scheduler.commit(plan, &output);
    }

    fn cells(snapshot: &Snapshot) -> usize {
        snapshot.map.iter().map(|run| run.cells as usize).sum()
    }

    #[test]
    fn an_idle_cache_is_one_run() {
        let snapshot = scheduler(100).snapshot();
        assert_eq!(snapshot.map, [CellRun { cells: 100, cell: Cell::Free }]);
        assert_eq!(snapshot.sequences, []);
    }

    #[test]
    fn a_large_cache_has_no_more_cells_than_a_small_one() {
        let snapshot = scheduler(100_000).snapshot();
        assert_eq!(snapshot.pages_per_cell, 13);
        assert!(cells(&snapshot) <= MAX_CELLS);
        let busy = Cell::Used { refs: 2, group: 3 };
        let mut pages = vec![Cell::Free; 26];
        (pages[13], pages[14], pages[15]) = (Cell::Cached { group: 9 }, busy, Cell::Used { refs: 1, group: 4 });
        let expected = [CellRun { cells: 1, cell: Cell::Free }, CellRun { cells: 1, cell: busy }];
        assert_eq!(runs(&pages, 13), expected);
    }

    #[test]
    fn sequences_that_share_a_prefix_are_of_one_group() {
        let mut scheduler = scheduler(100);
        let request = |last: u32| SequenceRequest {
            prompt: (0..130).chain([last]).collect(),
            max_tokens: 8,
            ..SequenceRequest::default()
        };
        let add = |scheduler: &mut Scheduler, last| {
            scheduler.add(request(last)).unwrap();
            step(scheduler);
        };
        add(&mut scheduler, 1);
        add(&mut scheduler, 2);
        let snapshot = scheduler.snapshot();
        let [first, second] = &snapshot.sequences[..] else { panic!("{snapshot:?}") };
        assert!(first.running && second.running);
        assert_eq!((first.group, first.pages, first.prompt), (second.group, 3, 131));
        let group = first.group.unwrap();
        let count = |refs| {
            let used = snapshot.map.iter().filter(|run| run.cell == Cell::Used { refs, group });
            used.map(|run| run.cells).sum::<u32>()
        };
        assert_eq!((count(2), count(1), cells(&snapshot)), (2, 2, 100), "two shared pages, one of each one's own");
        while scheduler.has_work() {
            step(&mut scheduler);
        }
        let snapshot = scheduler.snapshot();
        let cached = snapshot.map.iter().filter(|run| run.cell == Cell::Cached { group });
        assert_eq!(cached.map(|run| run.cells).sum::<u32>(), snapshot.metrics.cached_pages as u32);
        assert!(snapshot.metrics.cached_pages >= 2);
    }
}
