//! What orders accesses of different blocks: strong accesses, fences, and waits for earlier launches.

use super::cluster::OWN_BYTES;
use super::step::Executor;
use super::warp::Warp;
use crate::instruction::{Op, Order, Space};
use crate::memory::order::{Actor, Location, Pattern};
use crate::memory::shadow::{By, Instant};

/// The instants that a warp used last, by position: loops come back to them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Recent {
    known: [Known; 4],
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    pc: u32,
    epoch: u32,
    /// Zero if there is none.
    number: u32,
}

impl Executor<'_> {
    /// Executes a fence or `griddepcontrol` for the lanes in `mask`.
    pub(super) fn order(&mut self, warp: &mut Warp, op: &Op, mask: u32) {
        match op {
            Op::Fence { scope } => {
                let gained = self.memory.history.orders.fence(&actor(warp), mask, *scope);
                learn(warp, gained);
                warp.advance();
            }
            Op::GridDependency { wait: true } => {
                self.memory.waited();
                if self.memory.dependent() {
                    self.memory.history.orders.wait(&actor(warp), mask);
                }
            }
            _ => {}
        }
    }

    /// The number of this instruction in the warp's epoch, if it may access global memory.
    pub(super) fn instant(&mut self, warp: &mut Warp, space: Space, order: Order) -> u32 {
        if !matches!(space, Space::Global | Space::Generic) {
            return 0;
        }
        let (pc, epoch) = (warp.pc, warp.epoch());
        let known = warp.recent.known[pc as usize % 4];
        if known.number != 0 && known.pc == pc && known.epoch == epoch {
            return known.number;
        }
        let number = self.instant_of_copy(warp, epoch, self.line(pc), order);
        warp.recent.known[pc as usize % 4] = Known { pc, epoch, number };
        number
    }

    /// A new instant for the accesses of an asynchronous copy; its epoch is [`IN_FLIGHT`] until its thread waits.
    pub(super) fn instant_of_copy(&mut self, warp: &Warp, epoch: u32, line: u32, order: Order) -> u32 {
        let identity = &warp.identity;
        let (cluster, block) = (identity.cluster_number, identity.number);
        self.memory.history.add(Instant { cluster, block, slot: warp.slot, epoch, line, order })
    }

    /// Lane `lane`, which accesses global memory at `instant`.
    pub(super) fn by<'w>(&self, warp: &'w Warp, lane: usize, (instant, order): (u32, Order)) -> By<'w> {
        let (actor, lane) = (actor(warp), lane as u32);
        let waited = !self.memory.dependent() || self.memory.history.orders.waited(&actor, lane);
        By { actor, lane, instant, order, waited }
    }

    /// Lanes have read strongly: they learn what was released where they read.
    pub(super) fn acquire(&mut self, warp: &mut Warp, order: Order, lane: usize, (space, address): (Space, u64)) {
        let at = location(warp, space, address);
        let orders = &mut self.memory.history.orders;
        let gained = orders.acquire(&actor(warp), lane as u32, at, order.scope, order.acquire);
        learn(warp, gained);
    }

    /// A lane has written: strongly, which may release, or weakly, which ends what was released. True if the warp
    /// must begin a new epoch.
    pub(super) fn release(&mut self, warp: &Warp, order: Order, lane: usize, (space, address): (Space, u64)) -> bool {
        let at = location(warp, space, address);
        let orders = &mut self.memory.history.orders;
        if !order.strong {
            orders.overwrite(at);
            return false;
        }
        let pattern = Pattern { release: order.release, modifies: order.modifies };
        orders.release(&actor(warp), lane as u32, at, order.scope, pattern)
    }
}

pub(super) fn actor(warp: &Warp) -> Actor<'_> {
    let identity = &warp.identity;
    Actor {
        cluster: identity.cluster_number,
        block: identity.number,
        slot: warp.slot,
        clock: &warp.clock,
        since: warp.since,
    }
}

fn location(warp: &Warp, space: Space, address: u64) -> Location {
    let rank = match (space, address / OWN_BYTES) {
        (Space::Shared, _) | (Space::Cluster, 0) => warp.identity.rank,
        (Space::Cluster, window) => window as u32 - 1,
        _ => return (0, address),
    };
    (warp.identity.cluster_number + 1, u64::from(rank) * OWN_BYTES + address % OWN_BYTES)
}

fn learn(warp: &mut Warp, gained: Option<Vec<u32>>) {
    for (own, gained) in warp.clock.iter_mut().zip(gained.into_iter().flatten()) {
        *own = (*own).max(gained);
    }
}
