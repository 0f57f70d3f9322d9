//! The shared memory of a block.

use super::operands::OperandReads;
use super::race::{Conflict, Who, Word};
use super::{IN_FLIGHT, UNINITIALISED, WRITTEN};
use crate::{Access, FaultKind};

/// Bytes, their states, and the history of each word.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) bytes: Vec<u8>,
    pub(super) state: Vec<u8>,
    pub(super) words: Vec<Word>,
    pub(super) operands: OperandReads,
}

impl Shared {
    pub fn new(bytes: usize) -> Self {
        Self {
            bytes: vec![0; bytes],
            state: vec![UNINITIALISED; bytes],
            words: vec![Word::default(); bytes.div_ceil(4)],
            operands: OperandReads::default(),
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
            Some(first) => {
                let place = format!("byte {} of shared memory", offset + first);
                Err(FaultKind::Uninitialised { place })
            }
        }
    }

    fn landed(&self, access: Access, offset: usize, bytes: usize) -> Result<(), FaultKind> {
        let state = &self.state[offset..offset + bytes];
        match state.iter().position(|state| *state == IN_FLIGHT) {
            None => Ok(()),
            Some(first) => {
                let place = format!("byte {} of shared memory", offset + first);
                Err(FaultKind::InFlight { access, place })
            }
        }
    }

    fn written_now(&self, offset: usize, who: Who<'_>) -> bool {
        self.words[offset / 4].written_by_instruction(who)
    }

    fn record(&mut self, access: Access, offset: usize, bytes: usize, who: Who<'_>) -> Result<(), FaultKind> {
        if access != Access::Read {
            self.operands.check_write(access, offset, bytes, who)?;
        }
        let end = offset + bytes;
        for word in offset / 4..end.div_ceil(4) {
            let first = offset.saturating_sub(word * 4).min(4);
            let last = (end - word * 4).min(4);
            let mask = (0xf_u8 << first) & (0xf_u8 >> (4 - last));
            if let Err(conflict) = self.words[word].access(access, who, mask) {
                return Err(self.raced(access, word, who, conflict));
            }
        }
        Ok(())
    }

    /// The fault of an access to `word` that conflicts with an earlier one.
    pub(super) fn raced(&self, access: Access, word: usize, who: Who<'_>, conflict: Conflict) -> FaultKind {
        let Conflict { access: other, thread, line } = conflict;
        let per_block = who.per_block * 32;
        let from = match thread / per_block {
            other if other == who.rank => String::new(),
            other => format!(", the other by block {other} of the cluster"),
        };
        let place = format!("shared memory at byte {}{from}", word * 4);
        FaultKind::Race { access, place, other, thread: thread % per_block, line }
    }
}
