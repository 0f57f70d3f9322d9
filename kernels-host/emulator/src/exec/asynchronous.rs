//! Issues bulk copies: the operands are checked, destinations and sources marked; the data move later.

use super::flight::Job;
use super::lanes;
use super::step::{Crew, Executor, LaneFault};
use super::warp::Warp;
use crate::FaultKind;
use crate::asynchronous::{Far, Reduce, Route, Transfer};
use crate::instruction::{Address, Operand, Space};

use crate::tensor::tensor_map::{DataType, MAP_BYTES, TensorMap};
use crate::tensor::tma::{Piece, check_bulk, copy_plan};

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
        crew: &mut Crew,
        transfer: &Transfer,
        mask: u32,
    ) -> Result<(), LaneFault> {
        match &transfer.route {
            Route::Load { to, barrier, blocks } => self.load_bulk(warp, crew, (*to, *barrier, *blocks), transfer, mask),
            Route::Store { from, reduction } => self.store_bulk(warp, crew, (*from, *reduction), transfer, mask),
            Route::Prefetch => {
                for lane in lanes(mask) {
                    // The addresses of what is fetched need not exist.
                    self.plan(warp, lane, 0, &transfer.far).map_err(|kind| LaneFault::at(lane, kind))?;
                }
                Ok(())
            }
            Route::Peer { .. } => {
                let instruction = self.opcode(warp.pc).to_owned();
                Err(FaultKind::Unsupported { instruction }.into())
            }
        }
    }

    fn load_bulk(
        &mut self,
        warp: &Warp,
        crew: &mut Crew,
        (to, barrier, _blocks): (Address, Address, Option<Operand>),
        transfer: &Transfer,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let destinations = self.shared_addresses(warp, to, mask)?;
        let barriers = self.shared_addresses(warp, barrier, mask)?;
        for lane in lanes(mask) {
            let fault = |kind| LaneFault::at(lane, kind);
            let who = self.who(warp, lane);
            let plan = self.plan(warp, lane, destinations[lane], &transfer.far).map_err(fault)?;
            let actor = crew.shared.mbarriers.actor(barriers[lane], who).map_err(fault)?;
            for piece in &plan.pieces {
                let (at, bytes) = (u64::from(piece.shared), piece.bytes as usize);
                crew.shared.begin_write(at, bytes, who, actor).map_err(fault)?;
            }
            let pieces = plan.pieces.len();
            let job = Job::Load { pieces: plan.pieces, fill: plan.map, barrier: barriers[lane] };
            crew.flight.push(warp, lane, who.line, job, pieces);
        }
        Ok(())
    }

    fn store_bulk(
        &mut self,
        warp: &Warp,
        crew: &mut Crew,
        (from, reduction): (Address, Option<Reduce>),
        transfer: &Transfer,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let sources = self.shared_addresses(warp, from, mask)?;
        for lane in lanes(mask) {
            let fault = |kind| LaneFault::at(lane, kind);
            let who = self.who(warp, lane);
            let Plan { mut pieces, map } = self.plan(warp, lane, sources[lane], &transfer.far).map_err(fault)?;
            // Nothing outside of the tensor is stored.
            pieces.retain(|piece| piece.global.is_some());
            let (mut first, mut end) = (u64::MAX, 0);
            for piece in &pieces {
                let (at, bytes) = (u64::from(piece.shared), piece.bytes as usize);
                crew.shared.read_async(at, bytes, who).map_err(fault)?;
                (first, end) = (first.min(at), end.max(at + bytes as u64));
            }
            if pieces.is_empty() {
                continue;
            }
            let hold = Some(crew.shared.hold(first, (end - first) as usize, who.line).map_err(fault)?);
            let reduction = reduction.map(|reduction| (reduction, element(reduction, map.as_ref())));
            let count = pieces.len();
            crew.flight.push(warp, lane, who.line, Job::Store { pieces, reduction, hold, read: Vec::new() }, count);
        }
        Ok(())
    }

    /// The pieces of a lane's copy between global memory and `shared`.
    fn plan(&self, warp: &Warp, lane: usize, shared: u64, far: &Far) -> Result<Plan, FaultKind> {
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
                let plan = copy_plan(&map, &at, shared).map_err(|error| refused(error.to_string()))?;
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

/// The type of the elements that a reduction works on.
fn element(reduction: Reduce, map: Option<&TensorMap>) -> DataType {
    reduction.data_type.or(map.map(TensorMap::data_type)).unwrap_or(DataType::U32)
}
