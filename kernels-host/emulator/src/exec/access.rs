//! Loads, stores, atomics and asynchronous copies.

use super::cluster::{Cluster, Crew};
use super::copy::{Copy, CopyShape};
use super::float::canonical;
use super::step::{Executor, LaneFault};
use super::warp::Warp;
use super::{Lanes, half, lanes};
use crate::formats::{BF16, F16, Format};
use crate::instruction::{Address, AtomicOp, Op, Operand, Order, Reg, Space, Type};
use crate::memory::{PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES, Who};
use crate::{Access, FaultKind};

/// The widest vector access.
const MOST_ELEMENTS: usize = 4;
/// Strong reads in a row, by lanes that have left others of their warp, before those others go first. Few loops that do
/// not wait read so often without going elsewhere; most that wait are answered before.
const POLLS: u32 = 16;

impl Executor<'_> {
    /// Executes `op` for the lanes in `mask`; false if it is not an operation of this module.
    pub(super) fn access(
        &mut self,
        warp: &mut Warp,
        cluster: &mut Cluster,
        op: &Op,
        mask: u32,
    ) -> Result<bool, LaneFault> {
        match op {
            Op::Load { ty, dst, address, order } => self.load(warp, cluster, (*ty, dst), (*address, *order), mask)?,
            Op::Store { ty, src, address, order } => self.store(warp, cluster, (*ty, src), (*address, *order), mask)?,
            Op::Atomic { op, ty, dst, address, order, b, c } => {
                self.atomic(warp, cluster, (*op, *ty, *dst), (*address, *order), (*b, *c), mask)?;
            }
            Op::CopyAsync { bytes, to, from, from_bytes } => {
                let shape = CopyShape { bytes: *bytes, from_bytes: *from_bytes };
                self.issue_copies(warp, cluster.own(warp), shape, *to, *from, mask)?;
            }
            Op::CopyCommit => warp.copies.commit(mask),
            Op::CopyWait { pending } => {
                self.progress.changes += 1;
                for copy in warp.copies.take(mask, *pending) {
                    self.finish_copy(warp, cluster.own(warp), copy)?;
                }
            }
            Op::ToGeneric { space, ty, dst, a } => {
                let values = warp.get64(*a, &self.env);
                let moved = super::map(&values, |value| value.wrapping_add(window(*space)));
                set(warp, *ty, *dst, mask, &moved);
            }
            Op::FromGeneric { space, ty, dst, a } => {
                let values = warp.get64(*a, &self.env);
                let moved = super::map(&values, |value| value.wrapping_sub(window(*space)));
                set(warp, *ty, *dst, mask, &moved);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn addresses(&self, warp: &Warp, address: Address) -> Lanes<u64> {
        let base = warp.get64(address.base, &self.env);
        super::map(&base, |base| base.wrapping_add_signed(address.offset))
    }

    fn load(
        &mut self,
        warp: &mut Warp,
        cluster: &mut Cluster,
        (ty, dst): (Type, &[Option<Reg>]),
        (address, order): (Address, Order),
        mask: u32,
    ) -> Result<(), LaneFault> {
        let element = ty.bytes();
        let bytes = element * dst.len();
        let addresses = self.addresses(warp, address);
        if address.space != Space::Param {
            self.count_access(Access::Read, address.space, &addresses, mask, bytes);
        }
        let mut values = [[0_u64; 32]; MOST_ELEMENTS];
        let instant = (self.instant(warp, address.space, order), order);
        for lane in lanes(mask) {
            let (space, at) = resolve(address.space, addresses[lane]);
            let fault = |kind| LaneFault::at(lane, kind);
            aligned(Access::Read, at, bytes).map_err(fault)?;
            let data = match space {
                Space::Shared | Space::Cluster => cluster
                    .shared(space, Access::Read, at, bytes, self.who(warp, lane))
                    .and_then(|(shared, at)| shared.read(at, bytes, self.who(warp, lane))),
                Space::Param => param(self.params, at, bytes),
                _ => self.memory.load(at, bytes, &self.by(warp, lane, instant)),
            }
            .map_err(fault)?;
            for (value, bytes) in values.iter_mut().zip(data.chunks_exact(element)) {
                value[lane] = number(bytes, ty);
            }
        }
        for (dst, values) in dst.iter().zip(&values) {
            if let Some(dst) = dst {
                warp.set64(*dst, mask, values);
            }
        }
        if order.strong {
            warp.look(POLLS);
            for lane in lanes(mask) {
                self.acquire(warp, order, lane, resolve(address.space, addresses[lane]));
            }
        }
        Ok(())
    }

    fn store(
        &mut self,
        warp: &mut Warp,
        cluster: &mut Cluster,
        (ty, src): (Type, &[Operand]),
        (address, order): (Address, Order),
        mask: u32,
    ) -> Result<(), LaneFault> {
        let element = ty.bytes();
        let bytes = element * src.len();
        self.progress.changes += 1;
        let addresses = self.addresses(warp, address);
        self.count_access(Access::Write, address.space, &addresses, mask, bytes);
        let mut values = [[0_u64; 32]; MOST_ELEMENTS];
        for (values, operand) in values.iter_mut().zip(src) {
            *values = warp.get64(*operand, &self.env);
        }
        let instant = (self.instant(warp, address.space, order), order);
        let mut told = false;
        for lane in lanes(mask) {
            let mut data = [0_u8; 32];
            for (data, values) in data.chunks_exact_mut(element).zip(&values[..src.len()]) {
                data.copy_from_slice(&values[lane].to_le_bytes()[..element]);
            }
            let (space, at) = resolve(address.space, addresses[lane]);
            let fault = |kind| LaneFault::at(lane, kind);
            aligned(Access::Write, at, bytes).map_err(fault)?;
            match space {
                Space::Shared | Space::Cluster => cluster
                    .shared(space, Access::Write, at, bytes, self.who(warp, lane))
                    .and_then(|(shared, at)| shared.write(at, &data[..bytes], self.who(warp, lane))),
                Space::Param => Err(outside_params(Access::Write, at, bytes)),
                _ => self.memory.store(at, &data[..bytes], &self.by(warp, lane, instant)),
            }
            .map_err(fault)?;
            told |= self.release(warp, order, lane, (space, at));
        }
        if told {
            warp.advance();
        }
        Ok(())
    }

    fn atomic(
        &mut self,
        warp: &mut Warp,
        cluster: &mut Cluster,
        (op, ty, dst): (AtomicOp, Type, Option<Reg>),
        (address, order): (Address, Order),
        (b, c): (Operand, Option<Operand>),
        mask: u32,
    ) -> Result<(), LaneFault> {
        let bytes = ty.bytes();
        let addresses = self.addresses(warp, address);
        self.count_access(Access::Atomic, address.space, &addresses, mask, bytes);
        let b = warp.get64(b, &self.env);
        let c = c.map_or([0; 32], |c| warp.get64(c, &self.env));
        let mut old = [0_u64; 32];
        let instant = (self.instant(warp, address.space, order), order);
        let mut told = false;
        for lane in lanes(mask) {
            let who = self.who(warp, lane);
            let place = resolve(address.space, addresses[lane]);
            let (space, mut at) = place;
            let fault = |kind| LaneFault::at(lane, kind);
            aligned(Access::Atomic, at, bytes).map_err(fault)?;
            let mut shared = None;
            if matches!(space, Space::Shared | Space::Cluster) {
                let (found, there) = cluster.shared(space, Access::Atomic, at, bytes, who).map_err(fault)?;
                (shared, at) = (Some(found), there);
            }
            let data = match (&mut shared, space) {
                (Some(shared), _) => shared.modify(at, bytes, who),
                (_, Space::Param) => Err(outside_params(Access::Atomic, at, bytes)),
                _ => self.memory.modify(at, bytes, &self.by(warp, lane, instant)),
            }
            .map_err(fault)?;
            old[lane] = number(data, ty);
            let new = modified(op, ty, old[lane], b[lane], c[lane]).to_le_bytes();
            self.progress.changes += u64::from(new[..bytes] != old[lane].to_le_bytes()[..bytes]);
            match shared {
                Some(shared) => shared.store(at, &new[..bytes]),
                None => self.memory.write(at, &new[..bytes]).map_err(fault)?,
            }
            if dst.is_some() {
                self.acquire(warp, order, lane, place);
            }
            told |= self.release(warp, order, lane, place);
        }
        if told {
            warp.advance();
        }
        if let Some(dst) = dst {
            warp.look(POLLS);
            set(warp, ty, dst, mask, &old);
        }
        Ok(())
    }

    fn issue_copies(
        &mut self,
        warp: &mut Warp,
        crew: &mut Crew,
        shape: CopyShape,
        to: Address,
        from: Address,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let (to, from) = (self.addresses(warp, to), self.addresses(warp, from));
        let bytes = shape.bytes;
        self.progress.changes += 1;
        let from_bytes = shape.from_bytes.map_or([bytes; 32], |n| warp.get32(n, &self.env));
        let reading = lanes(mask).filter(|lane| from_bytes[*lane] > 0).fold(0, |all, lane| all | 1 << lane);
        self.count_access(Access::Read, Space::Global, &from, reading, bytes as usize);
        self.count_access(Access::Write, Space::Shared, &to, mask, bytes as usize);
        let instant = (self.instant(warp, Space::Global, Order::WEAK), Order::WEAK);
        for lane in lanes(mask) {
            let fault = |kind| LaneFault::at(lane, kind);
            aligned(Access::Write, to[lane], bytes as usize).map_err(fault)?;
            aligned(Access::Read, from[lane], bytes as usize).map_err(fault)?;
            let who = self.who(warp, lane);
            crew.shared.launch_copy(to[lane], bytes as usize, who).map_err(fault)?;
            let count = from_bytes[lane].min(bytes) as usize;
            if count > 0 {
                self.memory.load(from[lane], count, &self.by(warp, lane, instant)).map_err(fault)?;
            }
            let group = warp.copies.committed[lane];
            warp.copies.pending.push(Copy {
                lane: lane as u32,
                group,
                to: to[lane],
                from: from[lane],
                bytes,
                from_bytes: from_bytes[lane].min(bytes),
                landed: false,
                pc: warp.pc,
            });
        }
        Ok(())
    }

    /// Moves the data of a copy, now.
    pub(super) fn land_copy(&mut self, crew: &mut Crew, copy: &mut Copy) -> Result<(), LaneFault> {
        let fault = |kind| LaneFault { pc: Some(copy.pc), ..LaneFault::at(copy.lane as usize, kind) };
        let data = self.copied(copy).map_err(fault)?;
        crew.shared.store(copy.to, &data[..copy.bytes as usize]);
        self.progress.changes += 1;
        copy.landed = true;
        Ok(())
    }

    /// What a copy brings: zeros behind the bytes that come from memory.
    pub(super) fn copied(&self, copy: &Copy) -> Result<[u8; 16], FaultKind> {
        let mut data = [0_u8; 16];
        let count = copy.from_bytes as usize;
        if count > 0 {
            data[..count].copy_from_slice(self.memory.read(copy.from, count)?);
        }
        Ok(data)
    }

    fn finish_copy(&mut self, warp: &Warp, crew: &mut Crew, mut copy: Copy) -> Result<(), LaneFault> {
        if !copy.landed {
            self.land_copy(crew, &mut copy)?;
        }
        let lane = copy.lane as usize;
        let who = self.who(warp, lane);
        crew.shared.land_copy(copy.to, copy.bytes as usize, who).map_err(|kind| LaneFault::at(lane, kind))
    }

    pub(super) fn who<'w>(&self, warp: &'w Warp, lane: usize) -> Who<'w> {
        let line = self.line(warp.pc);
        let identity = &warp.identity;
        let (rank, per_block) = (identity.rank, identity.warps);
        Who { warp: warp.slot, lane: lane as u32, clock: &warp.clock, meetings: warp.meetings, line, rank, per_block }
    }
}

fn window(space: Space) -> u64 {
    match space {
        Space::Shared | Space::Cluster => SHARED_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Global | Space::Generic => 0,
    }
}

/// The state space that an address is in, and the address there.
pub(super) fn resolve(space: Space, address: u64) -> (Space, u64) {
    match space {
        Space::Generic if (SHARED_WINDOW..SHARED_WINDOW + WINDOW_BYTES).contains(&address) => {
            (Space::Cluster, address - SHARED_WINDOW)
        }
        Space::Generic if (PARAM_WINDOW..PARAM_WINDOW + WINDOW_BYTES).contains(&address) => {
            (Space::Param, address - PARAM_WINDOW)
        }
        Space::Generic => (Space::Global, address),
        space => (space, address),
    }
}

fn aligned(access: Access, address: u64, bytes: usize) -> Result<(), FaultKind> {
    if address.is_multiple_of(bytes as u64) {
        return Ok(());
    }
    Err(FaultKind::Misaligned { access, bytes, address })
}

pub(super) fn param(params: &[u8], address: u64, bytes: usize) -> Result<&[u8], FaultKind> {
    let range = address as usize..(address as usize).saturating_add(bytes);
    params.get(range).ok_or_else(|| outside_params(Access::Read, address, bytes))
}

fn outside_params(access: Access, address: u64, bytes: usize) -> FaultKind {
    let place = "parameters can only be read, within their bytes".into();
    FaultKind::OutOfBounds { access, bytes, address, place }
}

/// Little-endian bytes of a number, sign-extended for signed types.
fn number(bytes: &[u8], ty: Type) -> u64 {
    let value = match *bytes {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    };
    let unused = 64 - ty.bits();
    if ty.is_signed() { ((value << unused) as i64 >> unused) as u64 } else { value }
}

fn set(warp: &mut Warp, ty: Type, dst: Reg, mask: u32, values: &Lanes<u64>) {
    if ty.bits() == 64 {
        warp.set64(dst, mask, values);
    } else {
        warp.set32(dst, mask, &super::map(values, |value| value as u32));
    }
}

/// Sums of one or two halves.
fn half_sums(format: Format, ty: Type, a: u64, b: u64) -> u64 {
    let sum = |shift: u32| half::add(format, (a >> shift) as u32 & 0xffff, (b >> shift) as u32 & 0xffff) << shift;
    u64::from(if ty.bits() == 32 { sum(0) | sum(16) } else { sum(0) })
}

/// What an atomic operation leaves in memory. `old` is sign-extended for signed types.
fn modified(op: AtomicOp, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    let unused = 64 - ty.bits();
    let keep = u64::MAX >> unused;
    let b = b & keep;
    let signed = |value: u64| (value << unused) as i64 >> unused;
    match op {
        AtomicOp::Add if ty == Type::F32 => u64::from(canonical(f32::from_bits(old as u32) + f32::from_bits(b as u32))),
        AtomicOp::Add if ty == Type::F64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        AtomicOp::Add if matches!(ty, Type::F16 | Type::F16x2) => half_sums(F16, ty, old, b),
        AtomicOp::Add if matches!(ty, Type::BF16 | Type::BF16x2) => half_sums(BF16, ty, old, b),
        AtomicOp::Add => old.wrapping_add(b),
        AtomicOp::Min if ty.is_signed() => signed(old).min(signed(b)) as u64,
        AtomicOp::Max if ty.is_signed() => signed(old).max(signed(b)) as u64,
        AtomicOp::Min => old.min(b),
        AtomicOp::Max => old.max(b),
        AtomicOp::And => old & b,
        AtomicOp::Or => old | b,
        AtomicOp::Xor => old ^ b,
        AtomicOp::Exch => b,
        AtomicOp::Cas if old & keep == b => c,
        AtomicOp::Cas => old,
        AtomicOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomicOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}
