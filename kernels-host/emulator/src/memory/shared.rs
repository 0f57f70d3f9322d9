//! The shared memory of a block.

use super::mbarriers::Mbarriers;
use super::operands::OperandReads;
use super::proxy::{Actors, Async};
use super::race::{Conflict, Who, Word};
use super::{BARRIER, IN_FLIGHT, UNINITIALISED, WRITTEN};
use crate::{Access, FaultKind};

/// Bytes, their states, and the history of each word.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) bytes: Vec<u8>,
    pub(super) state: Vec<u8>,
    pub(super) words: Vec<Word>,
    pub(super) operands: OperandReads,
    pub(super) asynchronous: Async,
    pub mbarriers: Mbarriers,
}

impl Shared {
    pub fn new(bytes: usize, actors: Actors) -> Self {
        Self {
            bytes: vec![0; bytes],
            state: vec![UNINITIALISED; bytes],
            words: vec![Word::default(); bytes.div_ceil(4)],
            operands: OperandReads::default(),
            asynchronous: Async::new(actors),
            mbarriers: Mbarriers::new(actors),
        }
    }

    pub(super) fn bounds(&self, access: Access, address: u64, bytes: usize) -> Result<usize, FaultKind> {
        let offset = address as usize;
        if offset.saturating_add(bytes) <= self.bytes.len() {
            return Ok(offset);
        }
        let place = format!("the block has {} bytes of shared memory", self.bytes.len());
        Err(FaultKind::OutOfBounds { access, bytes, address, place })
    }

    /// The bytes at `address`, all written, and not by a thread that races with `who`.
    pub fn read(&mut self, address: u64, bytes: usize, who: Who<'_>) -> Result<&[u8], FaultKind> {
        let offset = self.bounds(Access::Read, address, bytes)?;
        self.settled(Access::Read, offset, bytes)?;
        self.record(Access::Read, offset, bytes, who)?;
        Ok(&self.bytes[offset..offset + bytes])
    }

    /// Writes `data` at `address`.
    pub fn write(&mut self, address: u64, data: &[u8], who: Who<'_>) -> Result<(), FaultKind> {
        let offset = self.bounds(Access::Write, address, data.len())?;
        self.landed(Access::Write, offset, data.len())?;
        self.unheld(Access::Write, offset, data.len())?;
        // Lanes that store the same value to the same word at once agree on the outcome.
        if self.bytes[offset..offset + data.len()] == *data
            && self.state[offset..offset + data.len()].iter().all(|state| *state == WRITTEN)
            && self.written_now(offset, who)
        {
            return Ok(());
        }
        self.record(Access::Write, offset, data.len(), who)?;
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self.state[offset..offset + data.len()].fill(WRITTEN);
        Ok(())
    }

    /// Reads for a read-modify-write operation, whose result [`Self::store`] takes.
    pub fn modify(&mut self, address: u64, bytes: usize, who: Who<'_>) -> Result<&[u8], FaultKind> {
        let offset = self.bounds(Access::Atomic, address, bytes)?;
        self.settled(Access::Atomic, offset, bytes)?;
        self.unheld(Access::Atomic, offset, bytes)?;
        self.record(Access::Atomic, offset, bytes, who)?;
        Ok(&self.bytes[offset..offset + bytes])
    }

    /// The write half of [`Self::modify`].
    pub fn store(&mut self, address: u64, data: &[u8]) {
        let offset = address as usize;
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Marks the destination of an asynchronous copy, which must be free of other accesses.
    pub fn launch_copy(&mut self, address: u64, bytes: usize, who: Who<'_>) -> Result<(), FaultKind> {
        let offset = self.bounds(Access::Write, address, bytes)?;
        self.landed(Access::Write, offset, bytes)?;
        self.unheld(Access::Write, offset, bytes)?;
        self.record(Access::Write, offset, bytes, who)?;
        self.state[offset..offset + bytes].fill(IN_FLIGHT);
        Ok(())
    }

    /// The issuing thread has waited: the bytes are its writes from now on.
    pub fn land_copy(&mut self, address: u64, bytes: usize, who: Who<'_>) -> Result<(), FaultKind> {
        let offset = self.bounds(Access::Write, address, bytes)?;
        self.state[offset..offset + bytes].fill(WRITTEN);
        self.record(Access::Write, offset, bytes, who)
    }

    pub(super) fn settled(&self, access: Access, offset: usize, bytes: usize) -> Result<(), FaultKind> {
        self.landed(access, offset, bytes)?;
        let state = &self.state[offset..offset + bytes];
        match state.iter().position(|state| *state == UNINITIALISED) {
            None => Ok(()),
            Some(first) => Err(FaultKind::Uninitialised { place: place(offset + first) }),
        }
    }

    /// No byte belongs to a copy in flight or to an mbarrier.
    pub(super) fn landed(&self, access: Access, offset: usize, bytes: usize) -> Result<(), FaultKind> {
        let state = &self.state[offset..offset + bytes];
        let Some(first) = state.iter().position(|state| *state >= IN_FLIGHT) else { return Ok(()) };
        let byte = offset + first;
        if self.state[byte] == BARRIER {
            let what = format!("{access} of byte {byte} of shared memory, which is part of one: mbarrier.inval first");
            return Err(FaultKind::Mbarrier { what });
        }
        Err(FaultKind::InFlight { access, place: place(byte), line: self.words[byte / 4].written_at() })
    }

    fn written_now(&self, offset: usize, who: Who<'_>) -> bool {
        self.words[offset / 4].written_by_instruction(who)
    }

    pub(super) fn record(
        &mut self,
        access: Access,
        offset: usize,
        bytes: usize,
        who: Who<'_>,
    ) -> Result<(), FaultKind> {
        if access != Access::Read {
            self.operands.check_write(access, offset, bytes, who)?;
        }
        for (word, mask) in words(offset, bytes) {
            self.words[word].access(access, who, mask).map_err(|conflict| raced(access, word, conflict, who))?;
        }
        Ok(())
    }
}

/// How faults call a byte.
pub(super) fn place(byte: usize) -> String {
    format!("byte {byte} of shared memory")
}

/// The words that `bytes` bytes at `offset` touch, and which bytes of each.
pub(super) fn words(offset: usize, bytes: usize) -> impl Iterator<Item = (usize, u8)> {
    let end = offset + bytes;
    (offset / 4..end.div_ceil(4)).map(move |word| {
        let first = offset.saturating_sub(word * 4).min(4);
        let last = (end - word * 4).min(4);
        (word, (0xf_u8 << first) & (0xf_u8 >> (4 - last)))
    })
}

/// The fault of an access by `who` to `word` that conflicts with an earlier one.
pub(super) fn raced(access: Access, word: usize, conflict: Conflict, who: Who<'_>) -> FaultKind {
    let Conflict { access: other, copy, thread, line } = conflict;
    if copy {
        return FaultKind::InFlight { access, place: place(word * 4), line };
    }
    let (block, thread) = culprit(thread, who);
    let from = block.map_or(String::new(), |block| format!(", the other by block {block} of the cluster"));
    let place = format!("shared memory at byte {}{from}", word * 4);
    FaultKind::Race { access, place, other, thread, block: None, line, other_source: Vec::new() }
}

/// The index in its block of thread `thread` of the cluster, and the block if it is another than `who`'s.
pub(super) fn culprit(thread: u32, who: Who<'_>) -> (Option<u32>, u32) {
    let per_block = who.per_block * 32;
    let block = thread / per_block;
    ((block != who.rank).then_some(block), thread % per_block)
}
