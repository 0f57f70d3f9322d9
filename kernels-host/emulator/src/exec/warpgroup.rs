//! `wgmma` and `setmaxnreg`: what the four warps of a warpgroup execute together.
//!
//! Nothing makes warps of a warpgroup wait for each other, so each multiplies its 16 rows when it gets there. That they
//! all execute the same instructions on the same operands is checked against a log of the warpgroup's.
//!
//! A product is computed at its issue. What the hardware leaves open until the wait is made a fault: the registers it works
//! on may not be used, and the shared memory it reads may not be written.

use std::collections::VecDeque;

use super::cluster::Crew;
use super::step::{Executor, LaneFault};
use super::warp::{State, Warp};
use super::{ALL, Lanes};
use crate::FaultKind;
use crate::instruction::{OperandA, PredSource, Product, TensorRegister, TensorUse, WarpgroupOp};
use crate::memory::{CHUNK, Shared, Who};
use crate::module::Entry;
use crate::tensor::accumulate::Prepared;
use crate::tensor::element::Matrix;
use crate::tensor::wgmma::{Descriptor, Wgmma};

/// Warps of a warpgroup.
const WARPS: u32 = 4;
/// 32-bit registers of a multiprocessor.
const REGISTERS: u32 = 65_536;

/// What a warp's matrix instructions are doing.
#[derive(Debug, Default)]
pub(super) struct TensorState {
    /// `wgmma.fence` was executed.
    fenced: bool,
    /// How other instructions used the register since the last fence; by its id.
    used: Vec<Use>,
    /// Instructions in flight that work on the register; by its id.
    busy: Vec<u16>,
    /// Products of the group that the next commit closes.
    open: Vec<Issued>,
    /// Groups that were committed and not waited for.
    groups: VecDeque<Vec<Issued>>,
}

/// A register's use since the last fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    None,
    Written,
    Read,
}

/// A product in flight.
#[derive(Debug)]
struct Issued {
    pc: u32,
    form: Wgmma,
    ids: Vec<u16>,
    /// Descriptors of the operands in shared memory.
    a: Option<Descriptor>,
    b: Descriptor,
    /// Chunks that were read although they lie beyond their tile.
    beyond: Vec<u32>,
}

/// What the warps of the warpgroups of a block share.
#[derive(Debug, Default)]
pub(super) struct Warpgroups {
    logs: Vec<Log>,
    /// Registers per thread that each warp has, once one has executed `setmaxnreg`.
    registers: Vec<u32>,
    /// Registers that warps gave back, and who waits for some.
    free: u32,
    /// Registers were given back since the scheduler last looked.
    pub released: bool,
}

/// Instructions that some, not all, warps of a warpgroup have executed.
#[derive(Debug, Default)]
struct Log {
    /// Number of the first step that is kept.
    first: u64,
    steps: VecDeque<Step>,
    /// How many each warp has executed.
    done: [u64; WARPS as usize],
    exited: [bool; WARPS as usize],
    /// The last b that was unpacked, from these chunks: warps of a group mostly read the same.
    cached: Option<(Wgmma, Vec<u8>, Prepared)>,
}

/// One instruction, and its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    pc: u32,
    a: u64,
    b: u64,
}

impl Warpgroups {
    fn log(&mut self, warp: &Warp) -> &mut Log {
        let at = (warp.index / WARPS) as usize;
        if self.logs.len() <= at {
            self.logs.resize_with(at + 1, Log::default);
        }
        &mut self.logs[at]
    }
}

impl Log {
    /// Warp `warp` of the group executes `step`: the earlier one of another warp that it should be.
    fn enter(&mut self, warp: usize, step: Step) -> Result<(), Step> {
        let at = (self.done[warp] - self.first) as usize;
        match self.steps.get(at) {
            Some(earlier) if *earlier != step => return Err(*earlier),
            Some(_) => {}
            None => self.steps.push_back(step),
        }
        self.done[warp] += 1;
        let least = self.done.iter().copied().min().unwrap_or(0);
        while self.first < least {
            self.steps.pop_front();
            self.first += 1;
        }
        Ok(())
    }

    /// Another warp has exited and will not come to what warp `warp` executes now.
    fn deserted(&self, warp: usize) -> bool {
        self.exited.iter().zip(&self.done).any(|(exited, done)| *exited && *done <= self.done[warp])
    }

    /// What the others have executed and warp `warp` has not.
    fn missed(&self, warp: usize) -> Option<Step> {
        self.steps.get((self.done[warp] - self.first) as usize).copied()
    }
}

impl TensorState {
    pub fn new(entry: &Entry) -> Self {
        let count = entry.tensor_registers.names.len();
        Self { used: vec![Use::None; count], busy: vec![0; count], ..Self::default() }
    }

    /// All products that were not waited for.
    fn in_flight(&self) -> impl Iterator<Item = &Issued> {
        self.groups.iter().flatten().chain(&self.open)
    }
}

impl Executor<'_> {
    /// An instruction that is no matrix instruction uses these of the registers that such work on; if it `counts`, a
    /// fence must come after it.
    pub(super) fn use_tensor_registers(
        &self,
        warp: &mut Warp,
        uses: &[TensorUse],
        counts: bool,
    ) -> Result<(), LaneFault> {
        for TensorUse { id, writes } in uses {
            let used = &mut warp.tensor.used[*id as usize];
            if counts {
                *used = (*used).max(if *writes { Use::Written } else { Use::Read });
            }
            if warp.tensor.busy[*id as usize] > 0 {
                return Err(self.busy(warp, *id).into());
            }
        }
        Ok(())
    }

    fn busy(&self, warp: &Warp, id: u16) -> FaultKind {
        let issued = warp.tensor.in_flight().find(|issued| issued.ids.contains(&id));
        let line = issued.map_or(0, |issued| self.line(issued.pc));
        FaultKind::TensorRegister { register: self.name(id), line }
    }

    fn name(&self, id: u16) -> String {
        self.entry.tensor_registers.names[id as usize].clone()
    }

    /// Executes `op`, for which all lanes of the warp are here; false if it must wait, at this instruction.
    pub(super) fn warpgroup(&mut self, warp: &mut Warp, crew: &mut Crew, op: &WarpgroupOp) -> Result<bool, LaneFault> {
        match op {
            WarpgroupOp::Multiply(product) => {
                self.multiply_async(warp, crew, product)?;
                return Ok(true);
            }
            WarpgroupOp::SetRegisters { count, increase } => return self.set_registers(warp, crew, *count, *increase),
            _ => self.together(warp, crew, 0, 0)?,
        }
        match op {
            WarpgroupOp::Fence => {
                warp.tensor.fenced = true;
                warp.tensor.used.fill(Use::None);
            }
            WarpgroupOp::Commit => {
                let open = std::mem::take(&mut warp.tensor.open);
                warp.tensor.groups.push_back(open);
            }
            WarpgroupOp::Wait { pending } => {
                while warp.tensor.groups.len() > *pending as usize {
                    let group = warp.tensor.groups.pop_front().unwrap_or_default();
                    group.into_iter().for_each(|issued| self.finish(warp, crew, issued));
                }
            }
            WarpgroupOp::Multiply(_) | WarpgroupOp::SetRegisters { .. } => {}
        }
        Ok(true)
    }

    /// Checks that the warps of the group execute the same instructions.
    fn together(&self, warp: &Warp, crew: &mut Crew, a: u64, b: u64) -> Result<(), LaneFault> {
        let fault = |what| LaneFault::from(FaultKind::Warpgroup { what });
        if warp.index / WARPS * WARPS + WARPS > warp.identity.warps || warp.live != ALL {
            let threads: u32 = warp.identity.threads.iter().product();
            return Err(fault(format!("warp {} is not in a full warpgroup of {threads} threads", warp.index)));
        }
        let (log, step) = (crew.warpgroups.log(warp), Step { pc: warp.pc, a, b });
        if log.deserted((warp.index % WARPS) as usize) {
            return Err(fault("another warp of it has exited: all four must come".into()));
        }
        log.enter((warp.index % WARPS) as usize, step).map_err(|earlier| {
            let (line, opcode) = (self.line(earlier.pc), self.opcode(earlier.pc));
            fault(match earlier.pc == step.pc {
                true => format!("another warp of it has other descriptors here, {:#x} and {:#x}", earlier.a, earlier.b),
                false => format!("another warp of it came to line {line} ({opcode}) instead: all four must come"),
            })
        })
    }

    fn multiply_async(&mut self, warp: &mut Warp, crew: &mut Crew, product: &Product) -> Result<(), LaneFault> {
        let b = uniform(warp.get64(product.b, &self.env), "b")?;
        let a = match &product.a {
            OperandA::Shared(descriptor) => Some(uniform(warp.get64(*descriptor, &self.env), "a")?),
            OperandA::Registers(_) => None,
        };
        let keep = match product.keep {
            PredSource::Const(keep) => keep,
            PredSource::Reg(guard) if warp.guard(guard) == 0 => false,
            PredSource::Reg(guard) if warp.guard(guard) == ALL => true,
            PredSource::Reg(_) => {
                return Err(FaultKind::Warpgroup { what: "scale-d differs between lanes".into() }.into());
            }
        };
        self.together(warp, crew, a.unwrap_or(0), b)?;
        let inputs: &[TensorRegister] = match &product.a {
            OperandA::Shared(_) => &[],
            OperandA::Registers(registers) => registers,
        };
        self.check_registers(warp, product, inputs, keep)?;
        let operations = self.counters.tensor_operations.entry(product.form.element().name()).or_default();
        *operations += product.form.warp_operations();
        let (a, b) = (a.map(Descriptor::decode), Descriptor::decode(b));
        let mut beyond = Vec::new();
        let left = self.operand_a(warp, crew, product, a, &mut beyond)?;
        self.operand_b(warp, crew, &product.form, b, &mut beyond)?;
        let log = crew.warpgroups.log(warp);
        let Some((_, _, right)) = &log.cached else { return Ok(()) };
        let narrow = &mut warp.registers.narrow;
        let mut d: Vec<Lanes<u32>> = product.d.iter().map(|register| narrow[register.index as usize]).collect();
        // The decoder has counted the registers.
        let done = product.form.multiply_warp(&mut d, &left, right, keep);
        done.map_err(|error| FaultKind::Launch { what: error.to_string() })?;
        for (register, values) in product.d.iter().zip(d) {
            narrow[register.index as usize] = values;
        }
        let ids: Vec<u16> = product.d.iter().chain(inputs).map(|register| register.id).collect();
        for id in &ids {
            warp.tensor.busy[*id as usize] += 1;
        }
        warp.tensor.open.push(Issued { pc: warp.pc, form: product.form, ids, a, b, beyond });
        Ok(())
    }

    /// The registers are fenced, and no product in flight works on them but those that add to the same d.
    ///
    /// A d that does not count may have been written since the fence: compilers sink the zeros there that they
    /// initialise it with, and the assembler, who orders writes of one register, drops them.
    fn check_registers(
        &self,
        warp: &Warp,
        product: &Product,
        inputs: &[TensorRegister],
        keep: bool,
    ) -> Result<(), FaultKind> {
        let tensor = &warp.tensor;
        if !tensor.fenced {
            let what = "the first wgmma comes before any wgmma.fence".into();
            return Err(FaultKind::Warpgroup { what });
        }
        let allowed = |overwritten| if overwritten { Use::Written } else { Use::None };
        for (registers, allowed) in [(&*product.d, allowed(!keep)), (inputs, Use::None)] {
            if let Some(register) = registers.iter().find(|register| tensor.used[register.id as usize] > allowed) {
                return Err(FaultKind::TensorFence { register: self.name(register.id) });
            }
        }
        if let Some(register) = inputs.iter().find(|register| tensor.busy[register.id as usize] > 0) {
            // Only as an input of another product, too, may it be read.
            let written = |issued: &Issued| issued.ids[..issued.form.d_registers()].contains(&register.id);
            if tensor.in_flight().any(written) {
                return Err(self.busy(warp, register.id));
            }
        }
        if tensor.busy[product.d[0].id as usize] == 0 && product.d.iter().all(|r| tensor.busy[r.id as usize] == 0) {
            return Ok(());
        }
        let ids = || product.d.iter().map(|register| register.id);
        for issued in tensor.in_flight() {
            let same = issued.form.d_registers() == product.d.len()
                && ids().eq(issued.ids.iter().copied().take(product.d.len()));
            if let Some(id) = ids().find(|id| !same && issued.ids.contains(id)) {
                return Err(FaultKind::TensorRegister { register: self.name(id), line: self.line(issued.pc) });
            }
        }
        Ok(())
    }

    fn operand_a(
        &self,
        warp: &Warp,
        crew: &mut Crew,
        product: &Product,
        descriptor: Option<Descriptor>,
        beyond: &mut Vec<u32>,
    ) -> Result<Matrix, LaneFault> {
        match (&product.a, descriptor) {
            (OperandA::Registers(registers), _) => {
                let values = registers.map(|register| warp.registers.narrow[register.index as usize]);
                Ok(product.form.a_from_warp(&values))
            }
            (OperandA::Shared(_), descriptor) => {
                let (descriptor, rank) = (descriptor.unwrap_or(Descriptor::decode(0)), (warp.index % WARPS) as usize);
                let who = self.who(warp, 0);
                let first = product.form.places_of_a(descriptor, 0).next();
                let tile = first.and_then(|first| crew.shared.tile(u64::from(first), who));
                let read = |address: u32| chunk(&mut crew.shared, address, tile, who, beyond);
                Ok(product.form.load_a_of_warp(descriptor, rank, read)?)
            }
        }
    }

    /// Leaves b in the warpgroup's cache.
    fn operand_b(
        &self,
        warp: &Warp,
        crew: &mut Crew,
        form: &Wgmma,
        descriptor: Descriptor,
        beyond: &mut Vec<u32>,
    ) -> Result<(), LaneFault> {
        let who = self.who(warp, 0);
        let first = form.places_of_b(descriptor).next();
        let tile = first.and_then(|first| crew.shared.tile(u64::from(first), who));
        let mut bytes = Vec::with_capacity(form.d_registers() * 2 * CHUNK * 2);
        for address in form.places_of_b(descriptor) {
            bytes.extend_from_slice(&chunk(&mut crew.shared, address, tile, who, beyond)?);
        }
        let log = crew.warpgroups.log(warp);
        if log.cached.as_ref().is_some_and(|(cached, from, _)| cached == form && *from == bytes) {
            return Ok(());
        }
        let mut chunks = bytes.chunks_exact(CHUNK);
        let matrix = form.load_b::<LaneFault>(descriptor, |_| {
            let mut chunk = [0; CHUNK];
            chunk.copy_from_slice(chunks.next().unwrap_or(&[0; CHUNK]));
            Ok(chunk)
        })?;
        log.cached = Some((*form, bytes, form.prepare(matrix)));
        Ok(())
    }

    /// A product was waited for.
    fn finish(&self, warp: &mut Warp, crew: &mut Crew, issued: Issued) {
        for id in &issued.ids {
            warp.tensor.busy[*id as usize] -= 1;
        }
        let who = self.who(warp, 0);
        let rank = (warp.index % WARPS) as usize;
        let a = issued.a.into_iter().flat_map(|a| issued.form.places_of_a(a, rank));
        let mut beyond = issued.beyond.iter().peekable();
        // In the order in which they were begun.
        for address in a.chain(issued.form.places_of_b(issued.b)) {
            if beyond.next_if_eq(&&address).is_none() {
                crew.shared.finish_operand(u64::from(address), who);
            }
        }
    }

    /// The warp exits.
    pub(super) fn exit_warpgroup(&self, warp: &Warp, crew: &mut Crew) -> Result<(), FaultKind> {
        if let Some(issued) = warp.tensor.in_flight().next() {
            let line = self.line(issued.pc);
            return Err(FaultKind::Warpgroup {
                what: format!("the warp exits before the wgmma at line {line} is waited for"),
            });
        }
        if self.entry.tensor_registers.uses.is_empty() && crew.warpgroups.logs.is_empty() {
            return Ok(());
        }
        let log = crew.warpgroups.log(warp);
        let rank = (warp.index % WARPS) as usize;
        log.exited[rank] = true;
        match log.missed(rank) {
            None => Ok(()),
            Some(step) => {
                let (line, opcode) = (self.line(step.pc), self.opcode(step.pc));
                let what = format!("the warp exits without line {line} ({opcode}), which others of it executed");
                Err(FaultKind::Warpgroup { what })
            }
        }
    }

    /// `setmaxnreg`; false if the registers are not there yet.
    fn set_registers(
        &mut self,
        warp: &mut Warp,
        crew: &mut Crew,
        count: u32,
        increase: bool,
    ) -> Result<bool, LaneFault> {
        let groups = &mut crew.warpgroups;
        if groups.registers.is_empty() {
            groups.registers = vec![initial_registers(self.entry, warp); warp.identity.warps as usize];
        }
        let own = groups.registers[warp.index as usize];
        if if increase { count < own } else { count > own } {
            let what = format!("the threads have {own} registers: {} to {count}", if increase { "up" } else { "down" });
            return Err(FaultKind::Warpgroup { what }.into());
        }
        let wanted = count.saturating_sub(own);
        if wanted > groups.free {
            warp.state = State::ForRegisters(wanted);
            return Ok(false);
        }
        groups.free -= wanted;
        if count < own {
            groups.free += own - count;
            groups.released = true;
        }
        groups.registers[warp.index as usize] = count;
        self.together(warp, crew, 0, 0)?;
        Ok(true)
    }
}

/// The chunk of an operand at `address`, of the tile whose copy `tile` counted; `beyond` gets the address if it lies
/// beyond.
fn chunk(
    shared: &mut Shared,
    address: u32,
    tile: Option<u32>,
    who: Who<'_>,
    beyond: &mut Vec<u32>,
) -> Result<[u8; CHUNK], FaultKind> {
    match shared.is_beyond(u64::from(address), tile, who) {
        Some(found) => {
            beyond.push(address);
            Ok(found)
        }
        None => shared.begin_operand(u64::from(address), who),
    }
}

impl Warpgroups {
    /// "the pool has 56 registers per thread of a warp" if a warp waits for them.
    pub fn pool(&self) -> String {
        format!("setmaxnreg's pool holds {} registers for each thread of one warp", self.free)
    }
}

/// Registers per thread at launch: what the assembler may use within the entry's launch bounds, a multiple of eight.
fn initial_registers(entry: &Entry, warp: &Warp) -> u32 {
    let threads = entry.max_threads.unwrap_or(warp.identity.threads.iter().product()).next_multiple_of(32).max(32);
    let bound = REGISTERS / (threads * entry.min_blocks.unwrap_or(1).max(1));
    entry.max_registers.unwrap_or(255).min(bound) / 8 * 8
}

/// The value that all lanes have.
fn uniform(values: Lanes<u64>, operand: &str) -> Result<u64, FaultKind> {
    if values.iter().all(|value| *value == values[0]) {
        return Ok(values[0]);
    }
    Err(FaultKind::Warpgroup { what: format!("the descriptor of {operand} differs between lanes") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warps_of_a_group_execute_the_same_in_their_own_time() {
        let (mut log, step) = (Log::default(), |pc| Step { pc, a: 0, b: 0 });
        for pc in 0..5 {
            log.enter(0, step(pc)).unwrap();
        }
        for warp in 1..4 {
            for pc in 0..3 {
                log.enter(warp, step(pc)).unwrap();
            }
        }
        assert_eq!((log.first, log.steps.len()), (3, 2), "what all have executed is forgotten");
        assert_eq!(log.missed(0), None);
        assert_eq!(log.missed(2), Some(step(3)));
        assert_eq!(log.enter(2, step(4)), Err(step(3)));
    }
}
