//! Bulk copies in flight. A copy lands in parts, in any order, at moments that the launch's seed draws; each part is
//! counted on the copy's mbarrier when its data are there.

use std::collections::BTreeMap;
use std::ops::Range;

use super::cluster::Cluster;
use super::copy::Copy;
use super::schedule::Random;
use super::step::{Executor, LaneFault};
use super::warp::Warp;
use crate::FaultKind;
use crate::asynchronous::Reduce;
use crate::instruction::Order;
use crate::memory::HoldId;
use crate::tensor::tensor_map::{DataType, TensorMap};
use crate::tensor::tma::Piece;

/// A copy lands in this many parts at most.
const MOST_PARTS: usize = 4;

/// The asynchronous operations that threads of a cluster have issued and that are not done.
#[derive(Debug, Default)]
pub(super) struct Flight {
    items: Vec<Item>,
    /// Bulk groups that a thread has committed, by warp and lane.
    committed: BTreeMap<(u32, u32), u32>,
}

/// One operation.
#[derive(Debug)]
struct Item {
    warp: u32,
    lane: u32,
    /// Rank of the block whose shared memory it reads or writes.
    home: u32,
    /// Position and line of the instruction.
    pc: u32,
    line: u32,
    /// The bulk group that the thread's next commit closes.
    group: u32,
    job: Job,
    /// A wait has covered it: not only for its source, if it is a store.
    waited: bool,
    /// Parts that have not landed: ranges of the job's pieces.
    parts: Vec<Range<usize>>,
}

/// What an operation does.
#[derive(Debug)]
pub(super) enum Job {
    /// Global to shared memory, counted on `barrier`.
    Load { pieces: Vec<Piece>, fill: Option<TensorMap>, barrier: u64 },
    /// Shared to global memory, in a bulk group. `hold` is on the source until a wait for the group; from then on
    /// the bytes come from `read`, if they have not been stored yet. `instant` is that of its writes.
    Store {
        pieces: Vec<Piece>,
        reduction: Option<(Reduce, DataType)>,
        hold: Option<HoldId>,
        read: Vec<u8>,
        instant: u32,
    },
    /// From the shared memory of block `source.0`, which is held, to that of another, counted on `barrier`.
    Peer { to: u64, from: u64, bytes: u32, barrier: u64, source: (u32, HoldId) },
    /// `st.async`.
    Value { to: u64, data: Vec<u8>, barrier: u64 },
    /// The arrival that `cp.async.mbarrier.arrive` announces.
    Arrive { copies: Vec<Copy>, barrier: u64 },
}

impl Flight {
    /// An operation of `pieces` pieces on the shared memory of block `home` starts.
    pub fn push(&mut self, warp: &Warp, lane: usize, line: u32, (home, job): (u32, Job), pieces: usize) {
        let step = pieces.div_ceil(MOST_PARTS).max(1);
        let parts = (0..pieces).step_by(step).map(|first| first..(first + step).min(pieces)).collect();
        let lane = lane as u32;
        let group = self.committed.get(&(warp.slot, lane)).copied().unwrap_or(0);
        self.items.push(Item { warp: warp.slot, lane, home, pc: warp.pc, line, group, job, waited: false, parts });
    }

    /// Closes the bulk group of each lane in `mask`.
    pub fn commit(&mut self, warp: u32, mask: u32) {
        for lane in super::lanes(mask) {
            *self.committed.entry((warp, lane as u32)).or_default() += 1;
        }
    }

    /// Whether data have not landed yet.
    pub fn is_airborne(&self) -> bool {
        self.items.iter().any(|item| !item.parts.is_empty())
    }

    /// The next part to land of `item`, in no order.
    fn draw(&mut self, item: usize, random: &mut Random) -> Range<usize> {
        let parts = &mut self.items[item].parts;
        let at = random.below(parts.len() as u64) as usize;
        parts.swap_remove(at)
    }

    /// Takes out what is done.
    fn sweep(&mut self) {
        let store = |item: &Item| matches!(item.job, Job::Store { .. });
        self.items.retain(|item| !item.parts.is_empty() || (store(item) && !item.waited));
    }
}

impl Executor<'_> {
    /// Lets a part of one in four operations land.
    pub fn land_some(
        &mut self,
        warps: &[Warp],
        cluster: &mut Cluster,
        random: &mut Random,
    ) -> Result<(), crate::Fault> {
        if cluster.flight.items.is_empty() {
            return Ok(());
        }
        for item in 0..cluster.flight.items.len() {
            if !cluster.flight.items[item].parts.is_empty() && random.below(4) == 0 {
                self.land_one(warps, cluster, item, random)?;
            }
        }
        cluster.flight.sweep();
        Ok(())
    }

    /// Lets one part of any operation land, since no thread can go on before.
    pub fn land_any(&mut self, warps: &[Warp], cluster: &mut Cluster, random: &mut Random) -> Result<(), crate::Fault> {
        let airborne = |item: &usize| !cluster.flight.items[*item].parts.is_empty();
        let items: Vec<usize> = (0..cluster.flight.items.len()).filter(airborne).collect();
        let item = items[random.below(items.len() as u64) as usize];
        self.land_one(warps, cluster, item, random)?;
        cluster.flight.sweep();
        Ok(())
    }

    fn land_one(
        &mut self,
        warps: &[Warp],
        cluster: &mut Cluster,
        item: usize,
        random: &mut Random,
    ) -> Result<(), crate::Fault> {
        let part = cluster.flight.draw(item, random);
        let Item { warp, lane, pc, .. } = cluster.flight.items[item];
        self.land_part(cluster, item, part).map_err(|kind| {
            let fault = LaneFault { kind, lane: Some(lane as usize), pc: Some(pc) };
            self.fault(&warps[warp as usize], fault)
        })
    }

    fn land_part(&mut self, cluster: &mut Cluster, item: usize, part: Range<usize>) -> Result<(), FaultKind> {
        self.progress.changes += 1;
        let Cluster { crews, flight, .. } = cluster;
        let Item { job, line, home, .. } = &mut flight.items[item];
        if let Job::Peer { to, from, bytes, barrier, source: (source, hold) } = *job {
            let data = crews[source as usize].shared.peek(from, bytes as usize).to_vec();
            let shared = &mut crews[*home as usize].shared;
            let (actor, epoch) = shared.mbarriers.landing(barrier)?;
            shared.land(to, &data, actor, epoch);
            shared.mbarriers.complete_tx(barrier, bytes, Some(*line))?;
            crews[source as usize].shared.hand_over(hold, actor, epoch);
            return Ok(());
        }
        let shared = &mut crews[*home as usize].shared;
        match job {
            Job::Peer { .. } => Ok(()),
            Job::Load { pieces, fill, barrier } => {
                let (actor, epoch) = shared.mbarriers.landing(*barrier)?;
                let mut bytes = 0;
                for piece in &pieces[part] {
                    let length = piece.bytes as usize;
                    let mut filled = [0; 16];
                    let data = match (piece.global, fill.as_ref()) {
                        (Some(global), _) => self.memory.read(global, length)?,
                        (None, Some(map)) => {
                            map.fill(&mut filled[..length]);
                            &filled[..length]
                        }
                        (None, None) => &filled[..length],
                    };
                    shared.land(u64::from(piece.shared), data, actor, epoch);
                    bytes += piece.bytes;
                }
                shared.mbarriers.complete_tx(*barrier, bytes, Some(*line))
            }
            Job::Value { to, data, barrier } => {
                let (actor, epoch) = shared.mbarriers.landing(*barrier)?;
                shared.land(*to, data, actor, epoch);
                shared.mbarriers.complete_tx(*barrier, data.len() as u32, Some(*line))
            }
            Job::Store { pieces, reduction, hold, read, .. } => {
                let skipped: usize = pieces[..part.start].iter().map(|piece| piece.bytes as usize).sum();
                let mut at = skipped;
                for piece in &pieces[part] {
                    let length = piece.bytes as usize;
                    let data = match hold {
                        Some(_) => shared.peek(u64::from(piece.shared), length),
                        None => &read[at..at + length],
                    };
                    at += length;
                    self.store_piece(piece, data, *reduction)?;
                }
                Ok(())
            }
            Job::Arrive { copies, barrier } => {
                let (actor, epoch) = shared.mbarriers.landing(*barrier)?;
                for copy in copies.iter() {
                    let data = self.copied(copy)?;
                    shared.adopt(copy.to, &data[..copy.bytes as usize], actor, epoch);
                }
                shared.mbarriers.arrive_landed(*barrier, *line)
            }
        }
    }

    fn store_piece(
        &mut self,
        piece: &Piece,
        data: &[u8],
        reduction: Option<(Reduce, DataType)>,
    ) -> Result<(), FaultKind> {
        let Some(global) = piece.global else { return Ok(()) };
        let Some((Reduce { op, .. }, data_type)) = reduction else {
            return self.memory.write(global, data);
        };
        let size = data_type.bytes() as usize;
        let old = self.memory.read(global, data.len())?.to_vec();
        let mut new = Vec::with_capacity(data.len());
        for (old, more) in old.chunks_exact(size).zip(data.chunks_exact(size)) {
            let result = op.apply(data_type, number(old), number(more));
            let result = result.map_err(|error| FaultKind::Copy { what: error.to_string() })?;
            new.extend_from_slice(&result.to_le_bytes()[..size]);
        }
        self.memory.write(global, &new)
    }

    /// `cp.async.bulk.wait_group`: all but the newest `pending` groups of each lane have read their sources, and
    /// unless `read` is enough, have stored what they read.
    pub(super) fn wait_groups(
        &mut self,
        warp: &Warp,
        cluster: &mut Cluster,
        pending: u32,
        read: bool,
        mask: u32,
    ) -> Result<(), LaneFault> {
        for item in 0..cluster.flight.items.len() {
            let Item { warp: owner, lane, group, .. } = cluster.flight.items[item];
            let committed = cluster.flight.committed.get(&(owner, lane)).copied().unwrap_or(0);
            let waited = owner == warp.slot && mask >> lane & 1 != 0 && group + pending < committed;
            if !waited || !matches!(cluster.flight.items[item].job, Job::Store { .. }) {
                continue;
            }
            if !read {
                for part in std::mem::take(&mut cluster.flight.items[item].parts) {
                    let pc = Some(cluster.flight.items[item].pc);
                    let fault = |kind| LaneFault { kind, lane: Some(lane as usize), pc };
                    self.land_part(cluster, item, part).map_err(fault)?;
                }
            }
            cluster.flight.items[item].waited |= !read;
            if !read {
                self.settle_stores(warp, &cluster.flight.items[item])
                    .map_err(|kind| LaneFault::at(lane as usize, kind))?;
            }
            let Cluster { crews, flight, .. } = &mut *cluster;
            let shared = &mut crews[warp.identity.rank as usize].shared;
            let Job::Store { pieces, hold, read, .. } = &mut flight.items[item].job else { continue };
            if let Some(id) = hold.take() {
                *read =
                    pieces.iter().flat_map(|p| shared.peek(u64::from(p.shared), p.bytes as usize)).copied().collect();
                let who = self.who(warp, lane as usize);
                shared.release(id, who).map_err(|kind| LaneFault::at(lane as usize, kind))?;
            }
        }
        cluster.flight.sweep();
        Ok(())
    }

    /// A lane has waited for a copy to global memory: its writes are now the lane's, like any before.
    fn settle_stores(&mut self, warp: &Warp, item: &Item) -> Result<(), FaultKind> {
        let Job::Store { pieces, reduction, instant, .. } = &item.job else { return Ok(()) };
        let order = if reduction.is_some() { Order::COPY_REDUCTION } else { Order::COPY };
        let now = self.instant_of_copy(warp, warp.epoch(), item.line, order);
        let by = self.by(warp, item.lane as usize, (now, order));
        for piece in pieces {
            if let Some(global) = piece.global {
                self.memory.settle_copy(global, piece.bytes as usize, *instant, &by)?;
            }
        }
        Ok(())
    }

    /// Ends a cluster whose threads have all exited: nothing that it started may still need its shared memory.
    pub fn retire(&mut self, warps: &[Warp], cluster: &mut Cluster, random: &mut Random) -> Result<(), crate::Fault> {
        while cluster.flight.is_airborne() {
            self.land_any(warps, cluster, random)?;
        }
        let Some(first) = warps.first() else { return Ok(()) };
        let reads = |item: &&Item| matches!(item.job, Job::Store { hold: Some(_), .. });
        if let Some(Item { warp, lane, pc, line, .. }) = cluster.flight.items.iter().find(reads) {
            let what = format!("the copy of line {line} may still read shared memory: wait_group.read comes first");
            let fault = LaneFault { kind: FaultKind::Exit { what }, lane: Some(*lane as usize), pc: Some(*pc) };
            return Err(self.fault(&warps[*warp as usize], fault));
        }
        if let Some((what, line)) = cluster.crews.iter().find_map(|crew| crew.shared.mbarriers.leaked()) {
            let at = |line: u32| self.entry.instructions.iter().position(|found| found.line == line);
            let pc = line.and_then(at).map(|pc| pc as u32);
            let fault = LaneFault { kind: FaultKind::Exit { what }, lane: None, pc };
            return Err(self.fault(first, fault));
        }
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
