//! Shared memory as asynchronous operations see it: bulk copies, TMA and `wgmma`, which go through the async proxy.
//!
//! An operation is an actor of its own. What it writes is nobody's until the operation's completion was waited for:
//! bytes are in flight until they land, and from then on carry the epoch of the mbarrier that counted them. What it
//! reads is held: a write to it is a fault until whoever issued the operation has waited for it.
//!
//! A generic store reaches the async proxy through `fence.proxy.async` only. Each clock has, next to the epochs that
//! its warp has heard of, those that it knows to be fenced; a fence makes everything known fenced, and what joins
//! clocks joins both. That is the memory model's rule: a proxy fence somewhere along the causality order.

use super::race::Who;
use super::shared::{Shared, culprit, place, raced, words};
use super::{IN_FLIGHT, WRITTEN};
use crate::{Access, FaultKind};

/// Who has an entry in the vector clocks: the warps, the warps again with their fenced epochs, and the mbarriers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actors {
    /// Warps of the cluster.
    pub warps: u32,
    /// Blocks of the cluster.
    pub blocks: u32,
    /// This block's rank in it.
    pub rank: u32,
    /// Entries for the mbarriers of a block; if there are more, some share one.
    pub mbarriers: u32,
}

impl Actors {
    /// Entries of a clock.
    pub fn entries(self) -> usize {
        (2 * self.warps + self.blocks * self.mbarriers) as usize
    }

    /// The entry that tells which epochs of `warp` are fenced.
    pub fn fenced(self, warp: u32) -> usize {
        (self.warps + warp) as usize
    }

    /// The entry of this block's `number`th mbarrier.
    pub fn mbarrier(self, number: u32) -> u32 {
        2 * self.warps + self.rank * self.mbarriers + number % self.mbarriers.max(1)
    }
}

/// What is asynchronous in a block's shared memory.
#[derive(Debug)]
pub(super) struct Async {
    actors: Actors,
    holds: Vec<Hold>,
    next: u64,
    /// The bytes within which all holds lie.
    bounds: (usize, usize),
    fences: Vec<PartialFence>,
}

/// Bytes that an operation reads until it was waited for.
#[derive(Debug)]
struct Hold {
    id: HoldId,
    offset: usize,
    bytes: usize,
    line: u32,
}

/// Names the bytes that an operation reads, for [`Shared::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HoldId(u64);

/// A fence that not all lanes of its warp executed: it covers the stores of these since the lanes last met.
#[derive(Debug)]
struct PartialFence {
    warp: u32,
    meetings: u32,
    lanes: u32,
}

impl Async {
    pub fn new(actors: Actors) -> Self {
        Self { actors, holds: Vec::new(), next: 0, bounds: (usize::MAX, 0), fences: Vec::new() }
    }

    fn take(&mut self, id: HoldId) -> Option<Hold> {
        let at = self.holds.iter().position(|hold| hold.id == id)?;
        let hold = self.holds.swap_remove(at);
        if self.holds.is_empty() {
            self.bounds = (usize::MAX, 0);
        }
        Some(hold)
    }
}

impl Shared {
    /// The bytes at `address` as an asynchronous operation issued by `who` reads them: written, not in flight, by
    /// threads that do not race with it, and fenced. The read itself is recorded by [`Self::release`].
    pub fn read_async(&mut self, address: u64, bytes: usize, who: Who<'_>) -> Result<&[u8], FaultKind> {
        let offset = self.bounds(Access::Read, address, bytes)?;
        self.settled(Access::Read, offset, bytes)?;
        for (word, mask) in words(offset, bytes) {
            let found = self.words[word].check(Access::Read, who, mask);
            found.map_err(|conflict| raced(Access::Read, word, conflict, who))?;
        }
        self.fenced(offset, bytes, who)?;
        Ok(&self.bytes[offset..offset + bytes])
    }

    /// Faults writes to the bytes from now on, until [`Self::release`].
    pub fn hold(&mut self, address: u64, bytes: usize, line: u32) -> Result<HoldId, FaultKind> {
        let offset = self.bounds(Access::Read, address, bytes)?;
        let held = &mut self.asynchronous;
        held.next += 1;
        let id = HoldId(held.next);
        held.holds.push(Hold { id, offset, bytes, line });
        held.bounds = (held.bounds.0.min(offset), held.bounds.1.max(offset + bytes));
        Ok(id)
    }

    /// The operation was waited for by `who`: its reads are `who`'s, now.
    pub fn release(&mut self, id: HoldId, who: Who<'_>) -> Result<(), FaultKind> {
        match self.asynchronous.take(id) {
            None => Ok(()),
            Some(Hold { offset, bytes, line, .. }) => self.record(Access::Read, offset, bytes, Who { line, ..who }),
        }
    }

    /// The operation is done: who hears of `actor`'s `epoch` is ordered after its reads.
    pub fn hand_over(&mut self, id: HoldId, actor: u32, epoch: u32) {
        if let Some(Hold { offset, bytes, line, .. }) = self.asynchronous.take(id) {
            for (word, mask) in words(offset, bytes) {
                self.words[word].read_by(actor, epoch, mask, line);
            }
        }
    }

    /// The bytes as they are, for an operation that was checked when it was issued.
    pub fn peek(&self, address: u64, bytes: usize) -> &[u8] {
        &self.bytes[address as usize..address as usize + bytes]
    }

    /// No operation still reads one of the bytes.
    #[inline]
    pub(super) fn unheld(&self, access: Access, offset: usize, bytes: usize) -> Result<(), FaultKind> {
        let (first, end) = self.asynchronous.bounds;
        if end <= offset || offset + bytes <= first {
            return Ok(());
        }
        let overlaps = |hold: &&Hold| hold.offset < offset + bytes && offset < hold.offset + hold.bytes;
        match self.asynchronous.holds.iter().find(overlaps) {
            None => Ok(()),
            Some(hold) => Err(FaultKind::InUse { access, place: place(offset.max(hold.offset)), line: hold.line }),
        }
    }

    /// A copy issued by `who` will write the bytes: they are free of other accesses, and in flight from now on.
    pub fn begin_write(&mut self, address: u64, bytes: usize, who: Who<'_>, actor: u32) -> Result<(), FaultKind> {
        let offset = self.bounds(Access::Write, address, bytes)?;
        self.landed(Access::Write, offset, bytes)?;
        self.unheld(Access::Write, offset, bytes)?;
        self.operands.check_write(Access::Write, offset, bytes, who)?;
        self.fenced(offset, bytes, who)?;
        for (word, mask) in words(offset, bytes) {
            let begun = self.words[word].begin_copy(who, mask, actor);
            begun.map_err(|conflict| raced(Access::Write, word, conflict, who))?;
        }
        self.state[offset..offset + bytes].fill(IN_FLIGHT);
        Ok(())
    }

    /// Data of a copy that [`Self::begin_write`] announced, counted in `epoch` of `actor`.
    pub fn land(&mut self, address: u64, data: &[u8], actor: u32, epoch: u32) {
        let offset = address as usize;
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self.state[offset..offset + data.len()].fill(WRITTEN);
        for (word, _) in words(offset, data.len()) {
            self.words[word].land_copy(actor, epoch);
        }
    }

    /// Data of a `cp.async` that an mbarrier counts: from now on it is a copy of that barrier.
    pub fn adopt(&mut self, address: u64, data: &[u8], actor: u32, epoch: u32) {
        for (word, _) in words(address as usize, data.len()) {
            self.words[word].adopt();
        }
        self.land(address, data, actor, epoch);
    }

    /// The lanes in `lanes` of `warp`, of those that are `all`, executed `fence.proxy.async`.
    pub fn fence_proxy(&mut self, warp: u32, meetings: u32, lanes: u32, all: u32) {
        let fences = &mut self.asynchronous.fences;
        if lanes == all {
            fences.retain(|fence| fence.warp != warp);
            return;
        }
        fences.retain(|fence| fence.warp != warp || fence.meetings == meetings);
        match fences.iter_mut().find(|fence| fence.warp == warp) {
            Some(fence) => fence.lanes |= lanes,
            None => fences.push(PartialFence { warp, meetings, lanes }),
        }
    }

    /// Every generic write to the bytes lies before a proxy fence that `who` has heard of.
    fn fenced(&self, offset: usize, bytes: usize, who: Who<'_>) -> Result<(), FaultKind> {
        let Async { actors, fences, .. } = &self.asynchronous;
        for (word, _) in words(offset, bytes) {
            let Some(write) = self.words[word].generic_write() else { continue };
            let known = write.epoch <= who.clock[actors.fenced(write.actor)];
            let lane = |fence: &PartialFence| fence.lanes >> (write.thread & 31) & 1 != 0;
            let covers =
                |fence: &PartialFence| fence.warp != write.actor || fence.meetings != write.meetings || lane(fence);
            if known && fences.iter().all(covers) {
                continue;
            }
            let (block, thread) = culprit(write.thread, who);
            let of = block.map_or(String::new(), |block| format!(" of block {block} of the cluster"));
            let place = format!("shared memory at byte {}", word * 4);
            return Err(FaultKind::Proxy { place, thread: format!("{thread}{of}"), line: write.line });
        }
        Ok(())
    }
}

/// `fence.proxy.async` by `warp`: all that its clock knows is fenced.
pub(crate) fn fence_clock(clock: &mut [u32], warps: u32) {
    let (known, rest) = clock.split_at_mut(warps as usize);
    for (fenced, known) in rest.iter_mut().zip(known) {
        *fenced = (*fenced).max(*known);
    }
}
