//! What `wgmma` reads of shared memory, between its issue and its wait.
//!
//! An operand is read at some time in between, so it must be written before the issue, and stay until the wait; nobody
//! may overwrite it who has not heard of that wait. Operands are made of 16-byte chunks: of each chunk it is known how
//! many instructions in flight read it, and when each warp of the block last waited for one.

use super::Who;
use super::shared::Shared;
use crate::{Access, FaultKind};

/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 16;

/// Reads of a block's shared memory as operands; nothing is kept for blocks without `wgmma`.
#[derive(Debug, Default)]
pub(super) struct OperandReads {
    /// Instructions in flight, per chunk.
    in_flight: Vec<u16>,
    /// Line of the last instruction that read the chunk.
    lines: Vec<u32>,
    /// When each warp of the block last waited for a read, chunk by chunk: its epoch then.
    waits: Vec<u32>,
    /// Warps of the block, and the first one's number in the cluster.
    warps: usize,
    first: u32,
}

impl OperandReads {
    fn begin(&mut self, chunk: usize, chunks: usize, who: Who<'_>) {
        if self.in_flight.is_empty() {
            self.warps = who.per_block as usize;
            self.first = who.rank * who.per_block;
            self.in_flight = vec![0; chunks];
            self.lines = vec![0; chunks];
            self.waits = vec![0; chunks * self.warps];
        }
        self.in_flight[chunk] += 1;
        self.lines[chunk] = who.line;
    }

    fn finish(&mut self, chunk: usize, who: Who<'_>) {
        self.in_flight[chunk] -= 1;
        self.waits[chunk * self.warps + (who.warp - self.first) as usize] = who.epoch();
    }

    /// Whether `who` may write the bytes.
    #[inline]
    pub fn check_write(&self, access: Access, offset: usize, bytes: usize, who: Who<'_>) -> Result<(), FaultKind> {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        for chunk in offset / CHUNK..(offset + bytes).div_ceil(CHUNK) {
            let (line, byte) = (self.lines[chunk], offset.max(chunk * CHUNK));
            if self.in_flight[chunk] > 0 {
                let place = format!("byte {byte} of shared memory");
                return Err(FaultKind::Operand { access, place, line });
            }
            let waits = self.waits[chunk * self.warps..][..self.warps].iter().zip(self.first..);
            for (epoch, warp) in waits {
                if warp != who.warp && *epoch > who.clock[warp as usize] {
                    let place = format!("shared memory at byte {byte}");
                    let (other, thread) = (Access::Read, (warp - self.first) * 32);
                    let other_source = Vec::new();
                    return Err(FaultKind::Race { access, place, other, thread, block: None, line, other_source });
                }
            }
        }
        Ok(())
    }
}

/// What chunks hold that lie beyond a tile and cannot be read: numbers that show in a result, in every type.
const BEYOND: [u8; CHUNK] = [0x55; CHUNK];

impl Shared {
    /// The mbarrier, as an actor, that counted the copy which filled the tile that starts at `address`, if a copy did
    /// and `who` has waited for it.
    ///
    /// A matrix instruction has as many rows as it has: of a tile of fewer, it also reads what lies behind, which is
    /// another stage of a ring or nothing yet. That is no fault as long as nobody uses those rows of the product. So
    /// what another barrier counts is not an operand, for [`Self::is_beyond`].
    pub fn tile(&mut self, address: u64, who: Who<'_>) -> Option<u32> {
        self.read_async(address, CHUNK, who).ok()?;
        self.words[address as usize / 4].copied_by()
    }

    /// Whether the chunk at `address` lies beyond the tile whose copy `tile` counted; if so, what to read there.
    pub fn is_beyond(&mut self, address: u64, tile: Option<u32>, who: Who<'_>) -> Option<[u8; CHUNK]> {
        let tile = tile?;
        let word = self.words.get(address as usize / 4)?.copied_by();
        if word == Some(tile) {
            return None;
        }
        match self.read_async(address, CHUNK, who) {
            Ok(_) if word.is_none() => None,
            Ok(found) => found.try_into().ok(),
            Err(_) => Some(BEYOND),
        }
    }

    /// The chunk at `address`, as an operand of an instruction that `who` issues and will wait for with
    /// [`Self::finish_operand`].
    pub fn begin_operand(&mut self, address: u64, who: Who<'_>) -> Result<[u8; CHUNK], FaultKind> {
        let mut chunk = [0; CHUNK];
        chunk.copy_from_slice(self.read_async(address, CHUNK, who)?);
        let chunks = self.bytes.len().div_ceil(CHUNK);
        self.operands.begin(address as usize / CHUNK, chunks, who);
        Ok(chunk)
    }

    /// The instruction was waited for: the read is `who`'s, now.
    pub fn finish_operand(&mut self, address: u64, who: Who<'_>) {
        self.operands.finish(address as usize / CHUNK, who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Actors;

    fn who(warp: u32, clock: &[u32], line: u32) -> Who<'_> {
        Who { warp, lane: 0, clock, meetings: 0, line, rank: 0, per_block: 2 }
    }

    #[test]
    fn operands_are_written_before_their_issue_and_stay_until_their_wait() {
        // Of two warps, the epochs that both know, and those that are fenced.
        let mut shared = Shared::new(64, Actors { warps: 2, blocks: 1, rank: 0, mbarriers: 0 });
        let nothing = shared.begin_operand(16, who(0, &[1, 0, 0, 0], 5));
        assert!(matches!(nothing, Err(FaultKind::Uninitialised { .. })));
        shared.write(16, &[7; 16], who(1, &[0, 3, 0, 0], 4)).unwrap();
        let early = shared.begin_operand(16, who(0, &[1, 2, 0, 2], 5)).unwrap_err();
        assert!(matches!(early, FaultKind::Race { other: Access::Write, thread: 32, line: 4, .. }), "{early}");
        let unfenced = shared.begin_operand(16, who(0, &[1, 3, 0, 2], 5)).unwrap_err();
        assert!(matches!(unfenced, FaultKind::Proxy { line: 4, .. }), "{unfenced}");
        assert_eq!(shared.begin_operand(16, who(0, &[1, 3, 0, 3], 5)).unwrap(), [7; 16]);
        shared.write(32, &[0; 4], who(1, &[0, 4, 0, 0], 6)).unwrap();
        let late = shared.write(28, &[0; 8], who(0, &[1, 4, 0, 0], 7)).unwrap_err();
        assert!(matches!(late, FaultKind::Operand { line: 5, .. }), "{late}");
        shared.finish_operand(16, who(0, &[2, 3, 0, 3], 8));
        let unheard = shared.write(28, &[0; 4], who(1, &[1, 4, 0, 0], 9)).unwrap_err();
        assert!(matches!(unheard, FaultKind::Race { other: Access::Read, thread: 0, line: 5, .. }), "{unheard}");
        shared.write(28, &[0; 4], who(1, &[2, 4, 0, 0], 9)).unwrap();
    }
}
