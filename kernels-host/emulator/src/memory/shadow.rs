//! Who touched which bytes of global memory in this launch.
//!
//! A page of 4 KiB gets its records when a launch first touches it. Writes are kept for each four-byte word, the
//! last one. Reads, of which there are many more (a model's weights), are kept for each sector of 32 bytes: the
//! latest of two clusters, with the bytes that they read. So whichever cluster writes a byte that others have read,
//! one reader that is foreign to it is still known; of the readers within one cluster only the latest is sure to be.
//! What is lost is lost in silence: a race may be missed under one seed, and never is one made up. A page that is only
//! read costs 1.4 bytes for each of its bytes, one that is written two more.

use super::fences::Fences;
use super::order::{Actor, Orders};
use crate::Access;
use crate::instruction::{Order, Scope};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// Bytes of a sector.
pub(crate) const SECTOR: usize = 32;

/// The epoch of an asynchronous write that nobody has waited for: nothing orders it.
pub(crate) const IN_FLIGHT: u32 = u32::MAX;

/// In place of a lane: several lanes of the warp.
pub(super) const SEVERAL: u8 = u8::MAX;

/// One instruction of a warp in one of its epochs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instant {
    pub cluster: u32,
    pub block: u32,
    pub slot: u32,
    pub epoch: u32,
    pub line: u32,
    pub order: Order,
}

/// The lane that accesses, and the number of its [`Instant`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct By<'c> {
    pub actor: Actor<'c>,
    pub lane: u32,
    pub instant: u32,
    pub order: Order,
    /// The lane knows that the launches before this one are finished.
    pub waited: bool,
}

/// An access that the one being made races with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub access: Access,
    pub instant: u32,
    pub lane: u32,
    /// First byte of the word, in the page.
    pub at: usize,
}

/// The instants of a launch, numbered from 1, and what orders them.
#[derive(Debug, Default)]
pub(crate) struct History {
    instants: Vec<Instant>,
    pub orders: Orders,
    pub fences: Fences,
}

impl History {
    /// Numbers a new instant.
    pub fn add(&mut self, instant: Instant) -> u32 {
        self.instants.push(instant);
        self.instants.len() as u32
    }

    /// Instants so far.
    pub fn len(&self) -> u32 {
        self.instants.len() as u32
    }

    pub fn instant(&self, number: u32) -> &Instant {
        &self.instants[number as usize - 1]
    }

    /// Whether lane `lane` (or several) made the access at `instant` in a way that `by` is not ordered with.
    fn unordered(&self, instant: u32, lane: u8, by: &By<'_>) -> bool {
        let other = self.instant(instant);
        let actor = &by.actor;
        if by.order.constant || other.order.constant {
            // No order helps what must be constant throughout the launch.
            return true;
        }
        let ordered = if other.epoch == IN_FLIGHT {
            instant == by.instant
        } else if other.cluster != actor.cluster {
            self.orders.knows(actor, by.lane, (other.cluster, other.slot, u32::from(lane), other.epoch))
        } else if other.slot == actor.slot {
            other.epoch < actor.since || lane == SEVERAL || u32::from(lane) == by.lane
        } else {
            other.epoch <= actor.clock[other.slot as usize]
        };
        !ordered && !self.morally_strong(other, by)
    }

    fn morally_strong(&self, other: &Instant, by: &By<'_>) -> bool {
        let within = |scope| match scope {
            Scope::Block => other.block == by.actor.block,
            Scope::Cluster => other.cluster == by.actor.cluster,
            Scope::Device => true,
        };
        other.order.strong && by.order.strong && within(other.order.scope) && within(by.order.scope)
    }
}

/// The last write of a word.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    /// Zero if there is none.
    instant: u32,
    lane: u8,
    /// Which of the word's bytes.
    bytes: u8,
}

/// Reads of a sector by one warp in one epoch.
#[derive(Clone, Copy, Debug, Default)]
struct Reads {
    instant: u32,
    /// Which of the sector's bytes.
    bytes: u32,
    /// For each word, one more than the lane; zero if none read it.
    lanes: [u8; 8],
}

impl Reads {
    fn add(&mut self, bytes: u32, lane: u32) {
        self.bytes |= bytes;
        let mut left = bytes;
        while left != 0 {
            let word = left.trailing_zeros() as usize / 4;
            left &= !(0xf << (word * 4));
            let found = &mut self.lanes[word];
            *found = if *found == 0 || *found == lane as u8 + 1 { lane as u8 + 1 } else { SEVERAL };
        }
    }

    fn lane(&self, word: usize) -> u8 {
        if self.lanes[word] == SEVERAL { SEVERAL } else { self.lanes[word].wrapping_sub(1) }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Sector {
    reads: [Reads; 2],
    /// All bytes ever read.
    read: u32,
}

impl Sector {
    fn read(&mut self, bytes: u32, by: &By<'_>, history: &History) {
        self.read |= bytes;
        if let Some(same) = self.reads.iter_mut().find(|reads| reads.instant == by.instant) {
            same.add(bytes, by.lane);
            return;
        }
        let at = self.place(by, history);
        let chosen = &mut self.reads[at];
        if chosen.instant != 0 {
            let old = history.instant(chosen.instant);
            // Only what is of one epoch, and as strong, can be told apart no longer.
            let same = old.cluster == by.actor.cluster && old.slot == by.actor.slot && old.epoch == by.actor.epoch();
            if !same || old.order != by.order {
                *chosen = Reads::default();
            }
        }
        chosen.instant = by.instant;
        chosen.add(bytes, by.lane);
    }

    /// The slot for a new reader: its warp's, an empty one, its cluster's, or the second.
    fn place(&self, by: &By<'_>, history: &History) -> usize {
        let reader = |at: &usize| history.instant(self.reads[*at].instant);
        let empty = |at: &usize| self.reads[*at].instant == 0;
        let sibling = |at: &usize| !empty(at) && reader(at).cluster == by.actor.cluster;
        let own = |at: &usize| sibling(at) && reader(at).slot == by.actor.slot;
        let first = (0..2).find(own).or_else(|| (0..2).find(empty));
        first.or_else(|| (0..2).rev().find(sibling)).unwrap_or(1)
    }
}

/// The records of a page.
#[derive(Debug)]
pub(crate) struct Page {
    sectors: Box<[Sector; PAGE / SECTOR]>,
    /// Only of a page that was written.
    words: Option<Box<Words>>,
}

#[derive(Debug)]
struct Words {
    last: [Written; PAGE / 4],
    /// All bytes ever written, by sector.
    written: [u32; PAGE / SECTOR],
}

impl Page {
    pub fn new() -> Self {
        Self { sectors: Box::new([Sector::default(); PAGE / SECTOR]), words: None }
    }

    /// Records a read of `bytes` bytes at `offset`, within one sector.
    pub fn read(&mut self, offset: usize, bytes: usize, by: &By<'_>, history: &History) -> Result<(), Conflict> {
        if self.words.is_some() {
            self.check_writes(offset, bytes, by, history)?;
        }
        self.sectors[offset / SECTOR].read(byte_mask(offset, bytes), by, history);
        Ok(())
    }

    /// Records a write.
    pub fn write(&mut self, offset: usize, bytes: usize, by: &By<'_>, history: &History) -> Result<(), Conflict> {
        self.check_writes(offset, bytes, by, history)?;
        let sector = &mut self.sectors[offset / SECTOR];
        let mask = byte_mask(offset, bytes);
        if sector.reads.iter().any(|reads| reads.bytes & mask != 0) {
            check_reads(sector, offset, mask, by, history)?;
        }
        if by.order.modifies {
            sector.read |= mask;
        }
        let words = self.words.get_or_insert_with(Words::new);
        words.written[offset / SECTOR] |= mask;
        for (word, bytes) in words_of(offset, bytes) {
            let old = &mut words.last[word];
            let joined = old.instant == by.instant && (old.lane != by.lane as u8 || old.bytes & !bytes != 0);
            *old = match joined {
                true => Written {
                    lane: if old.lane == by.lane as u8 { old.lane } else { SEVERAL },
                    bytes: old.bytes | bytes,
                    ..*old
                },
                false => Written { instant: by.instant, lane: by.lane as u8, bytes },
            };
        }
        Ok(())
    }

    /// The write at `before` becomes one at `by`: its thread has waited for it.
    pub fn settle(&mut self, offset: usize, bytes: usize, before: u32, by: &By<'_>) {
        let Some(words) = &mut self.words else { return };
        for (word, _) in words_of(offset, bytes) {
            let found = &mut words.last[word];
            if found.instant == before {
                found.instant = by.instant;
            }
        }
    }

    /// The first word of those at `offset` that was last written by a thread, with no proxy fence before `by`'s copy
    /// reads it: the word, and the instant and lane of the store.
    pub fn unfenced(&self, offset: usize, bytes: usize, by: &By<'_>, history: &History) -> Option<(usize, u32, u8)> {
        let words = self.words.as_ref()?;
        words_of(offset, bytes).find_map(|(word, _)| {
            let Written { instant, lane, .. } = words.last[word];
            let store = (instant != 0).then(|| history.instant(instant)).filter(|store| !store.order.copies)?;
            let fenced = history.fences.cover(instant, store, (by.actor.cluster, by.actor.slot));
            (!fenced).then_some((word * 4, instant, lane))
        })
    }

    /// Whether another lane of this very instruction wrote the bytes at `offset`.
    pub fn written_by_instruction(&self, offset: usize, by: &By<'_>) -> bool {
        let Some(words) = &self.words else { return false };
        let found = &words.last[offset / 4];
        found.instant == by.instant && found.lane != by.lane as u8
    }

    fn check_writes(&self, offset: usize, bytes: usize, by: &By<'_>, history: &History) -> Result<(), Conflict> {
        let Some(words) = &self.words else { return Ok(()) };
        // One store usually wrote all of them.
        let mut fine = (0, 0);
        for (word, bytes) in words_of(offset, bytes) {
            let found = &words.last[word];
            if found.instant == 0 || found.bytes & bytes == 0 || (found.instant, found.lane) == fine {
                continue;
            }
            if history.unordered(found.instant, found.lane, by) {
                let other = if history.instant(found.instant).order.modifies { Access::Atomic } else { Access::Write };
                return Err(Conflict {
                    access: other,
                    instant: found.instant,
                    lane: u32::from(found.lane),
                    at: word * 4,
                });
            }
            fine = (found.instant, found.lane);
        }
        Ok(())
    }

    /// The bytes that this launch has read and written so far, for each sector that it touched.
    pub fn touched(&self) -> impl Iterator<Item = (usize, u32, u32)> {
        let written = |at: usize| self.words.as_ref().map_or(0, |words| words.written[at]);
        let all = self.sectors.iter().enumerate().map(move |(at, sector)| (at, sector.read, written(at)));
        all.filter(|(_, read, written)| read | written != 0)
    }
}

fn check_reads(sector: &mut Sector, offset: usize, mask: u32, by: &By<'_>, history: &History) -> Result<(), Conflict> {
    for reads in &mut sector.reads {
        let mut left = reads.bytes & mask;
        while left != 0 {
            let word = left.trailing_zeros() as usize / 4;
            left &= !(0xf << (word * 4));
            let lane = reads.lane(word);
            if history.unordered(reads.instant, lane, by) {
                let at = offset / SECTOR * SECTOR + word * 4;
                return Err(Conflict { access: Access::Read, instant: reads.instant, lane: u32::from(lane), at });
            }
        }
        // Whoever comes later and has not heard of these reads has not heard of the write either.
        reads.bytes &= !mask;
    }
    Ok(())
}

impl Words {
    fn new() -> Box<Self> {
        Box::new(Self { last: [Written::default(); PAGE / 4], written: [0; PAGE / SECTOR] })
    }
}

/// The bytes of its sector that an access touches.
fn byte_mask(offset: usize, bytes: usize) -> u32 {
    (u32::MAX >> (SECTOR - bytes)) << (offset % SECTOR)
}

/// The words that an access touches, each with the bytes that it touches of it.
fn words_of(offset: usize, bytes: usize) -> impl Iterator<Item = (usize, u8)> {
    let end = offset + bytes;
    (offset / 4..end.div_ceil(4)).map(move |word| {
        let first = offset.saturating_sub(word * 4);
        let last = (end - word * 4).min(4);
        (word, (0xf_u8 << first) & (0xf_u8 >> (4 - last)))
    })
}
