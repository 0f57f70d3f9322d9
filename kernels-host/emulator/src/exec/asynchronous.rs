//! Issues bulk copies: the operands are checked, destinations and sources marked; the data move later.

use super::cluster::{Cluster, OWN_BYTES};
use super::flight::Job;
use super::lanes;
use super::step::{Executor, LaneFault};
use super::warp::Warp;
use crate::asynchronous::{Far, Reduce, Route, Transfer};
use crate::instruction::{Address, Operand, Order, Space, Type};
use crate::memory::Who;
use crate::memory::shadow::IN_FLIGHT;
use crate::{Access, FaultKind};

use crate::tensor::tensor_map::{DataType, MAP_BYTES, TensorMap};
use crate::tensor::tma::{Piece, check_bulk, copy_plan, store_plan};

/// A plain copy is cut into pieces of this size, so that it lands in parts.
const PIECE: u32 = 512;

/// A plain copy's pieces, or a box's with its tensor map.
struct Plan {
    pieces: Vec<Piece>,
    map: Option<TensorMap>,
}

impl Executor<'_> {
    /// Starts `transfer` for each lane in `mask`.
    pub(super) fn transfer(
        &mut self,
        warp: &Warp,
        cluster: &mut Cluster,
        transfer: &Transfer,
        mask: u32,
    ) -> Result<(), LaneFault> {
        match &transfer.route {
            Route::Load { to, barrier, blocks } => {
                self.load_bulk(warp, cluster, (*to, *barrier, *blocks), transfer, mask)
            }
            Route::Store { from, reduction } => self.store_bulk(warp, cluster, (*from, *reduction), transfer, mask),
            Route::Prefetch => {
                for lane in lanes(mask) {
                    // The addresses of what is fetched need not exist.
                    self.plan(warp, lane, 0, &transfer.far, false).map_err(|kind| LaneFault::at(lane, kind))?;
                }
                Ok(())
            }
            Route::Peer { reduction: Some(_), .. } => {
                let instruction = self.opcode(warp.pc).to_owned();
                Err(FaultKind::Unsupported { instruction }.into())
            }
            Route::Peer { to, from, barrier, .. } => {
                self.peer_bulk(warp, cluster, [*to, *from, *barrier], &transfer.far, mask)
            }
        }
    }

    fn load_bulk(
        &mut self,
        warp: &Warp,
        cluster: &mut Cluster,
        (to, barrier, blocks): (Address, Address, Option<Operand>),
        transfer: &Transfer,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let destinations = self.shared_addresses(warp, to, mask)?;
        let barriers = self.shared_addresses(warp, barrier, mask)?;
        let blocks = blocks.map(|blocks| warp.get32(blocks, &self.env));
        for lane in lanes(mask) {
            let fault = |kind| LaneFault::at(lane, kind);
            let who = self.who(warp, lane);
            let (rank, to) = home(destinations[lane], who);
            let (counter, barrier) = home(barriers[lane], who);
            let plan = self.plan(warp, lane, to, &transfer.far, false).map_err(fault)?;
            if blocks.is_none() && rank != counter {
                let what = "the mbarrier is in another block than the destination".to_owned();
                return Err(fault(FaultKind::Copy { what }));
            }
            self.read_globally(warp, lane, &plan.pieces).map_err(fault)?;
            let targets = blocks.map_or(1 << rank, |blocks| blocks[lane] & 0xffff);
            for rank in lanes(targets).map(|rank| rank as u32) {
                let shared = cluster.target(Access::Write, rank, who).map_err(fault)?;
                let actor = shared.mbarriers.actor(barrier, who).map_err(fault)?;
                for piece in &plan.pieces {
                    let (at, bytes) = (u64::from(piece.shared), piece.bytes as usize);
                    shared.begin_write(at, bytes, who, actor).map_err(fault)?;
                }
                let job = Job::Load { pieces: plan.pieces.clone(), fill: plan.map, barrier };
                cluster.flight.push(warp, lane, who.line, (rank, job), plan.pieces.len());
            }
        }
        Ok(())
    }

    /// From shared memory of the block to that of another, or its own.
    fn peer_bulk(
        &mut self,
        warp: &Warp,
        cluster: &mut Cluster,
        [to, from, barrier]: [Address; 3],
        length: &Far,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let Far::Length { bytes } = length else { return Ok(()) };
        let lengths = warp.get32(*bytes, &self.env);
        let (to, from) = (self.shared_addresses(warp, to, mask)?, self.shared_addresses(warp, from, mask)?);
        let barriers = self.shared_addresses(warp, barrier, mask)?;
        for lane in lanes(mask) {
            let fault = |kind| LaneFault::at(lane, kind);
            let who = self.who(warp, lane);
            let ((rank, to), (counter, barrier)) = (home(to[lane], who), home(barriers[lane], who));
            let (from, bytes) = (home(from[lane], who).1, lengths[lane]);
            let what = check_bulk(to as u32, from, bytes).err().map(|error| error.to_string());
            let what =
                what.or((rank != counter).then(|| "the mbarrier is in another block than the destination".into()));
            if let Some(what) = what {
                return Err(fault(FaultKind::Copy { what }));
            }
            let own = &mut cluster.own(warp).shared;
            own.read_async(from, bytes as usize, who).map_err(fault)?;
            let source = own.hold(from, bytes as usize, who.line).map_err(fault)?;
            let shared = cluster.target(Access::Write, rank, who).map_err(fault)?;
            let actor = shared.mbarriers.actor(barrier, who).map_err(fault)?;
            shared.begin_write(to, bytes as usize, who, actor).map_err(fault)?;
            let job = Job::Peer { to, from, bytes, barrier, source: (warp.identity.rank, source) };
            cluster.flight.push(warp, lane, who.line, (rank, job), 1);
        }
        Ok(())
    }

    /// `st.async`.
    pub(super) fn store_async(
        &mut self,
        warp: &Warp,
        cluster: &mut Cluster,
        [to, barrier]: [Address; 2],
        (ty, src): (Type, &[Operand]),
        mask: u32,
    ) -> Result<(), LaneFault> {
        let to = self.shared_addresses(warp, to, mask)?;
        let barriers = self.shared_addresses(warp, barrier, mask)?;
        for lane in lanes(mask) {
            let fault = |kind| LaneFault::at(lane, kind);
            let who = self.who(warp, lane);
            let ((rank, to), (counter, barrier)) = (home(to[lane], who), home(barriers[lane], who));
            let value = |src: &Operand| warp.get64(*src, &self.env)[lane].to_le_bytes();
            let data: Vec<u8> = src.iter().flat_map(|src| value(src).into_iter().take(ty.bytes())).collect();
            if rank != counter {
                let what = "the mbarrier is in another block than the destination".to_owned();
                return Err(fault(FaultKind::Copy { what }));
            }
            if !to.is_multiple_of(data.len() as u64) {
                let (access, bytes) = (Access::Write, data.len());
                return Err(fault(FaultKind::Misaligned { access, bytes, address: to }));
            }
            let shared = cluster.target(Access::Write, rank, who).map_err(fault)?;
            let actor = shared.mbarriers.actor(barrier, who).map_err(fault)?;
            shared.begin_write(to, data.len(), who, actor).map_err(fault)?;
            cluster.flight.push(warp, lane, who.line, (rank, Job::Value { to, data, barrier }), 1);
        }
        Ok(())
    }

    fn store_bulk(
        &mut self,
        warp: &Warp,
        cluster: &mut Cluster,
        (from, reduction): (Address, Option<Reduce>),
        transfer: &Transfer,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let sources = self.shared_addresses(warp, from, mask)?;
        for lane in lanes(mask) {
            let fault = |kind| LaneFault::at(lane, kind);
            let who = self.who(warp, lane);
            let source = home(sources[lane], who).1;
            let Plan { mut pieces, map } = self.plan(warp, lane, source, &transfer.far, true).map_err(fault)?;
            // Nothing outside of the tensor is stored.
            pieces.retain(|piece| piece.global.is_some());
            let (mut first, mut end) = (u64::MAX, 0);
            let shared = &mut cluster.own(warp).shared;
            for piece in &pieces {
                let (at, bytes) = (u64::from(piece.shared), piece.bytes as usize);
                shared.read_async(at, bytes, who).map_err(fault)?;
                (first, end) = (first.min(at), end.max(at + bytes as u64));
            }
            if pieces.is_empty() {
                continue;
            }
            let hold = Some(shared.hold(first, (end - first) as usize, who.line).map_err(fault)?);
            let reduction = reduction.map(|reduction| (reduction, element(reduction, map.as_ref())));
            let instant = self.write_globally(warp, lane, &pieces, reduction.is_some()).map_err(fault)?;
            let count = pieces.len();
            let job = Job::Store { pieces, reduction, hold, read: Vec::new(), instant };
            cluster.flight.push(warp, lane, who.line, (warp.identity.rank, job), count);
        }
        Ok(())
    }

    /// A copy reads global memory for a lane, from now on.
    fn read_globally(&mut self, warp: &Warp, lane: usize, pieces: &[Piece]) -> Result<(), FaultKind> {
        let instant = self.instant_of_copy(warp, warp.epoch(), self.line(warp.pc), Order::COPY);
        let by = self.by(warp, lane, (instant, Order::COPY));
        for piece in pieces {
            if let Some(global) = piece.global {
                self.memory.load(global, piece.bytes as usize, &by)?;
                self.counters.bulk_bytes_loaded += u64::from(piece.bytes);
            }
        }
        Ok(())
    }

    /// A copy writes global memory for a lane, at some time until the lane waits for it; returns its instant.
    fn write_globally(&mut self, warp: &Warp, lane: usize, pieces: &[Piece], modify: bool) -> Result<u32, FaultKind> {
        let order = if modify { Order::COPY_REDUCTION } else { Order::COPY };
        let instant = self.instant_of_copy(warp, IN_FLIGHT, self.line(warp.pc), order);
        let by = self.by(warp, lane, (instant, order));
        for piece in pieces {
            if let Some(global) = piece.global {
                self.memory.begin_copy(global, piece.bytes as usize, &by)?;
                self.counters.bulk_bytes_stored += u64::from(piece.bytes);
            }
        }
        Ok(instant)
    }

    /// The pieces of a lane's copy between global memory and `shared`, from there if it `stores`.
    fn plan(&self, warp: &Warp, lane: usize, shared: u64, far: &Far, stores: bool) -> Result<Plan, FaultKind> {
        let refused = |what: String| FaultKind::Copy { what };
        let shared = u32::try_from(shared).map_err(|_| refused(format!("{shared:#x} is no shared address")))?;
        match far {
            Far::Bytes { address, bytes } => {
                let global = self.addresses(warp, *address)[lane];
                let bytes = warp.get32(*bytes, &self.env)[lane];
                check_bulk(shared, global, bytes).map_err(|error| refused(error.to_string()))?;
                let piece = |at: u32| Piece {
                    shared: shared.wrapping_add(at),
                    bytes: PIECE.min(bytes - at),
                    global: Some(global + u64::from(at)),
                };
                Ok(Plan { pieces: (0..bytes).step_by(PIECE as usize).map(piece).collect(), map: None })
            }
            Far::Box { map, coordinates } => {
                let map = self.tensor_map(map.space, self.addresses(warp, *map)[lane])?;
                let at: Vec<i32> = coordinates.iter().map(|c| warp.get32(*c, &self.env)[lane] as i32).collect();
                let plan = if stores { store_plan(&map, &at, shared) } else { copy_plan(&map, &at, shared) };
                let plan = plan.map_err(|error| refused(error.to_string()))?;
                Ok(Plan { pieces: plan.collect(), map: Some(map) })
            }
            Far::Length { .. } => Err(refused("a copy between blocks has no global address".into())),
        }
    }

    /// The tensor map at `address`, in the launch's parameters or in global memory.
    pub(super) fn tensor_map(&self, space: Space, address: u64) -> Result<TensorMap, FaultKind> {
        if !address.is_multiple_of(64) {
            let what = format!("the tensor map at {address:#x} is not aligned to 64 bytes");
            return Err(FaultKind::Copy { what });
        }
        let (space, at) = super::access::resolve(space, address);
        let found = match space {
            Space::Param => super::access::param(self.params, at, MAP_BYTES)?,
            _ => self.memory.read(at, MAP_BYTES)?,
        };
        let mut bytes = [0; MAP_BYTES];
        bytes.copy_from_slice(found);
        TensorMap::decode(&bytes).map_err(|error| FaultKind::Copy { what: error.to_string() })
    }
}

/// The block that an address of `shared::cluster` is in, and the address there.
fn home(address: u64, who: Who<'_>) -> (u32, u64) {
    let window = (address / OWN_BYTES) as u32;
    (if window == 0 { who.rank } else { window - 1 }, address % OWN_BYTES)
}

/// The type of the elements that a reduction works on.
fn element(reduction: Reduce, map: Option<&TensorMap>) -> DataType {
    reduction.data_type.or(map.map(TensorMap::data_type)).unwrap_or(DataType::U32)
}
