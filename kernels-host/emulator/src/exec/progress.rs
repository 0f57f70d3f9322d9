//! Livelock: warps that run and get nowhere.
//!
//! A warp that polls (`mbarrier.test_wait`, a flag in memory) is not one that waits, so that a launch whose warps all
//! wait or poll for each other would never end. While nothing changes that another thread could see, what a warp does
//! follows from its registers and position alone: once it is in a state that it has been in before, it goes round
//! for ever. When that is so of every warp that runs, the launch is as stuck as if they all waited.
//!
//! Loops that count, or look at the clock, come into no state twice; those end by [`MOST_QUIET`].

use std::hash::{DefaultHasher, Hash, Hasher};

use super::cluster::Cluster;
use super::lanes;
use super::step::Executor;
use super::warp::{State, Warp};
use crate::asynchronous::Async;
use crate::instruction::{Address, Op, Space};
use crate::source::Chain;

/// Instructions without a change after which states are compared, which takes as long as 50 instructions of the turn. Of
/// 1,948 launches of the shipped kernels' cases for sm_80 five are quiet for longer.
const PATIENCE: u64 = 1 << 16;
/// Instructions without a change that end a launch whatever its warps do: about ten seconds. The longest quiet of those
/// launches is 0.32 million, of a block that reads a row of 256 thousand logits several times. Where all of an H200's
/// blocks but one poll, that one gets one instruction of each thousand: it may take 250 thousand to its next store.
const MOST_QUIET: u64 = 1 << 28;
/// Turns between two looks at all warps.
const LOOK: u32 = 64;
/// Instructions of a loop that its description may take to come round.
const LONGEST_LOOP: usize = 4096;
/// Polls of a warp that its description names.
const MOST_POLLS: usize = 3;

/// When something last changed.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Changes so far that other threads could see: stores, arrivals, copies issued or landed, exits.
    pub changes: u64,
    /// Changes at the last look, and instructions before it.
    seen: u64,
    since: u64,
    turns: u32,
}

/// A state that a warp was in, by Brent: a new one is kept after twice as many turns each time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spin {
    /// Changes when it was in that state, if any was kept.
    changes: Option<u64>,
    pc: u32,
    state: u64,
    turns: u32,
    keep: u32,
    /// It has been there twice.
    round: bool,
}

impl Executor<'_> {
    /// After a turn of `warp`: whether it is time to ask if all warps go round.
    pub fn quiet(&mut self, warp: &mut Warp) -> bool {
        let executed = self.env.executed;
        let Progress { changes, seen, since, turns } = &mut self.progress;
        if *changes != *seen {
            (*seen, *since, *turns) = (*changes, executed, 0);
            return false;
        }
        if executed - *since < PATIENCE {
            return false;
        }
        let changes = *changes;
        *turns += 1;
        let look = turns.is_multiple_of(LOOK);
        warp.note(changes);
        look
    }

    /// Nothing has changed for so long that the launch ends.
    pub fn too_quiet(&self) -> bool {
        let Progress { changes, seen, since, .. } = self.progress;
        changes == seen && self.env.executed - since > MOST_QUIET
    }

    /// Whether the warp goes round since the last change; those that do not run do nothing.
    pub fn goes_round(&self, warp: &Warp) -> bool {
        warp.state != State::Ready
            || warp.spin.round
                && warp.spin.changes == Some(self.progress.changes)
                && warp.copies.pending.iter().all(|copy| copy.landed)
    }

    /// What a warp polls that goes round, and where: found by going round once more.
    pub fn polls(&mut self, warp: &mut Warp, cluster: &mut Cluster) -> (String, Option<u32>) {
        let (before, mut found) = (warp.digest(), Vec::new());
        for _ in 0..LONGEST_LOOP {
            if (warp.active == 0 || warp.pc >= warp.next_stop) && !warp.regroup() {
                break;
            }
            if let Some(poll) = self.poll(warp, cluster).filter(|poll| !found.contains(poll)) {
                found.push(poll);
            }
            if self.run(warp, cluster, 1).is_err() || warp.digest() == before {
                break;
            }
        }
        let first = found.first().map(|(pc, _)| *pc);
        let what: Vec<_> = found.into_iter().take(MOST_POLLS).map(|(_, what)| what).collect();
        let what = if what.is_empty() { self.waits(warp) } else { what.join(", ") };
        (format!("warp {} runs in circles: {what}", warp.index), first)
    }

    /// What the warp's next instruction looks at, if anything.
    fn poll(&self, warp: &Warp, cluster: &mut Cluster) -> Option<(u32, String)> {
        let instruction = self.entry.instructions.get(warp.pc as usize)?;
        let mask = warp.active & instruction.guard.map_or(u32::MAX, |guard| warp.guard(guard));
        let lane = lanes(mask).next()?;
        let what = match &instruction.op {
            Op::Load { address, .. } | Op::Atomic { address, .. } if address.space != Space::Param => {
                self.place(warp, *address, lane)
            }
            Op::Async(op) => match &**op {
                Async::Wait(wait) => {
                    let at = self.addresses(warp, wait.barrier)[lane] % super::cluster::OWN_BYTES;
                    let phase = warp.get64(wait.phase, &self.env)[lane];
                    let phase = if wait.parity { format!("parity {phase}") } else { format!("token {phase:#x}") };
                    let state = cluster.own(warp).shared.mbarriers.state(at);
                    format!(
                        "{phase} of the mbarrier at byte {at}{}",
                        state.map_or(String::new(), |s| format!(" ({s})"))
                    )
                }
                _ => return None,
            },
            _ => return None,
        };
        let source = self.source(Some(instruction));
        let source = if source.is_empty() { String::new() } else { format!(", at {}", Chain(&source)) };
        let (line, opcode) = (instruction.line, self.opcode(warp.pc));
        Some((warp.pc, format!("lanes {mask:#010x} at line {line} ({opcode}) look at {what}{source}")))
    }

    /// The memory that lane `lane` accesses.
    fn place(&self, warp: &Warp, address: Address, lane: usize) -> String {
        let (space, at) = super::access::resolve(address.space, self.addresses(warp, address)[lane]);
        match space {
            Space::Shared | Space::Cluster => format!("byte {} of shared memory", at % super::cluster::OWN_BYTES),
            _ => self.memory.place(at),
        }
    }
}

impl Warp {
    /// Compares the state with the one that was kept, or keeps it.
    fn note(&mut self, changes: u64) {
        let spin = &mut self.spin;
        if spin.changes != Some(changes) {
            *spin = Spin { changes: Some(changes), keep: 1, turns: 1, ..Spin::default() };
        }
        let spin = self.spin;
        if spin.round || self.state != State::Ready {
            return;
        }
        let keep = spin.turns == spin.keep;
        if !keep && spin.pc != self.pc {
            self.spin.turns += 1;
            return;
        }
        let state = self.digest();
        let spin = &mut self.spin;
        spin.round = spin.state == state;
        spin.turns += 1;
        if keep {
            (spin.pc, spin.state, spin.turns, spin.keep) = (self.pc, state, 0, 2 * spin.keep);
        }
    }

    /// A digest of all that decides what the warp does next, if nobody else does anything.
    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut groups: Vec<_> = self.groups.clone();
        if self.active != 0 {
            groups.push(super::warp::Group::running(self.pc, self.active));
        }
        groups.sort_by_key(|group| (group.pc, group.mask));
        for group in &groups {
            (group.pc, group.mask, group.waits_for, group.watch.is_some(), group.at_cluster).hash(&mut hasher);
        }
        (self.live, self.expired, self.behind).hash(&mut hasher);
        self.registers.pred.hash(&mut hasher);
        self.registers.narrow.hash(&mut hasher);
        self.registers.wide.hash(&mut hasher);
        hasher.finish()
    }
}
