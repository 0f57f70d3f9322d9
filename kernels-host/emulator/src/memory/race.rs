//! Data races in shared memory, by happens-before.
//!
//! Each warp has a vector clock; barriers join the clocks of those that meet (FastTrack, Flanagan
//! and Freund 2009, with warps for threads). An access is stamped with its warp's own clock; it
//! happened before another warp's access if that warp has heard of the stamp. Lanes of one warp
//! are ordered by the warp's barriers only, since hardware does not promise lockstep.

use crate::Access;

/// Who accesses: the clock is the warp's own at this moment. Warps are numbered throughout their cluster, block by
/// block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who<'c> {
    pub warp: u32,
    pub lane: u32,
    /// The vector clock of the warp; its own entry is its current epoch.
    pub clock: &'c [u32],
    pub line: u32,
    /// Rank of the warp's block in its cluster.
    pub rank: u32,
    /// Warps of a block.
    pub per_block: u32,
}

impl Who<'_> {
    /// The warp's own time.
    pub fn epoch(&self) -> u32 {
        self.clock[self.warp as usize]
    }
}

/// An access that races with the one being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub access: Access,
    pub thread: u32,
    pub line: u32,
}

/// The accesses to one four-byte word that later ones may race with.
#[derive(Clone, Debug, Default)]
pub(super) struct Word {
    write: Option<Stamp>,
    atomic: bool,
    /// At most one per warp.
    reads: Vec<Stamp>,
}

#[derive(Clone, Copy, Debug)]
struct Stamp {
    warp: u32,
    lane: u32,
    /// Further lanes of the warp made the same access in the same epoch.
    several: bool,
    epoch: u32,
    line: u32,
    /// Which of the word's four bytes.
    bytes: u8,
}

impl Stamp {
    fn unordered(&self, who: Who<'_>, bytes: u8) -> bool {
        if self.bytes & bytes == 0 {
            return false;
        }
        if self.warp == who.warp {
            let current = self.epoch == who.clock[who.warp as usize];
            return current && (self.several || self.lane != who.lane);
        }
        self.epoch > who.clock[self.warp as usize]
    }

    fn conflict(&self, access: Access) -> Conflict {
        Conflict { access, thread: self.warp * 32 + self.lane, line: self.line }
    }
}

impl Word {
    /// Records an access to `bytes` of the word; the earlier one that it races with is the error.
    pub fn access(&mut self, access: Access, who: Who<'_>, bytes: u8) -> Result<(), Conflict> {
        let stamp = Stamp {
            warp: who.warp,
            lane: who.lane,
            several: false,
            epoch: who.clock[who.warp as usize],
            line: who.line,
            bytes,
        };
        if let Some(write) = &self.write
            && write.unordered(who, bytes)
            && !(self.atomic && access == Access::Atomic)
        {
            let other = if self.atomic { Access::Atomic } else { Access::Write };
            return Err(write.conflict(other));
        }
        if access == Access::Read {
            self.read(stamp);
            return Ok(());
        }
        if let Some(read) = self.reads.iter().find(|read| read.unordered(who, bytes)) {
            return Err(read.conflict(Access::Read));
        }
        self.reads.clear();
        let several = self.atomic
            && self
                .write
                .is_some_and(|w| w.warp == who.warp && w.epoch == stamp.epoch && (w.several || w.lane != who.lane));
        self.write = Some(Stamp { several: several && access == Access::Atomic, ..stamp });
        self.atomic = access == Access::Atomic;
        Ok(())
    }

    /// Whether a read by `who` would race, without recording it.
    pub fn check_read(&self, who: Who<'_>) -> Result<(), Conflict> {
        match &self.write {
            Some(write) if write.unordered(who, 0xf) => {
                Err(write.conflict(if self.atomic { Access::Atomic } else { Access::Write }))
            }
            _ => Ok(()),
        }
    }

    /// Another lane of the same warp wrote the word in this epoch at the same line.
    pub fn written_by_instruction(&self, who: Who<'_>) -> bool {
        let epoch = who.clock[who.warp as usize];
        self.write.is_some_and(|write| write.warp == who.warp && write.epoch == epoch && write.line == who.line)
    }

    fn read(&mut self, stamp: Stamp) {
        match self.reads.iter_mut().find(|read| read.warp == stamp.warp) {
            Some(read) if read.epoch == stamp.epoch => {
                read.several |= read.lane != stamp.lane;
                read.bytes |= stamp.bytes;
            }
            Some(read) => *read = stamp,
            None => self.reads.push(stamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(warp: u32, lane: u32, clock: &[u32]) -> Who<'_> {
        Who { warp, lane, clock, line: 1, rank: 0, per_block: 2 }
    }

    #[test]
    fn a_read_must_have_heard_of_the_write() {
        let mut word = Word::default();
        word.access(Access::Write, who(0, 3, &[5, 0]), 15).unwrap();
        let conflict = word.access(Access::Read, who(1, 0, &[4, 7]), 15).unwrap_err();
        assert_eq!(conflict, Conflict { access: Access::Write, thread: 3, line: 1 });
        word.access(Access::Read, who(1, 0, &[5, 7]), 15).unwrap();
        assert!(word.access(Access::Write, who(0, 3, &[6, 6]), 15).is_err());
        word.access(Access::Write, who(0, 3, &[6, 7]), 15).unwrap();
    }

    #[test]
    fn lanes_of_a_warp_need_a_barrier_too() {
        let mut word = Word::default();
        word.access(Access::Write, who(0, 0, &[1]), 15).unwrap();
        assert!(word.access(Access::Read, who(0, 1, &[1]), 15).is_err());
        word.access(Access::Read, who(0, 0, &[1]), 15).unwrap();
        word.access(Access::Read, who(0, 1, &[2]), 15).unwrap();
    }

    #[test]
    fn atomics_do_not_race_with_each_other_nor_neighbours_within_a_word() {
        let mut word = Word::default();
        word.access(Access::Atomic, who(0, 0, &[1, 0]), 15).unwrap();
        word.access(Access::Atomic, who(1, 0, &[0, 1]), 15).unwrap();
        assert!(word.access(Access::Read, who(0, 0, &[1, 0]), 15).is_err());
        let mut word = Word::default();
        word.access(Access::Write, who(0, 0, &[1, 0]), 3).unwrap();
        word.access(Access::Write, who(1, 0, &[0, 1]), 12).unwrap();
    }
}
