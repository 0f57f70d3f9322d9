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
    /// The vector clock of the warp; its own entry is its current epoch. Entries for the fenced
    /// epochs and for asynchronous copies follow those of the warps: see [`super::Actors`].
    pub clock: &'c [u32],
    /// How often the warp's lanes have met: accesses of two lanes are ordered if it differs.
    pub meetings: u32,
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
    /// It is the write of an asynchronous copy.
    pub copy: bool,
    pub thread: u32,
    pub line: u32,
}

/// The accesses to one four-byte word that later ones may race with.
#[derive(Clone, Debug, Default)]
pub(super) struct Word {
    write: Option<Stamp>,
    by: Writer,
    /// At most one per warp.
    reads: Vec<Stamp>,
}

/// What kind of write the last one was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writer {
    #[default]
    Store,
    Atomic,
    /// A copy through the async proxy.
    Copy,
}

/// A copy that is in flight has no epoch yet: nobody has heard of it.
const IN_FLIGHT: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    /// Index in vector clocks: of the warp, or for a copy of what its completion is counted on.
    pub actor: u32,
    /// The warp's index times 32 plus the lane; of a copy, who issued it.
    pub thread: u32,
    pub epoch: u32,
    pub meetings: u32,
    pub line: u32,
    /// Which of the word's four bytes.
    bytes: u8,
    /// Further lanes of the warp made the same access since the lanes last met.
    pub several: bool,
}

impl Stamp {
    fn new(who: Who<'_>, bytes: u8) -> Self {
        Self {
            actor: who.warp,
            thread: who.warp * 32 + who.lane,
            epoch: who.clock[who.warp as usize],
            meetings: who.meetings,
            line: who.line,
            bytes,
            several: false,
        }
    }

    fn unordered(&self, who: Who<'_>, bytes: u8) -> bool {
        if self.bytes & bytes == 0 {
            return false;
        }
        if self.actor == who.warp {
            return self.meetings == who.meetings && (self.several || self.thread != who.warp * 32 + who.lane);
        }
        self.epoch > who.clock[self.actor as usize]
    }
}

impl Word {
    /// Records an access to `bytes` of the word; the earlier one that it races with is the error.
    pub fn access(&mut self, access: Access, who: Who<'_>, bytes: u8) -> Result<(), Conflict> {
        self.check(access, who, bytes)?;
        let stamp = Stamp::new(who, bytes);
        if access == Access::Read {
            self.read(stamp);
            return Ok(());
        }
        self.reads.clear();
        let atomic = access == Access::Atomic;
        let several = atomic
            && self.by == Writer::Atomic
            && self.write.is_some_and(|w| {
                w.actor == who.warp && w.meetings == who.meetings && (w.several || w.thread != stamp.thread)
            });
        self.write = Some(Stamp { several, ..stamp });
        self.by = if atomic { Writer::Atomic } else { Writer::Store };
        Ok(())
    }

    /// Whether an access would race, without recording it.
    pub fn check(&self, access: Access, who: Who<'_>, bytes: u8) -> Result<(), Conflict> {
        if let Some(write) = &self.write
            && write.unordered(who, bytes)
            && !(self.by == Writer::Atomic && access == Access::Atomic)
        {
            let access = if self.by == Writer::Atomic { Access::Atomic } else { Access::Write };
            let Stamp { thread, line, .. } = *write;
            return Err(Conflict { access, copy: self.by == Writer::Copy, thread, line });
        }
        if access == Access::Read {
            return Ok(());
        }
        match self.reads.iter().find(|read| read.unordered(who, bytes)) {
            None => Ok(()),
            Some(&Stamp { thread, line, .. }) => Err(Conflict { access: Access::Read, copy: false, thread, line }),
        }
    }

    /// A copy that `who` issues will write `bytes` of the word; `actor` is what its completion is
    /// counted on.
    pub fn begin_copy(&mut self, who: Who<'_>, bytes: u8, actor: u32) -> Result<(), Conflict> {
        self.check(Access::Write, who, bytes)?;
        self.reads.clear();
        // Pieces of one box may share a word at the tensor's edge.
        let other = self.write.filter(|write| write.epoch == IN_FLIGHT).map_or(0, |write| write.bytes);
        self.write = Some(Stamp { actor, epoch: IN_FLIGHT, ..Stamp::new(who, bytes | other) });
        self.by = Writer::Copy;
        Ok(())
    }

    /// The copy has landed; who hears of `actor`'s `epoch` is ordered after it.
    pub fn land_copy(&mut self, actor: u32, epoch: u32) {
        if let Some(write) = &mut self.write
            && self.by == Writer::Copy
            && write.epoch == IN_FLIGHT
        {
            (write.actor, write.epoch) = (actor, epoch);
        }
    }

    /// An asynchronous operation, of `line`, has read `bytes`; who hears of `actor`'s `epoch` is ordered after that.
    pub fn read_by(&mut self, actor: u32, epoch: u32, bytes: u8, line: u32) {
        self.read(Stamp { actor, thread: 0, epoch, meetings: 0, line, bytes, several: false });
    }

    /// The write of a `cp.async` becomes a copy's that something else counts.
    pub fn adopt(&mut self) {
        if let Some(write) = &mut self.write {
            write.epoch = IN_FLIGHT;
            self.by = Writer::Copy;
        }
    }

    /// The last write, if it was made through the generic proxy.
    pub fn generic_write(&self) -> Option<&Stamp> {
        self.write.as_ref().filter(|_| self.by != Writer::Copy)
    }

    /// What counts the copy that was the last write.
    pub fn copied_by(&self) -> Option<u32> {
        self.write.as_ref().filter(|_| self.by == Writer::Copy).map(|write| write.actor)
    }

    /// Line of the last write.
    pub fn written_at(&self) -> u32 {
        self.write.map_or(0, |write| write.line)
    }

    /// Another lane of the same warp wrote the word in this epoch at the same line.
    pub fn written_by_instruction(&self, who: Who<'_>) -> bool {
        let epoch = who.clock[who.warp as usize];
        self.write.is_some_and(|write| write.actor == who.warp && write.epoch == epoch && write.line == who.line)
    }

    fn read(&mut self, stamp: Stamp) {
        match self.reads.iter_mut().find(|read| read.actor == stamp.actor) {
            Some(read) if read.meetings == stamp.meetings => {
                read.several |= read.thread != stamp.thread;
                read.bytes |= stamp.bytes;
                read.epoch = stamp.epoch;
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
        Who { warp, lane, clock, meetings: clock[warp as usize], line: 1, rank: 0, per_block: 2 }
    }

    #[test]
    fn a_read_must_have_heard_of_the_write() {
        let mut word = Word::default();
        word.access(Access::Write, who(0, 3, &[5, 0]), 15).unwrap();
        let conflict = word.access(Access::Read, who(1, 0, &[4, 7]), 15).unwrap_err();
        assert_eq!(conflict, Conflict { access: Access::Write, copy: false, thread: 3, line: 1 });
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

    #[test]
    fn a_copy_is_ordered_by_its_completion_alone() {
        let mut word = Word::default();
        word.access(Access::Read, who(1, 0, &[0, 4, 0]), 15).unwrap();
        assert!(word.begin_copy(who(0, 0, &[1, 3, 0]), 15, 2).is_err(), "the reader has not said that it is done");
        word.begin_copy(who(0, 0, &[1, 4, 0]), 15, 2).unwrap();
        word.land_copy(2, 1);
        let early = word.access(Access::Read, who(0, 0, &[2, 4, 0]), 15).unwrap_err();
        assert!(early.copy, "the issuer itself has not waited");
        word.access(Access::Read, who(1, 0, &[0, 5, 1]), 15).unwrap();
    }
}
