//! Making a plan: rows within the budget, then pages in the order of service, then newcomers.
use super::blocks::Match;
use super::plan::{
    Entering, Entry, FROM_DRAFT, FROM_SLOT, MAX_DRAFTS, PlannedSequence, PooledRows, SampleRow, StepPlan,
};
use super::request::Speculation;
use super::sequence::{Key, NO_SLOT, Sequence, State};
use super::{MAX_PLANS, Scheduler, ngram};
use crate::kv::PAGE_TOKENS;
use crate::pooling::Pooling;

/// A sequence's part in the step that is being planned.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    sequence: u32,
    /// Tokens without drafts; 0: not in this step.
    queries: usize,
    drafts: usize,
    /// Where the drafts' values start in `Scheduler::drafts`.
    draft_start: usize,
    decodes: bool,
}

impl Scheduler {
    /// The next step. `None` if nothing can be planned now: there is no work, two plans are open, or everything that runs
    /// waits for the step under way; commit that first.
    pub fn plan(&mut self) -> Option<StepPlan> {
        if self.planned - self.committed >= MAX_PLANS {
            return None;
        }
        let mut rows = std::mem::take(&mut self.rows);
        rows.clear();
        let mut budget = self.size_rows(&mut rows);
        let mut plan = self.spare.pop().unwrap_or_default();
        let preempted = self.give_pages(&mut rows, &mut budget, &mut plan);
        if !preempted {
            self.admit(&mut rows, &mut budget, &mut plan);
        }
        for row in rows.iter().filter(|row| row.decodes && row.queries > 0) {
            self.emit(*row, &mut plan);
        }
        plan.decodes = plan.sequences.len();
        for row in rows.iter().filter(|row| !row.decodes && row.queries > 0) {
            self.emit(*row, &mut plan);
        }
        self.rows = rows;
        if plan.is_empty() {
            self.spare.push(plan);
            return None;
        }
        std::mem::swap(&mut plan.swap_out, &mut self.blocks.swap_out);
        std::mem::swap(&mut plan.swap_in, &mut self.blocks.swap_in);
        self.blocks.next_step();
        plan.number = self.planned;
        self.planned += 1;
        Some(plan)
    }

    /// Lists the running sequences that can be planned, in their order, with a row for each that decodes, and drafts.
    /// Returns what that leaves of the budget for prompts.
    fn size_rows(&mut self, rows: &mut Vec<Row>) -> usize {
        let mut budget = self.config.limits.max_tokens;
        let (mut prompts, mut speculates) = (!self.waiting.is_empty(), false);
        for &index in &self.running {
            let sequence = &self.sequences[index];
            if !sequence.ready() {
                continue;
            }
            let decodes = sequence.todo() == 1 && !sequence.forks;
            let queries = usize::from(decodes);
            budget -= queries;
            prompts |= !decodes;
            speculates |= sequence.shared.speculation != Speculation::Off;
            rows.push(Row { sequence: index, queries, drafts: 0, draft_start: 0, decodes });
        }
        if speculates {
            let kept = if prompts { self.config.limits.max_tokens / 4 } else { 0 };
            budget -= self.draft(rows, budget.saturating_sub(kept));
        }
        budget
    }

    /// Gives drafts to sequences that decode, `most` tokens in all; returns how many.
    fn draft(&mut self, rows: &mut [Row], most: usize) -> usize {
        self.drafts.clear();
        let mut left = most;
        for row in rows.iter_mut().filter(|row| row.decodes) {
            let sequence = &self.sequences[row.sequence];
            // The token after the last accepted draft must still be within bounds.
            let room = left.min(MAX_DRAFTS).min((sequence.total - sequence.len()).saturating_sub(1));
            row.draft_start = self.drafts.len();
            match sequence.shared.speculation {
                _ if room == 0 => {}
                Speculation::Auto | Speculation::Off => {}
                // The draft model starts from two tokens.
                Speculation::Draft { .. } if sequence.kv == 0 => {}
                Speculation::Draft { drafts } => {
                    let name = |j| FROM_DRAFT | (sequence.slot * MAX_DRAFTS as u32 + j);
                    self.drafts.extend((0..drafts.min(room) as u32).map(name));
                }
                Speculation::Ngram { drafts, max_n, min_n } => {
                    ngram::propose(&sequence.tokens, min_n, max_n, drafts.min(room), &mut self.drafts);
                }
            }
            row.drafts = self.drafts.len() - row.draft_start;
            left -= row.drafts;
        }
        most - left
    }

    /// Gives every sequence the pages that it writes, in the order of service, and prompts their share of the budget;
    /// takes pages from later sequences if it must. Returns whether it did.
    fn give_pages(&mut self, rows: &mut [Row], budget: &mut usize, plan: &mut StepPlan) -> bool {
        let mut preempted = false;
        for row in rows {
            let sequence = &self.sequences[row.sequence];
            if sequence.state != State::Running {
                // An earlier one took its pages.
                row.queries = 0;
            } else if !row.decodes {
                row.queries = sequence.todo().min(*budget);
            }
            while row.queries > 0 {
                let Row { sequence: index, queries, drafts, .. } = *row;
                let sequence = &self.sequences[index];
                let short = self.short(sequence, sequence.kv + queries + drafts);
                if short == 0 {
                    break;
                }
                if self.may_take(sequence.group, short) {
                    self.take_pages(*row, plan);
                    break;
                }
                if drafts > 0 {
                    row.drafts = 0;
                } else if let Some(victim) = self.victim(sequence.key) {
                    self.preempt(victim);
                    preempted = true;
                } else {
                    // Nobody is later: it takes part as far as pages go, and keeps what it has.
                    let pages = sequence.pages.len() + self.blocks.available().saturating_sub(self.reserved);
                    let copies = usize::from(self.writes_shared(sequence));
                    let room = (pages.saturating_sub(copies) * PAGE_TOKENS).saturating_sub(sequence.kv);
                    row.queries = if room < queries { room } else { 0 };
                }
            }
            // What a prompt cannot use for want of pages is left to those after it.
            *budget -= if row.decodes { 0 } else { row.queries };
        }
        preempted
    }

    /// Pages that a sequence lacks to write its cache up to `end` tokens.
    fn short(&self, sequence: &Sequence, end: usize) -> usize {
        end.div_ceil(PAGE_TOKENS).saturating_sub(sequence.pages.len()) + usize::from(self.writes_shared(sequence))
    }

    /// Whether its next token goes to a page that others hold, too: a fork's partly filled last block.
    fn writes_shared(&self, sequence: &Sequence) -> bool {
        sequence.partial_page().is_some_and(|page| self.blocks.holders(page) > 1)
    }

    fn may_take(&self, group: u32, pages: usize) -> bool {
        let own = self.groups[group].reserved.min(pages);
        self.blocks.available() + own >= self.reserved + pages
    }

    fn take_page(&mut self, group: u32) -> u32 {
        let own = &mut self.groups[group].reserved;
        if *own > 0 {
            *own -= 1;
            self.reserved -= 1;
        }
        match self.blocks.take() {
            Some(page) => page,
            None => panic!("no page is left although {} are promised", self.reserved),
        }
    }

    /// The latest running sequence after `key` that may lose its pages.
    fn victim(&self, key: Key) -> Option<u32> {
        let latest = self.running.iter().rev().copied().find(|index| {
            let sequence = &self.sequences[*index];
            !self.groups[sequence.group].guaranteed && !sequence.exhausted()
        })?;
        (self.sequences[latest].key > key).then_some(latest)
    }

    /// Sends a sequence back to the queue, at its old place. Answers that wait for its prompt give their slots back.
    fn preempt(&mut self, index: u32) {
        self.leave(index);
        self.metrics.preemptions += 1;
        let sequence = &mut self.sequences[index];
        sequence.state = State::Waiting;
        self.waiting.insert(sequence.key, index);
        let group = &self.groups[sequence.group];
        if !group.forked {
            for member in &group.members {
                let slot = &mut self.sequences[member.index].slot;
                if *slot != NO_SLOT {
                    self.free_slots.push(std::mem::replace(slot, NO_SLOT));
                }
            }
        }
    }

    /// Starts waiting sequences, in their order, as far as budget, slots and pages go.
    fn admit(&mut self, rows: &mut Vec<Row>, budget: &mut usize, plan: &mut StepPlan) {
        while *budget > 0
            && let Some((&key, &index)) = self.waiting.first_key_value()
        {
            let sequence = &self.sequences[index];
            let group = &self.groups[sequence.group];
            let slots = if group.forked { 1 } else { group.bodies().count() };
            // The token of a sequence that was preempted in flight is not known before that step is committed.
            if sequence.pending > 0 || self.free_slots.len() < slots {
                return;
            }
            let headroom = self.headroom();
            if self.blocked.is_some_and(|(blocked, pages)| blocked == key && headroom <= pages) {
                return;
            }
            let shared = &sequence.shared;
            let found = if shared.reuse_prefix {
                self.blocks.longest(&shared.salt, &sequence.tokens)
            } else {
                Match::default()
            };
            // Blocks that somebody holds are there already; idle ones count as available until they are taken.
            if self.pages_to_start(sequence) > headroom + found.held {
                self.blocked = Some((key, headroom));
                return;
            }
            self.start(index, &found, plan);
            let sequence = &self.sequences[index];
            let (todo, kv) = (sequence.todo(), sequence.kv);
            let queries = todo.min(*budget);
            *budget -= queries;
            let decodes = todo == 1 && !sequence.forks;
            let row = Row { sequence: index, queries, drafts: 0, draft_start: 0, decodes };
            debug_assert!(self.may_take(sequence.group, self.short(sequence, kv + queries)), "counted when it started");
            self.take_pages(row, plan);
            rows.push(row);
        }
    }

    /// Pages that newcomers may have: available, not promised, and not counted on by a running sequence for what it has
    /// to compute already.
    fn headroom(&self) -> usize {
        let counted_on = |index: &u32| {
            let sequence = &self.sequences[*index];
            let lacks = sequence.len().div_ceil(PAGE_TOKENS).saturating_sub(sequence.pages.len());
            if self.groups[sequence.group].guaranteed { 0 } else { lacks }
        };
        let counted_on: usize = self.running.iter().map(counted_on).sum();
        (self.blocks.available() - self.reserved).saturating_sub(counted_on)
    }

    /// Pages that must be there before a waiting sequence starts, shared ones included.
    fn pages_to_start(&self, sequence: &Sequence) -> usize {
        let group = &self.groups[sequence.group];
        if group.guaranteed {
            let (all, full) = (sequence.all_pages(), sequence.shared.prompt.len() / PAGE_TOKENS);
            return all + (group.bodies().count() - 1) * (all - full);
        }
        // One page in 64 stays free for those that run already, or they would preempt the newcomer at once.
        let margin = if self.running.is_empty() { 0 } else { 1 + self.blocks.pages() / 64 };
        sequence.len().div_ceil(PAGE_TOKENS) + margin
    }

    /// Takes a sequence out of the queue into a slot, with the blocks that are there already.
    fn start(&mut self, index: u32, found: &Match, plan: &mut StepPlan) {
        let pages = self.blocks.adopt(found);
        let sequence = &mut self.sequences[index];
        self.waiting.remove(&sequence.key);
        sequence.pages = pages;
        sequence.published = found.len();
        sequence.kv = found.len() * PAGE_TOKENS;
        sequence.computed = sequence.kv;
        let (at, queries) = (sequence.group, sequence.tokens.len());
        let hits = sequence.kv;
        self.run(index);
        let group = &mut self.groups[at];
        if !std::mem::replace(&mut group.started, true) {
            plan.started.push((group.request, hits));
            if self.blocks.sharing() {
                self.metrics.prefix_queries += queries as u64;
                self.metrics.prefix_hits += hits as u64;
            }
        }
        let entering: Vec<u32> =
            if group.forked { vec![index] } else { group.bodies().map(|sequence| sequence.index).collect() };
        for index in entering {
            let sequence = &mut self.sequences[index];
            let Some(slot) = self.free_slots.pop() else { panic!("slots were counted") };
            sequence.slot = slot;
            plan.entering.push(Entering {
                seq_slot: slot,
                prompt: sequence.shared.prompt.clone(),
                generated: sequence.tokens.get(sequence.shared.prompt.len()..).unwrap_or_default().to_vec(),
                sampling: sequence.sampling.clone(),
            });
        }
        self.reserve(at);
    }

    /// Puts a sequence's rows into the plan.
    fn emit(&mut self, row: Row, plan: &mut StepPlan) {
        let sequence = &mut self.sequences[row.sequence];
        let (start, end) = (sequence.kv, sequence.kv + row.queries);
        let first = plan.tokens.len() as u32;
        let known = sequence.tokens.len().min(end);
        plan.tokens.extend_from_slice(&sequence.tokens[start.min(known)..known]);
        if end > known {
            plan.tokens.push(FROM_SLOT | sequence.slot);
        }
        plan.tokens.extend_from_slice(&self.drafts[row.draft_start..row.draft_start + row.drafts]);
        for position in start..end + row.drafts {
            plan.positions.push(position as u32);
            let page = sequence.pages[position / PAGE_TOKENS];
            plan.slots.push(page * PAGE_TOKENS as u32 + (position % PAGE_TOKENS) as u32);
        }
        let samples = end == sequence.len();
        let table = plan.pages.len();
        let used = (end + row.drafts).div_ceil(PAGE_TOKENS);
        plan.pages.extend_from_slice(&sequence.pages[..used]);
        plan.sequences.push(PlannedSequence {
            id: sequence.id,
            seq_slot: sequence.slot,
            queries: (row.queries + row.drafts) as u32,
            kv_len: (end + row.drafts) as u32,
            pages: table..table + used,
            unseen: sequence.draft_lags.then(|| sequence.tokens[start - 1]),
        });
        let rows = first..first + row.queries as u32;
        let pooled = match sequence.shared.pooling {
            Some(Pooling::Mean) => Some(rows),
            Some(Pooling::Last) if samples => Some(rows.end - 1..rows.end),
            _ => None,
        };
        plan.entries.push(Entry {
            id: sequence.id,
            epoch: sequence.epoch,
            queries: row.queries as u32,
            drafts: row.drafts as u32,
            kv: end as u32,
            samples,
            pools: pooled.is_some(),
        });
        plan.pools.extend(pooled.map(|rows| PooledRows { rows }));
        sequence.kv = end;
        sequence.in_flight += 1;
        if samples {
            let row_at = first + row.queries as u32 - 1;
            sequence.pending += 1;
            plan.samples.push(SampleRow {
                request: sequence.request,
                index: sequence.index,
                row: row_at,
                drafts: row.drafts as u32,
                seq_slot: sequence.slot,
                position: end as u32,
                may_end_at: sequence.may_end_at(),
                sampling: sequence.sampling.clone(),
            });
            if sequence.forks {
                self.fork(row.sequence, row_at, plan);
            }
        }
    }

    /// Takes the pages that a row writes: new ones, and a copy of one that others share.
    fn take_pages(&mut self, row: Row, plan: &mut StepPlan) {
        let sequence = &self.sequences[row.sequence];
        let end = sequence.kv + row.queries + row.drafts;
        let (group, at) = (sequence.group, sequence.kv / PAGE_TOKENS);
        if self.writes_shared(sequence) {
            let to = self.take_page(group);
            let from = std::mem::replace(&mut self.sequences[row.sequence].pages[at], to);
            plan.copies.push((from, to));
            self.blocks.release(&[from]);
        }
        while self.sequences[row.sequence].pages.len() * PAGE_TOKENS < end {
            let page = self.take_page(group);
            self.sequences[row.sequence].pages.push(page);
        }
    }

    /// The other answers to a prompt start from its last row, with its pages.
    fn fork(&mut self, leader: u32, row: u32, plan: &mut StepPlan) {
        self.sequences[leader].forks = false;
        let first = &self.sequences[leader];
        let (pages, tokens, kv, published) = (first.pages.clone(), first.tokens.clone(), first.kv, first.published);
        let at = first.group;
        self.groups[at].forked = true;
        let others: Vec<u32> = self.groups[at].members.iter().map(|id| id.index).filter(|id| *id != leader).collect();
        for index in others {
            pages.iter().for_each(|page| self.blocks.hold(*page));
            let sequence = &mut self.sequences[index];
            (sequence.pages, sequence.tokens) = (pages.clone(), tokens.clone());
            (sequence.kv, sequence.computed, sequence.published) = (kv, published * PAGE_TOKENS, published);
            (sequence.pending, sequence.in_flight) = (1, 1);
            plan.samples.push(SampleRow {
                request: sequence.request,
                index: sequence.index,
                row,
                drafts: 0,
                seq_slot: sequence.slot,
                position: kv as u32,
                may_end_at: sequence.may_end_at(),
                sampling: sequence.sampling.clone(),
            });
            let (id, epoch) = (sequence.id, sequence.epoch);
            plan.entries.push(Entry { id, epoch, queries: 0, drafts: 0, kv: kv as u32, samples: true, pools: false });
            self.run(index);
        }
        self.reserve(at);
    }
}
