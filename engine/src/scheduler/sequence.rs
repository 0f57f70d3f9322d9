//! A sequence's state, and the places where sequences live.
use super::request::{RequestId, SequenceId, Speculation};
use crate::kv::PAGE_TOKENS;
use crate::pooling::{Pooled, Pooling};
use crate::sampling::SamplingParams;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// The order of service: priority, arrival, index within the request.
pub type Key = (i32, u64, u32);

/// A sequence that runs in no slot.
pub const NO_SLOT: u32 = u32::MAX;

/// What all sequences of a request have in common.
#[derive(Debug)]
pub struct Shared {
    pub prompt: Arc<[u32]>,
    pub stop_tokens: Vec<u32>,
    pub salt: Option<Arc<str>>,
    pub speculation: Speculation,
    pub reuse_prefix: bool,
    pub pooling: Option<Pooling>,
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In the queue: it holds no pages.
    Waiting,
    /// In a slot; planned when it can be.
    Running,
    /// Part of a request, without tokens of its own yet: an answer before its prompt is done, a beam nobody continues.
    Dormant,
}

/// One sequence.
#[derive(Debug)]
pub struct Sequence {
    pub id: SequenceId,
    pub request: RequestId,
    /// Place of the request's group.
    pub group: u32,
    /// Which answer.
    pub index: u32,
    pub key: Key,
    pub state: State,
    pub slot: u32,
    /// Prompt and answer, as far as committed.
    pub tokens: Vec<u32>,
    /// Most tokens of prompt and answer together.
    pub total: usize,
    /// Tokens whose keys and values are in the cache once all plans have run.
    pub kv: usize,
    /// The same for the plans that are committed.
    pub computed: usize,
    /// Samples in plans that are not committed.
    pub pending: usize,
    /// Plans that are not committed and name it.
    pub in_flight: usize,
    pub pages: Vec<u32>,
    /// Leading pages that are in the prefix tree.
    pub published: usize,
    /// The draft model's cache ends one token before `kv`: all drafts of the last step came true, and it has not read
    /// the last of them.
    pub draft_lags: bool,
    /// How often it started over.
    pub epoch: u32,
    /// Its prompt's last row is sampled once for each answer of the request.
    pub forks: bool,
    /// A beam.
    pub beam: bool,
    /// Of the rows that are committed.
    pub pooled: Pooled,
    pub shared: Arc<Shared>,
    pub sampling: Arc<SamplingParams>,
}

impl Sequence {
    /// Tokens, with those that are sampled but not committed.
    pub fn len(&self) -> usize {
        self.tokens.len() + self.pending
    }

    /// Position of the first token that may end the answer.
    pub fn may_end_at(&self) -> u32 {
        u32::try_from(self.shared.prompt.len().saturating_add(self.sampling.min_tokens)).unwrap_or(u32::MAX)
    }

    /// Tokens without keys and values.
    pub fn todo(&self) -> usize {
        self.len() - self.kv
    }

    /// Whether its last token is sampled, or being sampled.
    pub fn exhausted(&self) -> bool {
        self.len() >= self.total
    }

    /// Whether its next step depends on what the host learns from the last one.
    pub fn needs_host(&self) -> bool {
        self.beam || self.shared.speculation != Speculation::Off
    }

    /// Whether it can be planned now.
    pub fn ready(&self) -> bool {
        !self.exhausted() && (self.in_flight == 0 || !self.needs_host())
    }

    /// Pages for its whole life: the last token is never fed back.
    pub fn all_pages(&self) -> usize {
        (self.total - 1).div_ceil(PAGE_TOKENS)
    }

    /// The page that it fills at present, if that holds tokens already.
    pub fn partial_page(&self) -> Option<u32> {
        (!self.kv.is_multiple_of(PAGE_TOKENS)).then(|| self.pages[self.kv / PAGE_TOKENS])
    }

    /// Forgets what is cached. The pages are the caller's.
    pub fn start_over(&mut self) -> Vec<u32> {
        (self.kv, self.computed, self.published) = (0, 0, 0);
        self.draft_lags = false;
        self.pooled = Pooled::default();
        self.epoch += 1;
        std::mem::take(&mut self.pages)
    }
}

/// Sequences by id.
#[derive(Debug, Default)]
pub struct Sequences {
    places: Vec<(u32, Option<Box<Sequence>>)>,
    free: Vec<u32>,
}

impl Sequences {
    /// Makes a place for a sequence that gets the id.
    pub fn insert(&mut self, make: impl FnOnce(SequenceId) -> Sequence) -> SequenceId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[index as usize];
        let id = SequenceId { index, generation: place.0 };
        place.1 = Some(Box::new(make(id)));
        id
    }

    /// A sequence, if it is still there.
    pub fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        let (generation, sequence) = &mut self.places[id.index as usize];
        sequence.as_deref_mut().filter(|_| *generation == id.generation)
    }

    /// Takes a sequence out; its id is never used again.
    pub fn remove(&mut self, index: u32) -> Option<Box<Sequence>> {
        let (generation, sequence) = &mut self.places[index as usize];
        let sequence = sequence.take()?;
        *generation += 1;
        self.free.push(index);
        Some(sequence)
    }

    /// All of them.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.places.iter().filter_map(|(_, sequence)| sequence.as_deref())
    }
}

impl Index<u32> for Sequences {
    type Output = Sequence;
    fn index(&self, index: u32) -> &Sequence {
        match &self.places[index as usize].1 {
            Some(sequence) => sequence,
            None => panic!("sequence {index} is gone"),
        }
    }
}

impl IndexMut<u32> for Sequences {
    fn index_mut(&mut self, index: u32) -> &mut Sequence {
        match &mut self.places[index as usize].1 {
            Some(sequence) => sequence,
            None => panic!("sequence {index} is gone"),
        }
    }
}
