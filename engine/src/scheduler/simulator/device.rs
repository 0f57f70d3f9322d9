//! A device that keeps, instead of keys and values, a hash of all tokens up to each position. It computes it as a model
//! does: from what the page of the position before holds. A page with anything else in it gives other tokens.
use super::super::beam::BeamSearch;
use super::super::plan::*;
use crate::kv::PAGE_TOKENS;
use std::collections::HashMap;

/// Tokens of the vocabulary; 0 is the stop token.
pub const STOP: u32 = 0;

/// Mixes two numbers.
pub fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (x ^ (x >> 32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53) ^ (x >> 29)
}

/// What the model knows before the first token: nothing but the salt, so that a block under another salt is found out.
pub fn root(salt: u64) -> u64 {
    mix(0x5eed, salt)
}

/// What it knows after one more token.
pub fn extend(hash: u64, token: u32) -> u64 {
    mix(hash, u64::from(token) + 1)
}

/// The token that a sequence with this seed draws.
pub fn choose(hash: u64, seed: u64, vocab: u32) -> u32 {
    (mix(hash, seed) >> 16) as u32 % vocab
}

/// The likeliest tokens with their log-probabilities.
pub fn likeliest(hash: u64, vocab: u32, count: usize) -> Vec<(u32, f32)> {
    let p = |token: u32| -((mix(hash, u64::from(token)) >> 44) as f32) / 65536.0;
    let mut all: Vec<(u32, f32)> = (0..vocab).map(|token| (token, p(token))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(count);
    all
}

/// What the test knows of a request, by its seed / 1000.
#[derive(Clone, Debug)]
pub struct Known {
    pub salt: u64,
    pub prompt: Vec<u32>,
    /// Hash of the prompt.
    pub hash: u64,
}

type Page = [(u64, u32); PAGE_TOKENS];

/// Memory and what was last chosen.
pub struct Device {
    pages: Vec<Page>,
    host: Vec<Page>,
    last: Vec<u32>,
    /// Request and answer in each slot.
    in_slot: Vec<Option<u64>>,
    vocab: u32,
    steps: u64,
}

macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => { if !$condition { return Err(format!($($message)*)); } };
}
pub(super) use ensure;

impl Device {
    pub fn new(pages: usize, host: usize, slots: usize, vocab: u32) -> Self {
        let empty = [(0, 0); PAGE_TOKENS];
        Device {
            pages: vec![empty; pages],
            host: vec![empty; host],
            last: vec![0; slots],
            in_slot: vec![None; slots],
            vocab,
            steps: 0,
        }
    }

    /// Runs a plan. `known`: the requests.
    pub fn run(&mut self, plan: &StepPlan, known: &HashMap<u64, Known>) -> Result<StepOutput, String> {
        self.steps += 1;
        self.move_pages(plan)?;
        for entering in &plan.entering {
            let slot = entering.seq_slot as usize;
            ensure!(plan.sequences.iter().all(|s| s.seq_slot as usize != slot || s.queries > 0), "slot {slot}");
            self.in_slot[slot] = Some(entering.sampling.seed);
            let request = &known[&(entering.sampling.seed / 1000)];
            ensure!(request.prompt[..] == entering.prompt[..], "slot {slot} enters with another prompt");
        }
        let mut hashes = Vec::with_capacity(plan.tokens.len());
        for (i, sequence) in plan.sequences.iter().enumerate() {
            ensure!(sequence.queries > 0 && (i >= plan.decodes || decodes(plan, i)), "decodes come first");
            self.check(plan, sequence, known)?;
            self.rows(plan, sequence, known, &mut hashes)?;
        }
        ensure!(hashes.len() == plan.tokens.len(), "rows without a sequence");
        let samples = plan.samples.iter().map(|sample| self.sample(sample, &hashes)).collect();
        Ok(StepOutput { samples, pooled: Vec::new() })
    }

    fn move_pages(&mut self, plan: &StepPlan) -> Result<(), String> {
        let distinct = |pages: &mut dyn Iterator<Item = u32>| {
            let mut all: Vec<u32> = pages.collect();
            let len = all.len();
            all.sort_unstable();
            all.dedup();
            all.len() == len
        };
        ensure!(distinct(&mut plan.swap_out.iter().map(|m| m.1)), "two blocks to one host page");
        ensure!(distinct(&mut plan.swap_out.iter().map(|m| m.0)), "a page is moved out twice");
        ensure!(distinct(&mut plan.swap_in.iter().map(|m| m.1)), "two blocks to one page");
        ensure!(distinct(&mut plan.copies.iter().map(|m| m.1)), "two copies to one page");
        for (from, to) in &plan.swap_out {
            self.host[*to as usize] = self.pages[*from as usize];
        }
        for (from, to) in &plan.swap_in {
            self.pages[*to as usize] = self.host[*from as usize];
        }
        for (from, to) in &plan.copies {
            ensure!(plan.copies.iter().all(|(_, other)| other != from), "page {from} is copied from and to");
            self.pages[*to as usize] = self.pages[*from as usize];
        }
        Ok(())
    }

    fn known<'a>(&self, slot: u32, known: &'a HashMap<u64, Known>) -> Result<(&'a Known, u64), String> {
        let seed = self.in_slot[slot as usize].ok_or_else(|| format!("nobody entered slot {slot}"))?;
        Ok((&known[&(seed / 1000)], seed))
    }

    /// Whether the pages that a sequence reads hold its tokens: from block to block, and at one place of each.
    fn check(&self, plan: &StepPlan, sequence: &PlannedSequence, known: &HashMap<u64, Known>) -> Result<(), String> {
        let table = &plan.pages[sequence.pages.clone()];
        let len = (sequence.kv_len - sequence.queries) as usize;
        let (request, _) = self.known(sequence.seq_slot, known)?;
        ensure!(table.len() == (sequence.kv_len as usize).div_ceil(PAGE_TOKENS), "pages of {sequence:?}");
        let at = |position: usize| self.pages[table[position / PAGE_TOKENS] as usize][position % PAGE_TOKENS];
        let linked = |position: usize| {
            let before = position.checked_sub(1).map_or(root(request.salt), |before| at(before).0);
            at(position).0 == extend(before, at(position).1)
        };
        for start in (0..len).step_by(PAGE_TOKENS) {
            let within = start + (mix(self.steps, start as u64) as usize % PAGE_TOKENS).min(len - 1 - start);
            ensure!(linked(start), "position {start} of {sequence:?} does not follow what is before it");
            ensure!(linked(within), "position {within} of {sequence:?} does not follow what is before it");
        }
        let prompt = request.prompt.len();
        if len >= prompt {
            ensure!(at(prompt - 1).0 == request.hash, "{sequence:?} reads another prompt than its own");
        } else if len > 0 {
            ensure!(at(len - 1).1 == request.prompt[len - 1], "{sequence:?} reads another prompt than its own");
        }
        Ok(())
    }

    fn rows(
        &mut self,
        plan: &StepPlan,
        sequence: &PlannedSequence,
        known: &HashMap<u64, Known>,
        hashes: &mut Vec<u64>,
    ) -> Result<(), String> {
        let table = &plan.pages[sequence.pages.clone()];
        let (request, seed) = self.known(sequence.seq_slot, known)?;
        for i in 0..sequence.queries {
            let (row, position) = (hashes.len(), (sequence.kv_len - sequence.queries + i) as usize);
            ensure!(
                plan.positions[row] as usize == position,
                "row {row} is at {}, not {position}",
                plan.positions[row]
            );
            let before = match position.checked_sub(1) {
                None => root(request.salt),
                Some(p) => self.pages[table[p / PAGE_TOKENS] as usize][p % PAGE_TOKENS].0,
            };
            let token = match plan.tokens[row] {
                token if token & FROM_SLOT != 0 => {
                    ensure!(token == FROM_SLOT | sequence.seq_slot, "row {row} takes the token of another slot");
                    ensure!(sequence.queries == 1, "row {row} of a prompt takes a slot's token");
                    self.last[sequence.seq_slot as usize]
                }
                token if token & FROM_DRAFT != 0 => {
                    let name = FROM_DRAFT | (sequence.seq_slot * MAX_DRAFTS as u32 + i - 1);
                    ensure!(token == name, "row {row} takes another draft");
                    // A draft model that is right three times of four.
                    choose(before, seed, self.vocab) + u32::from(mix(before, 77).is_multiple_of(4))
                }
                token => token,
            };
            let (page, at) = (table[position / PAGE_TOKENS], position % PAGE_TOKENS);
            ensure!(plan.slots[row] == page * PAGE_TOKENS as u32 + at as u32, "slot of row {row}");
            let hash = extend(before, token);
            self.pages[page as usize][at] = (hash, token);
            hashes.push(hash);
        }
        Ok(())
    }

    fn sample(&mut self, sample: &SampleRow, hashes: &[u64]) -> Sampled {
        let (first, seed) = (sample.row as usize, sample.sampling.seed);
        let mut sampled = Sampled::default();
        for i in 0..=sample.drafts as usize {
            let hash = hashes[first + i];
            let token = choose(hash, seed, self.vocab);
            sampled.tokens.push(token);
            if let Some(count) = sample.sampling.logprobs {
                let top = likeliest(hash, self.vocab, count as usize);
                sampled.logprobs.push(TokenLogprobs { logprob: 0.0, rank: 1, top });
            }
            // The next row holds the draft: it counts if this row chose the same.
            if i < sample.drafts as usize && hashes[first + i + 1] != extend(hash, token) {
                break;
            }
        }
        self.last[sample.seq_slot as usize] = sampled.tokens[sampled.tokens.len() - 1];
        sampled
    }
}

/// Whether sequence `i` has one sample, for all its rows.
fn decodes(plan: &StepPlan, i: usize) -> bool {
    let sample = &plan.samples[i];
    (sample.seq_slot, sample.drafts + 1) == (plan.sequences[i].seq_slot, plan.sequences[i].queries)
}

/// What beam search over this model answers, without pages or steps: tokens, whether a stop token ended it.
pub fn beam_answers(
    params: super::super::BeamParams,
    known: &Known,
    max_tokens: usize,
    n: usize,
    vocab: u32,
) -> Vec<(Vec<u32>, bool)> {
    let mut search = BeamSearch::new(params, max_tokens);
    let mut beams = vec![(known.hash, Vec::new())];
    loop {
        let count = BeamSearch::<()>::tops(params, 1) as usize;
        let tops: Vec<_> = beams.iter().map(|(hash, _)| likeliest(*hash, vocab, count)).collect();
        let tops: Vec<&[(u32, f32)]> = tops.iter().map(Vec::as_slice).collect();
        let keep =
            |parent: usize, token: Option<u32>| beams[parent].1.iter().copied().chain(token).collect::<Vec<u32>>();
        let next = search.advance(&tops, |token| token == STOP, keep);
        if next.is_empty() {
            return search.into_answers().into_iter().take(n).map(|a| (a.content, a.stopped)).collect();
        }
        let follow = |c: &super::super::beam::Continuation| {
            let (hash, tokens) = &beams[c.parent];
            (extend(*hash, c.token), tokens.iter().copied().chain([c.token]).collect())
        };
        beams = next.iter().map(follow).collect();
    }
}
