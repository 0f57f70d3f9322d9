//! A step's small inputs as one run of words: written to pinned memory at once, copied at once, read as views.
use super::graphs::GraphSize;
use crate::model::StepInput;
use crate::scheduler::{PlannedSequence, StepPlan};
use kernels_host::View;
use std::ops::Range;

/// Sections start at multiples of 16 bytes.
const ALIGN: usize = 4;

/// What the kernels of a step are launched with: everything that is not data. A graph holds for one shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StepShape {
    pub tokens: usize,
    pub sequences: usize,
    /// Leading sequences with few queries.
    pub decodes: usize,
    /// Their tokens.
    pub decode_tokens: usize,
    /// Longest query among them.
    pub max_decode_query: usize,
    /// An upper bound of their lengths.
    pub max_kv: usize,
    /// Longest query of the others.
    pub max_query: usize,
    /// Rows that the head sees.
    pub head_rows: usize,
}

impl StepShape {
    /// Of a plan.
    pub fn of(plan: &StepPlan) -> Self {
        let decodes = &plan.sequences[..plan.decodes];
        StepShape {
            tokens: plan.tokens.len(),
            sequences: plan.sequences.len(),
            decodes: plan.decodes,
            decode_tokens: decodes.iter().map(|sequence| sequence.queries as usize).sum(),
            max_decode_query: decodes.iter().map(|sequence| sequence.queries as usize).max().unwrap_or(0),
            max_kv: plan.max_kv(),
            max_query: plan.max_query(),
            head_rows: plan.samples.iter().map(|sample| 1 + sample.drafts as usize).sum(),
        }
    }

    /// `sequences` of any length up to `max_kv` that decode `queries` tokens each: one, or drafts are verified.
    pub fn decode(sequences: usize, queries: usize, max_kv: usize) -> Self {
        let tokens = sequences * queries;
        StepShape {
            tokens,
            sequences,
            decodes: sequences,
            decode_tokens: tokens,
            max_decode_query: queries,
            max_kv,
            max_query: 0,
            head_rows: tokens,
        }
    }

    /// The draft model's first pass over such a step: `queries` tokens each, of which the last chooses a draft if any
    /// are wanted.
    pub fn draft(sequences: usize, queries: usize, drafts: usize, max_kv: usize) -> Self {
        StepShape { head_rows: if drafts > 0 { sequences } else { 0 }, ..StepShape::decode(sequences, queries, max_kv) }
    }

    /// One prompt of `tokens` tokens.
    pub fn prefill(tokens: usize) -> Self {
        StepShape { tokens, sequences: 1, max_query: tokens, head_rows: 1, ..StepShape::default() }
    }

    /// With all sequences as prompts.
    pub fn without_decodes(self) -> Self {
        let max_query = self.max_query.max(self.max_decode_query);
        StepShape { decodes: 0, decode_tokens: 0, max_decode_query: 0, max_query, ..self }
    }
}

/// The size of the graph that a plan needs: all sequences decode and sample, and have one query each, or 1 + `drafts`
/// where anything has a draft. `None`: a plan of another kind, or the rows that pad sequences with fewer drafts would be
/// too many.
pub(super) fn graph_size(plan: &StepPlan, drafts: usize) -> Option<GraphSize> {
    let queries = graph_queries(plan, drafts)?;
    // Those with fewer drafts see their padding.
    let kv_lens = plan.sequences.iter().map(|sequence| sequence.kv_len as usize + queries - sequence.queries as usize);
    Some(GraphSize { queries, sequences: plan.sequences.len(), max_kv: kv_lens.max().unwrap_or(0) })
}

/// Queries of every sequence in the graph for a plan.
fn graph_queries(plan: &StepPlan, drafts: usize) -> Option<usize> {
    let sequences = plan.sequences.len();
    if sequences == 0 || plan.decodes < sequences || plan.samples.len() != sequences {
        return None;
    }
    if plan.tokens.len() == sequences && plan.sequences.iter().all(|sequence| sequence.unseen.is_none()) {
        return Some(1);
    }
    let queries = 1 + drafts;
    // Products take up to 16 rows in the time of one.
    let bearable = sequences * queries <= (2 * plan.tokens.len()).max(16);
    // The draft model starts from two tokens.
    let long = plan.sequences.iter().all(|sequence| sequence.kv_len > sequence.queries);
    (bearable && long).then_some(queries)
}

/// Where what is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    tokens: Range<usize>,
    positions: Range<usize>,
    slots: Range<usize>,
    kv_lens: Range<usize>,
    /// Empty where every decode has one query.
    decode_starts: Range<usize>,
    query_starts: Range<usize>,
    rows: Range<usize>,
    /// Words in all.
    pub words: usize,
}

impl Layout {
    pub fn of(shape: &StepShape) -> Self {
        let mut words = 0usize;
        let mut section = |len: usize| {
            let start = words;
            words = (start + len).next_multiple_of(ALIGN);
            start..start + len
        };
        Layout {
            tokens: section(shape.tokens),
            positions: section(shape.tokens),
            slots: section(shape.tokens),
            kv_lens: section(shape.sequences),
            decode_starts: section(if shape.max_decode_query > 1 { shape.decodes + 1 } else { 0 }),
            query_starts: section(shape.sequences - shape.decodes + 1),
            rows: section(shape.head_rows),
            words,
        }
    }

    /// Leading sequences that decode.
    fn decodes(&self) -> usize {
        self.kv_lens.len() + 1 - self.query_starts.len()
    }

    /// Most words of a step within the bounds.
    pub fn most(tokens: usize, sequences: usize, head_rows: usize) -> usize {
        3 * (tokens + ALIGN) + 2 * (sequences + ALIGN) + sequences + 1 + ALIGN + head_rows + ALIGN
    }

    /// Writes a plan's inputs. `queries`: of every sequence of a graph's layout, all of which decode; 1 otherwise. Sequences
    /// with fewer are padded to so many, and sequences follow that are only padding: tokens 0 of which nothing is kept,
    /// seeing whatever page is in their table.
    pub fn write(&self, plan: &StepPlan, queries: usize, words: &mut [u32]) {
        // Not the plan's: a shape may take its decodes as prompts, and a graph have more of them.
        let (decodes, prefills) = plan.sequences.split_at(plan.sequences.len().min(self.decodes()));
        let mut rows = |section: &Range<usize>, values: &[u32], padding| {
            let into = &mut words[section.clone()];
            match queries {
                1 => fill(into, values.iter().copied(), padding),
                _ => fill(into, padded(decodes, values, queries, padding), padding),
            }
        };
        rows(&self.tokens, &plan.tokens, 0);
        rows(&self.positions, &plan.positions, 0);
        rows(&self.slots, &plan.slots, u32::MAX);
        let missing = |sequence: &PlannedSequence| (queries as u32).saturating_sub(sequence.queries);
        let kv_lens = plan.sequences.iter().map(|sequence| sequence.kv_len + missing(sequence));
        fill(&mut words[self.kv_lens.clone()], kv_lens, queries as u32);
        if !self.decode_starts.is_empty() {
            let lengths = decodes.iter().map(|sequence| sequence.queries.max(queries as u32));
            starts(&mut words[self.decode_starts.clone()], lengths, queries as u32);
        }
        starts(&mut words[self.query_starts.clone()], prefills.iter().map(|sequence| sequence.queries), 0);
        let mut start = 0;
        let rows = plan.samples.iter().enumerate().flat_map(|(i, sample)| {
            let mut first = sample.row;
            if queries > 1 {
                first += (i * queries) as u32 - start;
                start += plan.sequences[i].queries;
            }
            first..=first + sample.drafts
        });
        fill(&mut words[self.rows.clone()], rows, 0);
    }

    /// The inputs as the model wants them.
    pub fn input<'a>(&self, shape: &StepShape, packed: View<'a>, fixed: Fixed<'a>) -> StepInput<'a> {
        let section = |range: &Range<usize>| packed.columns(range.start, range.len());
        StepInput {
            tokens: section(&self.tokens),
            last_tokens: fixed.last_tokens,
            drafts: fixed.drafts,
            positions: section(&self.positions),
            slots: section(&self.slots),
            block_tables: fixed.block_tables.row_range(0, shape.sequences),
            kv_lens: section(&self.kv_lens),
            decodes: shape.decodes,
            decode_tokens: shape.decode_tokens,
            decode_starts: (!self.decode_starts.is_empty()).then(|| section(&self.decode_starts)),
            max_decode_query: shape.max_decode_query,
            max_kv: shape.max_kv,
            query_starts: section(&self.query_starts),
            max_query: shape.max_query,
        }
    }

    /// Tokens of the step: u32 [1, tokens].
    pub fn tokens<'a>(&self, packed: View<'a>) -> View<'a> {
        packed.columns(self.tokens.start, self.tokens.len())
    }

    /// Rows that the head sees: u32 [1, head rows].
    pub fn rows<'a>(&self, packed: View<'a>) -> View<'a> {
        packed.columns(self.rows.start, self.rows.len())
    }
}

/// What is at the same place in every step.
#[derive(Clone, Copy)]
pub(super) struct Fixed<'a> {
    pub block_tables: View<'a>,
    pub last_tokens: View<'a>,
    pub drafts: Option<View<'a>>,
}

/// The sequences' values, one after another, each followed by padding up to `queries`.
fn padded<'a>(
    sequences: &'a [PlannedSequence],
    values: &'a [u32],
    queries: usize,
    padding: u32,
) -> impl Iterator<Item = u32> + 'a {
    let mut rest = values;
    sequences.iter().flat_map(move |sequence| {
        let (own, others) = rest.split_at(sequence.queries as usize);
        rest = others;
        own.iter().copied().chain(std::iter::repeat_n(padding, queries.saturating_sub(own.len())))
    })
}

/// Writes values, then `padding`.
fn fill(into: &mut [u32], values: impl Iterator<Item = u32>, padding: u32) {
    let mut rest = into.iter_mut();
    for value in values {
        let Some(word) = rest.next() else { break };
        *word = value;
    }
    rest.for_each(|word| *word = padding);
}

/// Writes where runs of these lengths start, and the end; then of runs of `padding`.
fn starts(into: &mut [u32], lengths: impl Iterator<Item = u32>, padding: u32) {
    let mut at = 0;
    for (word, length) in into.iter_mut().zip(std::iter::once(0).chain(lengths).chain(std::iter::repeat(padding))) {
        at += length;
        *word = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_do_not_overlap_and_fit() {
        for (decodes, prefills, drafts) in [(3usize, 2usize, 0usize), (0, 1, 0), (8, 0, 3), (256, 0, 0)] {
            let shape = StepShape {
                tokens: decodes * (1 + drafts) + 70 * prefills,
                sequences: decodes + prefills,
                decodes,
                decode_tokens: decodes * (1 + drafts),
                max_decode_query: if decodes > 0 { 1 + drafts } else { 0 },
                max_kv: 100,
                max_query: if prefills > 0 { 70 } else { 0 },
                head_rows: decodes * (1 + drafts) + prefills,
            };
            let layout = Layout::of(&shape);
            let sections = [
                &layout.tokens,
                &layout.positions,
                &layout.slots,
                &layout.kv_lens,
                &layout.decode_starts,
                &layout.query_starts,
                &layout.rows,
            ];
            assert!(sections.windows(2).all(|pair| pair[0].end <= pair[1].start));
            assert!(sections.iter().all(|section| section.start.is_multiple_of(ALIGN) && section.end <= layout.words));
            assert_eq!(layout.decode_starts.is_empty(), drafts == 0);
            assert!(layout.words <= Layout::most(shape.tokens, shape.sequences, shape.head_rows));
        }
    }

    #[test]
    fn sequences_with_fewer_drafts_are_padded_in_place() {
        use crate::scheduler::{SampleRow, Scheduler, SchedulerConfig, SequenceRequest, Speculation};
        // Two sequences whose last tokens have been there before, and one that has nothing to look up.
        let limits = crate::scheduler::Limits { max_tokens: 64, max_sequences: 3, max_model_len: 64 };
        let mut scheduler = Scheduler::new(SchedulerConfig::new(limits), 8);
        let speculation = Speculation::Ngram { drafts: 3, max_n: 2, min_n: 1 };
        for prompt in [vec![1, 2, 3, 4, 1], vec![5, 6, 7], vec![8, 9, 8]] {
            scheduler.add(SequenceRequest { prompt, max_tokens: 9, speculation, ..Default::default() }).unwrap();
        }
        let plan = scheduler.plan().unwrap();
        let chosen = [1, 9, 9].map(|token| crate::scheduler::Sampled { tokens: vec![token], logprobs: vec![] });
        let _ = scheduler.commit(plan, &crate::scheduler::StepOutput { samples: chosen.into(), pooled: Vec::new() });
        let plan = scheduler.plan().unwrap();
        assert_eq!(plan.tokens, [1, 2, 3, 4, 9, 9, 8, 9]);
        let size = GraphSize { queries: 4, sequences: 3, max_kv: 9 };
        assert_eq!(graph_size(&plan, 3), Some(size), "as long as the first, which has all its drafts");
        assert_eq!(graph_size(&plan, 7), None, "24 rows for 8");
        let layout = Layout::of(&StepShape::decode(4, 4, 100));
        let mut words = vec![99; layout.words];
        layout.write(&plan, 4, &mut words);
        assert_eq!(words[layout.tokens.clone()], [1, 2, 3, 4, 9, 0, 0, 0, 9, 8, 9, 0, 0, 0, 0, 0]);
        let written: Vec<usize> = (0..16).filter(|row| words[layout.slots.start + row] != u32::MAX).collect();
        assert_eq!(written, [0, 1, 2, 3, 4, 8, 9, 10]);
        assert_eq!(words[layout.kv_lens.clone()], [9, 7, 7, 4]);
        assert_eq!(words[layout.decode_starts.clone()], [0, 4, 8, 12, 16]);
        assert_eq!(words[layout.rows.clone()], [0, 1, 2, 3, 4, 8, 9, 10, 0, 0, 0, 0, 0, 0, 0, 0]);
        let first: Vec<u32> = plan.samples.iter().map(|SampleRow { row, .. }| *row).collect();
        assert_eq!(first, [0, 4, 5]);
    }

    #[test]
    fn decodes_may_be_prompts() {
        use crate::scheduler::{Sampled, Scheduler, SchedulerConfig, SequenceRequest, StepOutput};
        let limits = crate::scheduler::Limits { max_tokens: 64, max_sequences: 3, max_model_len: 64 };
        let mut scheduler = Scheduler::new(SchedulerConfig::new(limits), 8);
        scheduler.add(SequenceRequest { prompt: vec![1, 2], max_tokens: 9, ..Default::default() }).unwrap();
        let plan = scheduler.plan().unwrap();
        let output = StepOutput { samples: vec![Sampled { tokens: vec![3], logprobs: vec![] }], pooled: vec![] };
        let _ = scheduler.commit(plan, &output);
        scheduler.add(SequenceRequest { prompt: vec![4, 5, 6], max_tokens: 9, ..Default::default() }).unwrap();
        let plan = scheduler.plan().unwrap();
        assert_eq!((plan.decodes, plan.sequences.len()), (1, 2));
        let shape = StepShape::of(&plan).without_decodes();
        assert_eq!((shape.decodes, shape.decode_tokens, shape.max_query), (0, 0, 3));
        let layout = Layout::of(&shape);
        let mut words = vec![99; layout.words];
        layout.write(&plan, 1, &mut words);
        assert_eq!(words[layout.tokens.clone()], plan.tokens);
        assert_eq!(words[layout.kv_lens.clone()], [3, 3]);
        assert_eq!(words[layout.query_starts.clone()], [0, 1, 4]);
        assert_eq!(words[layout.rows.clone()], [0, 3]);
    }

    #[test]
    fn padding_follows_the_plan() {
        let mut plan = StepPlan::default();
        plan.tokens = vec![5, 6, 7];
        plan.positions = vec![1, 2, 3];
        plan.slots = vec![65, 130, 195];
        let shape = StepShape::decode(4, 1, 100);
        let layout = Layout::of(&shape);
        let mut words = vec![99; layout.words];
        layout.write(&plan, 1, &mut words);
        assert_eq!(words[layout.tokens.clone()], [5, 6, 7, 0]);
        assert_eq!(words[layout.slots.clone()], [65, 130, 195, u32::MAX]);
        assert_eq!(words[layout.kv_lens.clone()], [1; 4]);
        let shape = StepShape::decode(3, 2, 100);
        let layout = Layout::of(&shape);
        let mut words = vec![99; layout.words];
        layout.write(&plan, 2, &mut words);
        assert_eq!((&words[layout.decode_starts.clone()], &words[layout.kv_lens]), (&[0, 2, 4, 6][..], &[2; 3][..]));
    }
}
