//! Clusters: blocks that run together, reach each other's shared memory and meet at a barrier.
//!
//! Addresses in `shared::cluster`: below [`OWN_BYTES`] the block's own, as in `shared::cta`; further windows of that
//! size are those of the blocks by rank, which `mapa` leads to. So an address says which block it means wherever it is used.

use super::barrier::Barriers;
use super::flight::Flight;
use super::lanes;
use super::step::{Executor, LaneFault};
use super::warp::{Group, Warp};
use super::warpgroup::Warpgroups;
use crate::instruction::{ClusterOp, Reg, Space, Type};
use crate::memory::{Actors, Shared, Who};
use crate::{Access, FaultKind};

/// Size of a block's window of addresses.
pub(crate) const OWN_BYTES: u64 = 1 << 24;

/// What the warps of a block share.
#[derive(Debug)]
pub(super) struct Crew {
    pub shared: Shared,
    pub barriers: Barriers,
    pub warpgroups: Warpgroups,
    /// The last access of each warp of the cluster, if from another block: its epoch and its line.
    visits: Vec<(u32, u32)>,
    /// Join of the clocks of the warps that have exited.
    farewell: Vec<u32>,
}

/// What the blocks of a cluster share; crews by the block's rank. A launch without clusters has clusters of one block.
#[derive(Debug)]
pub(super) struct Cluster {
    pub crews: Vec<Crew>,
    pub barrier: ClusterBarrier,
    pub flight: Flight,
}

impl Crew {
    fn new(shared_bytes: usize, warps: u32, actors: Actors) -> Self {
        let (shared, barriers) = (Shared::new(shared_bytes, actors), Barriers::new(warps));
        Self { shared, barriers, warpgroups: Warpgroups::default(), visits: Vec::new(), farewell: Vec::new() }
    }

    /// A warp has exited; with the last one goes the block's shared memory.
    ///
    /// # Errors
    /// An access from another block that was not certain to come before.
    pub fn exit(&mut self, clock: &[u32], per_block: u32) -> Result<(), FaultKind> {
        self.barriers.exit().map_err(|what| FaultKind::Barrier { what })?;
        join(&mut self.farewell, clock);
        if self.barriers.live > 0 {
            return Ok(());
        }
        let mut visits = self.visits.iter().zip(&self.farewell).enumerate();
        match visits.find(|(_, ((epoch, _), known))| epoch > known) {
            None => Ok(()),
            Some((warp, ((_, line), _))) => {
                let (rank, warp) = (warp as u32 / per_block, warp as u32 % per_block);
                let what = format!(
                    "the block exits, and its shared memory with it, while warp {warp} of block {rank} of the cluster may \
                     not have finished its access at line {line}: a cluster barrier before the exit orders them"
                );
                Err(FaultKind::Cluster { what })
            }
        }
    }
}

impl Cluster {
    /// `blocks` blocks of `threads` threads.
    pub fn new(blocks: u32, threads: u32, shared_bytes: usize, actors: Actors) -> Self {
        let crew = |rank| Crew::new(shared_bytes, threads.div_ceil(32), Actors { rank, ..actors });
        let barrier = ClusterBarrier::new(blocks, threads);
        Self { crews: (0..blocks).map(crew).collect(), barrier, flight: Flight::default() }
    }

    /// The shared memory that `address` of `space` (`Shared` or `Cluster`) is in, and the address there.
    ///
    /// # Errors
    /// As [`Self::reach`].
    pub fn shared(
        &mut self,
        space: Space,
        access: Access,
        address: u64,
        bytes: usize,
        who: Who<'_>,
    ) -> Result<(&mut Shared, u64), FaultKind> {
        if space == Space::Shared {
            return Ok((&mut self.crews[who.rank as usize].shared, address));
        }
        let (crew, address) = self.reach(access, address, bytes, who)?;
        Ok((&mut crew.shared, address))
    }

    /// The shared memory of block `rank`, for an asynchronous operation that `who` issues: whoever waits for it knows
    /// that it is over.
    ///
    /// # Errors
    /// No such block; or it is not certain that the block is there.
    pub fn target(&mut self, access: Access, rank: u32, who: Who<'_>) -> Result<&mut Shared, FaultKind> {
        let blocks = self.crews.len();
        let Some(crew) = self.crews.get_mut(rank as usize) else {
            let what = format!("{access} of the shared memory of block {rank} of a cluster of {blocks}");
            return Err(FaultKind::Cluster { what });
        };
        if rank != who.rank {
            crew.present(access, rank, who)?;
        }
        Ok(&mut crew.shared)
    }

    /// The crew of the block that `warp` is in.
    pub fn own(&mut self, warp: &Warp) -> &mut Crew {
        &mut self.crews[warp.identity.rank as usize]
    }

    /// The block that `address` of `shared::cluster` is in, and the address there.
    ///
    /// # Errors
    /// No such block; or, another block's memory while it is not certain that the block is there.
    pub fn reach(
        &mut self,
        access: Access,
        address: u64,
        bytes: usize,
        who: Who<'_>,
    ) -> Result<(&mut Crew, u64), FaultKind> {
        let (window, offset) = (address / OWN_BYTES, address % OWN_BYTES);
        let rank = if window == 0 { u64::from(who.rank) } else { window - 1 };
        let blocks = self.crews.len();
        let Some(crew) = self.crews.get_mut(rank as usize) else {
            let place = format!("the cluster has {blocks} blocks, so none of rank {rank}");
            return Err(FaultKind::OutOfBounds { access, bytes, address, place });
        };
        if rank as u32 != who.rank {
            crew.visit(access, rank as u32, who)?;
        }
        Ok((crew, offset))
    }
}

impl Crew {
    fn visit(&mut self, access: Access, rank: u32, who: Who<'_>) -> Result<(), FaultKind> {
        self.present(access, rank, who)?;
        self.visits.resize(who.clock.len(), (0, 0));
        self.visits[who.warp as usize] = (who.epoch(), who.line);
        Ok(())
    }

    /// The block, of this rank, has certainly started and not exited.
    fn present(&self, access: Access, rank: u32, who: Who<'_>) -> Result<(), FaultKind> {
        if self.barriers.live == 0 {
            let what = format!("{access} of the shared memory of block {rank} of the cluster, which has exited");
            return Err(FaultKind::Cluster { what });
        }
        let warps = who.per_block as usize;
        if who.clock[rank as usize * warps..][..warps].iter().all(|epoch| *epoch == 0) {
            let what = format!(
                "{access} of the shared memory of block {rank} of the cluster, which may not have started: a cluster \
                 barrier after the start makes it certain"
            );
            return Err(FaultKind::Cluster { what });
        }
        Ok(())
    }
}

/// `barrier.cluster`: all threads of the cluster that have not exited.
#[derive(Debug)]
pub(super) struct ClusterBarrier {
    /// Lanes of each warp that have not exited.
    live: Vec<u32>,
    /// Lanes that have arrived in the open phase.
    arrived: Vec<u32>,
    /// Lanes that arrived in the phase before and have not waited since.
    owed: Vec<u32>,
    /// Join of what those who arrived have told, of the open phase and of the one before.
    open: Vec<u32>,
    closed: Vec<u32>,
    /// A phase ended since the scheduler last looked.
    pub completed: bool,
}

impl ClusterBarrier {
    fn new(blocks: u32, threads: u32) -> Self {
        let warps = threads.div_ceil(32);
        let live = |warp: u32| u32::MAX >> (32 - (threads - warp % warps * 32).min(32));
        let count = (blocks * warps) as usize;
        Self {
            live: (0..blocks * warps).map(live).collect(),
            arrived: vec![0; count],
            owed: vec![0; count],
            open: Vec::new(),
            closed: Vec::new(),
            completed: false,
        }
    }

    /// The lanes in `mask` of warp `slot` arrive; `clock` is what they tell the others.
    pub fn arrive(&mut self, slot: usize, mask: u32, clock: &[u32]) -> Result<(), String> {
        let twice = mask & (self.arrived[slot] | self.owed[slot]);
        if twice != 0 {
            return Err(format!("lanes {twice:#010x} arrive at the cluster's barrier again without having waited"));
        }
        self.arrived[slot] |= mask;
        join(&mut self.open, clock);
        self.complete();
        Ok(())
    }

    /// The lanes in `mask` wait: what they learn, or `None` if the phase is still open.
    pub fn wait(&mut self, slot: usize, mask: u32) -> Result<Option<&[u32]>, String> {
        let absent = mask & !(self.arrived[slot] | self.owed[slot]);
        if absent != 0 {
            return Err(format!("lanes {absent:#010x} wait at the cluster's barrier without having arrived"));
        }
        if mask & self.arrived[slot] != 0 {
            return Ok(None);
        }
        self.owed[slot] &= !mask;
        Ok(Some(&self.closed))
    }

    /// The lanes in `mask` of warp `slot` exit: nobody waits for them any longer.
    pub fn exit(&mut self, slot: usize, mask: u32) {
        for lanes in [&mut self.live, &mut self.arrived, &mut self.owed] {
            lanes[slot] &= !mask;
        }
        self.complete();
    }

    fn complete(&mut self) {
        if self.arrived.iter().all(|lanes| *lanes == 0) || self.arrived != self.live {
            return;
        }
        for (owed, arrived) in self.owed.iter_mut().zip(&mut self.arrived) {
            *owed |= std::mem::take(arrived);
        }
        self.closed = std::mem::take(&mut self.open);
        self.completed = true;
    }

    /// "the cluster's barrier: 96 of 128 threads have come" if its phase is open.
    pub fn state(&self) -> Option<String> {
        let count = |lanes: &[u32]| lanes.iter().map(|lanes| lanes.count_ones()).sum::<u32>();
        let (arrived, live) = (count(&self.arrived), count(&self.live));
        (arrived > 0).then(|| format!("the cluster's barrier: {arrived} of {live} threads have come"))
    }
}

/// Makes `clock` know what `other` knows.
pub(super) fn join(clock: &mut Vec<u32>, other: &[u32]) {
    clock.resize(clock.len().max(other.len()), 0);
    crate::memory::mbarriers::join(clock, other);
}

impl Executor<'_> {
    /// Executes `op` for the lanes in `mask`. False if they must wait, at this instruction.
    pub(super) fn cluster(
        &mut self,
        warp: &mut Warp,
        cluster: &mut Cluster,
        op: &ClusterOp,
        mask: u32,
    ) -> Result<bool, LaneFault> {
        let misuse = |what| LaneFault::from(FaultKind::Barrier { what });
        match op {
            ClusterOp::Map { ty, dst, a, rank } => {
                let (a, rank) = (warp.get64(*a, &self.env), warp.get32(*rank, &self.env));
                self.map_shared(warp, cluster, (*ty, *dst), a, rank, mask)?;
            }
            ClusterOp::Rank { dst, a } => {
                let own = u64::from(warp.identity.rank);
                let rank = |address: u64| match (address & 0xffff_ffff) / OWN_BYTES {
                    0 => own as u32,
                    window => window as u32 - 1,
                };
                let ranks = super::map(&warp.get64(*a, &self.env), rank);
                warp.set32(*dst, mask, &ranks);
            }
            ClusterOp::Arrive { release } => {
                let slot = warp.slot as usize;
                if *release {
                    cluster.barrier.arrive(slot, mask, &warp.clock).map_err(misuse)?;
                    warp.advance();
                } else {
                    let mut told = vec![0; slot + 1];
                    told[slot] = warp.arrive_relaxed();
                    cluster.own(warp).shared.mbarriers.publish_inits(warp.slot, told[slot]);
                    cluster.barrier.arrive(slot, mask, &told).map_err(misuse)?;
                }
            }
            ClusterOp::Wait => {
                let slot = warp.slot as usize;
                match cluster.barrier.wait(slot, mask).map_err(misuse)? {
                    Some(learnt) => {
                        join(&mut warp.clock, learnt);
                        warp.meet();
                    }
                    None => {
                        wait_here(warp, mask);
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// `mapa`: the address in another block's window.
    fn map_shared(
        &self,
        warp: &mut Warp,
        cluster: &Cluster,
        (ty, dst): (Type, Reg),
        mut a: [u64; 32],
        rank: [u32; 32],
        mask: u32,
    ) -> Result<(), LaneFault> {
        for lane in lanes(mask) {
            if rank[lane] as usize >= cluster.crews.len() {
                let what = format!("mapa to block {} of a cluster of {}", rank[lane], cluster.crews.len());
                return Err(LaneFault::at(lane, FaultKind::Cluster { what }));
            }
            // The low 32 bits are the address within the shared window, generic or not.
            let window = (a[lane] & 0xffff_ffff) / OWN_BYTES;
            a[lane] = a[lane] - window * OWN_BYTES + (u64::from(rank[lane]) + 1) * OWN_BYTES;
        }
        if ty.bits() == 64 {
            warp.set64(dst, mask, &a);
        } else {
            warp.set32(dst, mask, &super::map(&a, |a| a as u32));
        }
        Ok(())
    }
}

/// The lanes in `mask`, which run, wait for the cluster's barrier; the warp's others go on.
fn wait_here(warp: &mut Warp, mask: u32) {
    let others = warp.active & !mask;
    warp.groups.push(Group { at_cluster: true, ..Group::waiting(warp.pc, mask, u32::MAX) });
    warp.active = 0;
    if others != 0 {
        warp.groups.push(Group::running(warp.pc + 1, others));
    }
    warp.next_stop = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lanes_that_live_must_come_and_learn_from_those_who_release() {
        let mut barrier = ClusterBarrier::new(2, 40);
        assert_eq!(barrier.live, [u32::MAX, 0xff, u32::MAX, 0xff]);
        barrier.arrive(0, u32::MAX, &[7, 0, 0, 0]).unwrap();
        barrier.arrive(1, 0xff, &[]).unwrap();
        assert_eq!(barrier.wait(0, u32::MAX).unwrap(), None);
        barrier.arrive(2, 0xffff, &[0, 0, 9, 0]).unwrap();
        barrier.exit(3, 0xff);
        assert_eq!(barrier.state().as_deref(), Some("the cluster's barrier: 56 of 72 threads have come"));
        barrier.exit(2, 0xffff_0000);
        assert!(barrier.completed);
        assert_eq!(barrier.wait(1, 0xff).unwrap(), Some(&[7, 0, 9, 0][..]));
    }

    #[test]
    fn misuse_says_what_is_wrong() {
        let mut barrier = ClusterBarrier::new(1, 64);
        assert!(barrier.wait(0, 3).unwrap_err().contains("0x00000003 wait"));
        barrier.arrive(0, 3, &[]).unwrap();
        assert!(barrier.arrive(0, 2, &[]).unwrap_err().contains("0x00000002 arrive"));
    }
}
