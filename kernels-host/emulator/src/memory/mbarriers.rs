//! The mbarriers of a block: where they lie, whom they order, and which phases ended.

use std::collections::BTreeMap;
use std::fmt;

use super::proxy::Actors;
use super::race::Who;
use super::shared::{Shared, culprit};
use super::{BARRIER, UNINITIALISED};
use crate::tensor::mbarrier::{BYTES, Mbarrier, MbarrierError, Token};
use crate::{Access, FaultKind};

/// The barriers by their address, those that were invalidated included.
#[derive(Debug)]
pub(crate) struct Mbarriers {
    actors: Actors,
    slots: BTreeMap<u32, Slot>,
    /// Phases that ended, by entry of the clocks.
    epochs: Vec<u32>,
    /// Barriers of which a phase ended since the scheduler last looked.
    pub completed: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    barrier: Mbarrier,
    /// Its number among the barriers of the block.
    number: u32,
    init: Init,
    /// What those who wait learn: the clocks of all who arrived in phases that are over.
    released: Vec<u32>,
    /// Clocks of those who arrived in this phase.
    arriving: Vec<u32>,
    /// Epoch of the phase that ended last, and of the last one that someone waited for.
    ended: u32,
    observed: u32,
    /// The newest copy that was counted: its epoch and its line.
    landed: Option<(u32, u32)>,
}

/// Who initialised the barrier.
#[derive(Clone, Copy, Debug)]
struct Init {
    warp: u32,
    thread: u32,
    epoch: u32,
    line: u32,
    /// `fence.mbarrier_init` came after it.
    fenced: bool,
}

/// `mbarrier.arrive` and its variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    Plain(u32),
    NoComplete(u32),
    Drop(u32),
    /// Announces bytes, then arrives once; drops out if true.
    ExpectTx(u32, bool),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(token) => write!(f, "the phase of token {:#x}", token.bits()),
            Self::Parity(parity) => write!(f, "parity {parity}"),
        }
    }
}

/// Which phase is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Token(Token),
    Parity(u32),
}

impl Mbarriers {
    pub fn new(actors: Actors) -> Self {
        let epochs = vec![0; actors.mbarriers.max(1) as usize];
        Self { actors, slots: BTreeMap::new(), epochs, completed: Vec::new() }
    }

    /// The barrier at `address`, which `who` may use: its initialisation happened before.
    fn slot(&mut self, address: u64, who: Option<Who<'_>>) -> Result<&mut Slot, FaultKind> {
        if !address.is_multiple_of(u64::from(BYTES)) {
            return Err(FaultKind::Misaligned { access: Access::Atomic, bytes: BYTES as usize, address });
        }
        let slot = u32::try_from(address).ok().and_then(|address| self.slots.get_mut(&address));
        let Some(slot) = slot.filter(|slot| slot.barrier.state().is_ok()) else {
            return Err(misuse(address, MbarrierError::Uninitialised));
        };
        let Init { warp, thread, epoch, line, .. } = slot.init;
        if let Some(who) = who
            && warp != who.warp
            && epoch > who.clock[warp as usize]
        {
            let (access, place) = (Access::Atomic, format!("the mbarrier at byte {address} of shared memory"));
            let (_, thread) = culprit(thread, who);
            return Err(FaultKind::Race {
                access,
                place,
                other: Access::Write,
                thread,
                block: None,
                line,
                other_source: Vec::new(),
            });
        }
        Ok(slot)
    }

    /// Changes a barrier and, if that ended a phase, tells those who wait.
    fn change<T>(
        &mut self,
        address: u64,
        who: Option<Who<'_>>,
        change: impl FnOnce(&mut Slot) -> Result<T, MbarrierError>,
    ) -> Result<T, FaultKind> {
        let slot = self.slot(address, who)?;
        let before = slot.barrier.state().map(|state| state.phase);
        let result = change(slot).map_err(|error| misuse(address, error))?;
        let number = slot.number;
        if slot.barrier.state().map(|state| state.phase) == before {
            return Ok(result);
        }
        let counter = number % self.actors.mbarriers.max(1);
        let epoch = self.epochs[counter as usize] + 1;
        self.epochs[counter as usize] = epoch;
        let actor = self.actors.mbarrier(number) as usize;
        let slot = self.slot(address, None)?;
        slot.ended = epoch;
        let arrived = std::mem::take(&mut slot.arriving);
        join(&mut slot.released, &arrived);
        slot.released[actor] = epoch;
        self.completed.push(address as u32);
        Ok(result)
    }

    /// An arrival of a thread whose clock those who wait will learn, unless it is relaxed.
    pub fn arrive(&mut self, address: u64, arrival: Arrival, release: bool, who: Who<'_>) -> Result<Token, FaultKind> {
        self.change(address, Some(who), |slot| {
            if release {
                slot.arriving.resize(who.clock.len(), 0);
                join(&mut slot.arriving, who.clock);
            }
            match arrival {
                Arrival::Plain(count) => slot.barrier.arrive(count),
                Arrival::NoComplete(count) => slot.barrier.arrive_no_complete(count),
                Arrival::Drop(count) => slot.barrier.arrive_drop(count),
                Arrival::ExpectTx(bytes, false) => slot.barrier.arrive_expect_tx(bytes),
                Arrival::ExpectTx(bytes, true) => {
                    slot.barrier.expect_tx(bytes)?;
                    slot.barrier.arrive_drop(1)
                }
            }
        })
    }

    /// `mbarrier.expect_tx`.
    pub fn expect_tx(&mut self, address: u64, bytes: u32, who: Who<'_>) -> Result<(), FaultKind> {
        self.change(address, Some(who), |slot| slot.barrier.expect_tx(bytes))
    }

    /// `mbarrier.complete_tx` by a thread, or `bytes` of a copy at `line` that landed.
    pub fn complete_tx(&mut self, address: u64, bytes: u32, line: Option<u32>) -> Result<(), FaultKind> {
        let epoch = self.landing(address)?.1;
        self.change(address, None, |slot| {
            slot.barrier.complete_tx(bytes)?;
            slot.landed = line.map(|line| (epoch, line)).or(slot.landed);
            Ok(())
        })
    }

    /// One more arrival is pending in this phase: `cp.async.mbarrier.arrive` without `.noinc`.
    pub fn expect_arrival(&mut self, address: u64, who: Who<'_>) -> Result<(), FaultKind> {
        self.change(address, Some(who), |slot| slot.barrier.expect_arrival())
    }

    /// The arrival of a thread's copies, of which the last is at `line`, once they have landed.
    pub fn arrive_landed(&mut self, address: u64, line: u32) -> Result<(), FaultKind> {
        let epoch = self.landing(address)?.1;
        self.change(address, None, |slot| {
            slot.landed = Some((epoch, line));
            slot.barrier.arrive(1).map(|_| ())
        })
    }

    /// The actor and epoch of data that land now and are counted by the barrier's current phase.
    pub fn landing(&mut self, address: u64) -> Result<(u32, u32), FaultKind> {
        let number = self.slot(address, None)?.number;
        let counter = number % self.actors.mbarriers.max(1);
        Ok((self.actors.mbarrier(number), self.epochs[counter as usize] + 1))
    }

    /// The actor of copies that the barrier will count. The async proxy must know of its initialisation.
    pub fn actor(&mut self, address: u64, who: Who<'_>) -> Result<u32, FaultKind> {
        let actors = self.actors;
        let slot = self.slot(address, Some(who))?;
        let Init { warp, thread, epoch, line, fenced } = slot.init;
        if !fenced && epoch > who.clock[actors.fenced(warp)] {
            let place = format!("the mbarrier at byte {address} of shared memory");
            return Err(FaultKind::Proxy { place, thread: culprit(thread, who).1.to_string(), line });
        }
        Ok(actors.mbarrier(slot.number))
    }

    /// Whether the phase is over.
    pub fn test(&mut self, address: u64, phase: Phase, who: Who<'_>) -> Result<bool, FaultKind> {
        let slot = self.slot(address, Some(who))?;
        let over = match phase {
            Phase::Token(token) => slot.barrier.test_wait(token),
            Phase::Parity(parity) => slot.barrier.test_wait_parity(parity),
        };
        let over = over.map_err(|error| misuse(address, error))?;
        if over {
            slot.observed = slot.ended;
        }
        Ok(over)
    }

    /// What a thread learns that found a phase over.
    pub fn acquire(&self, address: u64, clock: &mut [u32]) {
        if let Some(slot) = u32::try_from(address).ok().and_then(|address| self.slots.get(&address)) {
            join(clock, &slot.released);
        }
    }

    /// `fence.mbarrier_init` by `warp`: the async proxy knows of what it has initialised.
    pub fn fence_init(&mut self, warp: u32) {
        for slot in self.slots.values_mut().filter(|slot| slot.init.warp == warp) {
            slot.init.fenced = true;
        }
    }

    /// `warp` arrives at the cluster's barrier for the `arrival`th time without a release: who knows of that knows of the
    /// barriers that it has initialised and fenced.
    pub fn publish_inits(&mut self, warp: u32, arrival: u32) {
        for slot in self.slots.values_mut().filter(|slot| slot.init.warp == warp && slot.init.fenced) {
            slot.init.epoch = slot.init.epoch.min(arrival);
        }
    }

    /// "phase 3, 1 of 2 arrivals and 128 bytes to come" of the barrier at `address`.
    pub fn state(&self, address: u64) -> Option<String> {
        let slot = self.slots.get(&u32::try_from(address).ok()?)?;
        let state = slot.barrier.state().ok()?;
        let (phase, pending, expected, tx) = (state.phase, state.pending, state.expected, state.tx);
        Some(format!("phase {phase}, {pending} of {expected} arrivals and {tx} bytes to come"))
    }

    /// "mbarrier at byte 16: phase 3, 1 of 2 arrivals and 128 bytes to come" for each that is in mid-phase.
    pub fn open(&self) -> impl Iterator<Item = String> {
        let states = self.slots.keys().map(|address| (address, self.state(u64::from(*address))));
        states.filter_map(|(address, state)| Some(format!("mbarrier at byte {address}: {}", state?)))
    }

    /// What must not be left behind by a block that exits: announced bytes that did not come, and copies that
    /// nobody waited for. Arrivals alone may be: a pipeline's last phase is often one that nobody needs.
    pub fn leaked(&self) -> Option<(String, Option<u32>)> {
        self.slots.iter().find_map(|(address, slot)| {
            let state = slot.barrier.state().ok()?;
            if state.tx != 0 {
                let (phase, bytes) = (state.phase, state.tx);
                let what = format!("the mbarrier at byte {address} is in phase {phase} with {bytes} bytes to come");
                return Some((what, None));
            }
            let (epoch, line) = slot.landed?;
            let what =
                format!("nobody waited for the copy of line {line}, which the mbarrier at byte {address} counts");
            (epoch > slot.observed).then_some((what, Some(line)))
        })
    }
}

impl Shared {
    /// `mbarrier.init`.
    pub fn init_mbarrier(&mut self, address: u64, count: u32, who: Who<'_>) -> Result<(), FaultKind> {
        let bytes = BYTES as usize;
        if !address.is_multiple_of(u64::from(BYTES)) {
            return Err(FaultKind::Misaligned { access: Access::Write, bytes, address });
        }
        let offset = self.bounds(Access::Write, address, bytes)?;
        let all = &mut self.mbarriers;
        if all.slots.get(&(address as u32)).is_some_and(|slot| slot.barrier.state().is_ok()) {
            return Err(misuse(address, MbarrierError::Initialised));
        }
        let mut barrier = Mbarrier::default();
        barrier.init(count).map_err(|error| misuse(address, error))?;
        let next = all.slots.len() as u32;
        let old = all.slots.remove(&(address as u32));
        let number = old.map_or(next, |slot| slot.number);
        let epoch = who.clock[who.warp as usize];
        let thread = who.warp * 32 + who.lane;
        let slot = Slot {
            barrier,
            number,
            init: Init { warp: who.warp, thread, epoch, line: who.line, fenced: false },
            released: vec![0; all.actors.entries()],
            arriving: Vec::new(),
            ended: 0,
            observed: 0,
            landed: None,
        };
        all.slots.insert(address as u32, slot);
        self.landed(Access::Write, offset, bytes)?;
        self.unheld(Access::Write, offset, bytes)?;
        self.record(Access::Write, offset, bytes, who)?;
        self.state[offset..offset + bytes].fill(BARRIER);
        Ok(())
    }

    /// `mbarrier.inval`.
    pub fn invalidate_mbarrier(&mut self, address: u64, who: Who<'_>) -> Result<(), FaultKind> {
        let slot = self.mbarriers.slot(address, Some(who))?;
        slot.barrier.invalidate().map_err(|error| misuse(address, error))?;
        let (offset, bytes) = (address as usize, BYTES as usize);
        self.state[offset..offset + bytes].fill(UNINITIALISED);
        self.record(Access::Write, offset, bytes, who)
    }
}

fn misuse(address: u64, error: MbarrierError) -> FaultKind {
    FaultKind::Mbarrier { what: format!("at byte {address} of shared memory: {error}") }
}

/// Lets `own` know what `learnt` knows.
pub(crate) fn join(own: &mut [u32], learnt: &[u32]) {
    for (own, learnt) in own.iter_mut().zip(learnt) {
        *own = (*own).max(*learnt);
    }
}
