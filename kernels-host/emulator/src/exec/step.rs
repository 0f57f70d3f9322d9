//! One instruction of one warp.

use super::cluster::Cluster;
use super::progress::Progress;
use super::warp::{Env, State, Warp, Watch};
use super::{alu, collective, convert, lanes, partial};
use crate::asynchronous::Async;
use crate::instruction::{Collective, Instruction, Op, Operand};
use crate::memory::Memory;
use crate::module::Entry;
use crate::{Counters, Fault, FaultKind, Site, SourceLine};

/// What executes a launch.
pub(super) struct Executor<'a> {
    pub entry: &'a Entry,
    pub memory: &'a mut Memory,
    pub params: &'a [u8],
    pub env: Env<'a>,
    /// Executions by kind of instruction.
    pub counts: Vec<u64>,
    pub counters: Counters,
    pub limit: u64,
    /// How often in a row all sleepers were told that their time is up.
    pub expiries: u32,
    pub progress: Progress,
}

/// A fault before its site is known.
#[derive(Debug)]
pub(super) struct LaneFault {
    pub kind: FaultKind,
    /// The first running lane if it is not given.
    pub lane: Option<usize>,
    /// The warp's position if it is not given.
    pub pc: Option<u32>,
}

impl LaneFault {
    pub fn at(lane: usize, kind: FaultKind) -> Self {
        Self { kind, lane: Some(lane), pc: None }
    }
}

impl From<FaultKind> for LaneFault {
    fn from(kind: FaultKind) -> Self {
        Self { kind, lane: None, pc: None }
    }
}

impl<'a> Executor<'a> {
    /// Runs `warp` for `budget` instructions, or until it must wait.
    pub fn run(&mut self, warp: &mut Warp, cluster: &mut Cluster, budget: u32) -> Result<(), Fault> {
        for _ in 0..budget {
            if warp.state != State::Ready || !cluster.own(warp).barriers.released.is_empty() {
                break;
            }
            if (warp.active == 0 || warp.pc >= warp.next_stop) && !warp.regroup() {
                if let Some(state) = warp.rest() {
                    warp.state = state;
                    break;
                }
                let waits = self.waits(warp);
                return Err(self.fault(warp, FaultKind::Divergent { waits }.into()));
            }
            self.step(warp, cluster).map_err(|fault| self.fault(warp, fault))?;
        }
        Ok(())
    }

    fn step(&mut self, warp: &mut Warp, cluster: &mut Cluster) -> Result<(), LaneFault> {
        let entry = self.entry;
        let Some(instruction) = entry.instructions.get(warp.pc as usize) else {
            return self.exit(warp, cluster, warp.active);
        };
        let mask = match instruction.guard {
            Some(guard) => warp.active & warp.guard(guard),
            None => warp.active,
        };
        if mask == 0 {
            warp.pc += 1;
            return Ok(());
        }
        self.count(instruction)?;
        if let Some(ids) = entry.tensor_registers.uses.get(warp.pc as usize)
            && !ids.is_empty()
        {
            // A copy only renames: the assembler leaves none of those that LLVM and inline assembly put between a
            // fence and the products that it is for.
            let copies = matches!(instruction.op, Op::Mov { .. });
            self.use_tensor_registers(warp, ids, !copies)?;
        }
        if alu::execute(warp, &self.env, &instruction.op, mask) || self.access(warp, cluster, &instruction.op, mask)? {
            warp.pc += 1;
            return Ok(());
        }
        self.control(warp, cluster, instruction, mask)
    }

    fn count(&mut self, instruction: &Instruction) -> Result<(), LaneFault> {
        self.counts[instruction.kind as usize] += 1;
        self.env.executed += 1;
        if self.env.executed > self.limit {
            return Err(FaultKind::Limit { limit: self.limit }.into());
        }
        Ok(())
    }

    /// Takes an execution back that will be repeated.
    pub fn uncount(&mut self, pc: u32) {
        self.counts[self.entry.instructions[pc as usize].kind as usize] -= 1;
    }

    fn control(
        &mut self,
        warp: &mut Warp,
        cluster: &mut Cluster,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), LaneFault> {
        if others_see(&instruction.op) {
            self.progress.changes += 1;
        }
        match &instruction.op {
            Op::Cvt(cvt) => convert::execute(warp, &self.env, cvt, mask),
            Op::Branch { target } => {
                if mask == warp.active {
                    warp.pc = *target;
                } else {
                    warp.leave(mask, *target);
                    warp.pc += 1;
                }
                if !warp.groups.is_empty() {
                    // Force a look at who is first now.
                    warp.next_stop = 0;
                }
                return Ok(());
            }
            Op::Exit => return self.exit(warp, cluster, mask),
            Op::Fence { .. } | Op::GridDependency { .. } => self.order(warp, &instruction.op, mask),
            Op::Trap => return Err(FaultKind::Trap.into()),
            Op::ActiveMask { dst } => warp.set32(*dst, mask, &[mask; 32]),
            Op::Collective { what, mask: members } => {
                return self.collective(warp, what, *members, mask);
            }
            Op::Barrier { wait, id, count } => {
                return self.barrier(warp, cluster, (*wait, *id, *count), mask);
            }
            Op::LoadMatrix { .. } | Op::StoreMatrix { .. } | Op::Mma(_) => {
                if !self.converged(warp, mask)? {
                    return Ok(());
                }
                partial::whole(mask)?;
                self.matrix(warp, cluster.own(warp), &instruction.op)?;
            }
            Op::Cluster { what, aligned } => {
                if *aligned && !self.converged(warp, mask)? {
                    return Ok(());
                }
                if !self.cluster(warp, cluster, what, mask)? {
                    // It will be executed, and counted, again.
                    self.counts[instruction.kind as usize] -= 1;
                    self.env.executed -= 1;
                    return Ok(());
                }
            }
            Op::Warpgroup(op) => {
                if !self.converged(warp, mask)? {
                    return Ok(());
                }
                if !self.warpgroup(warp, cluster.own(warp), op)? {
                    self.counts[instruction.kind as usize] -= 1;
                    self.env.executed -= 1;
                    return Ok(());
                }
            }
            Op::Async(op) => return self.asynchronous(warp, cluster, op, mask),
            _ => {}
        }
        warp.pc += 1;
        Ok(())
    }

    fn exit(&mut self, warp: &mut Warp, cluster: &mut Cluster, mask: u32) -> Result<(), LaneFault> {
        self.progress.changes += 1;
        self.check_exit(warp, mask)?;
        warp.live &= !mask;
        warp.active &= !mask;
        warp.pc += 1;
        // Those who wait for the lanes that left need not any longer.
        warp.unpark();
        warp.next_stop = 0;
        cluster.barrier.exit(warp.slot as usize, mask);
        if warp.live == 0 {
            warp.state = State::Done;
            self.exit_warpgroup(warp, cluster.own(warp))?;
            cluster.own(warp).exit(&warp.clock, warp.identity.warps)?;
        } else if warp.active == 0 && warp.groups.is_empty() {
            return Err(FaultKind::Divergent { waits: self.waits(warp) }.into());
        }
        Ok(())
    }

    fn barrier(
        &mut self,
        warp: &mut Warp,
        cluster: &mut Cluster,
        (wait, id, count): (bool, Operand, Option<Operand>),
        mask: u32,
    ) -> Result<(), LaneFault> {
        if !self.converged(warp, mask)? {
            return Ok(());
        }
        let first = mask.trailing_zeros() as usize;
        let id = warp.get32(id, &self.env)[first];
        let count = count.map(|count| warp.get32(count, &self.env)[first]);
        if wait {
            self.counters.barrier_waits += 1;
            warp.state = State::Waiting(id);
        } else {
            warp.pc += 1;
        }
        let barriers = &mut cluster.own(warp).barriers;
        barriers.arrive(id, count, warp.index, &warp.clock, wait).map_err(|what| FaultKind::Barrier { what })?;
        warp.meet();
        Ok(())
    }

    fn collective(&mut self, warp: &mut Warp, what: &Collective, members: Operand, mask: u32) -> Result<(), LaneFault> {
        exclude(warp, mask);
        let members = warp.get32(members, &self.env);
        for lane in lanes(mask) {
            if members[lane] >> lane & 1 == 0 {
                let what = format!("lane {lane} is not in its member mask {:#010x}", members[lane]);
                return Err(LaneFault::at(lane, FaultKind::Barrier { what }));
            }
        }
        let wanted = lanes(mask).fold(0, |all, lane| all | members[lane]) & warp.live;
        let barrier = matches!(what, Collective::Barrier);
        if wanted & !mask != 0 {
            warp.park(wanted, barrier);
            if barrier {
                meet(warp, wanted);
            } else {
                // It will be executed, and counted, again.
                self.uncount(warp.pc);
                self.env.executed -= 1;
            }
            return Ok(());
        }
        // Several masks may be here at once, each with all of its lanes.
        let mut left = mask;
        while left != 0 {
            let group = members[left.trailing_zeros() as usize] & warp.live;
            collective::execute(warp, &self.env, what, group & left)?;
            left &= !group;
        }
        if barrier {
            warp.meet();
        }
        warp.pc += 1;
        Ok(())
    }

    // Faults.

    pub fn line(&self, pc: u32) -> u32 {
        let code = &self.entry.instructions;
        code.get(pc as usize).or(code.last()).map_or(0, |instruction| instruction.line)
    }

    /// The opcode at `pc`.
    pub fn opcode(&self, pc: u32) -> &'a str {
        let instruction = self.entry.instructions.get(pc as usize);
        instruction.map_or("the end", |found| self.entry.kinds[found.kind as usize].as_str())
    }

    /// Which lanes of a warp wait where.
    pub fn waits(&self, warp: &Warp) -> String {
        let wait = |(pc, mask, watch): (u32, u32, Option<Watch>)| {
            let watch = watch.map_or(String::new(), |watch| format!(" for {watch}"));
            format!("lanes {mask:#010x} at line {} ({}){watch}", self.line(pc), self.opcode(pc))
        };
        let running = (warp.active != 0).then_some((warp.pc, warp.active, None));
        let groups = warp.groups.iter().map(|group| (group.pc, group.mask, group.watch));
        let all: Vec<_> = running.into_iter().chain(groups).map(wait).collect();
        format!("warp {} has {}", warp.index, all.join(", "))
    }

    pub fn fault(&self, warp: &Warp, fault: LaneFault) -> Fault {
        let first = warp.groups.first();
        let running = warp.active != 0;
        let (pc, mask) = match first {
            Some(group) if !running => (group.pc, group.mask),
            _ => (warp.pc, warp.active),
        };
        let pc = fault.pc.unwrap_or(pc);
        let lane = fault.lane.unwrap_or(mask.trailing_zeros() as usize & 31);
        let site = Site {
            entry: self.entry.name.clone(),
            line: self.line(pc),
            instruction: self.opcode(pc).to_owned(),
            source: self.source(self.entry.instructions.get(pc as usize)),
            block: warp.identity.block,
            thread: warp.thread(lane as u32),
        };
        let mut kind = fault.kind;
        if let FaultKind::Race { line, other_source, .. } = &mut kind {
            *other_source = self.source(self.entry.instructions.iter().find(|found| found.line == *line));
        }
        Fault { kind, site: Some(Box::new(site)) }
    }

    /// The source lines that the module's text names for an instruction.
    pub fn source(&self, instruction: Option<&Instruction>) -> Vec<SourceLine> {
        let at = instruction.and_then(|instruction| instruction.source);
        at.and_then(|at| self.entry.sources.get(at as usize)).cloned().unwrap_or_default()
    }
}

/// Whether other threads could see that the instruction, none of `access`, was executed; if unsure, yes.
fn others_see(op: &Op) -> bool {
    match op {
        Op::Cvt(_) | Op::Branch { .. } | Op::ActiveMask { .. } | Op::Collective { .. } => false,
        Op::Fence { .. } | Op::Nothing | Op::LoadMatrix { .. } | Op::Mma(_) => false,
        Op::Async(op) => !matches!(**op, Async::Wait(_) | Async::FenceProxy { .. } | Async::PendingCount { .. }),
        _ => true,
    }
}

/// Sends the running lanes outside `mask` past the instruction.
fn exclude(warp: &mut Warp, mask: u32) {
    let others = warp.active & !mask;
    if others != 0 {
        warp.leave(others, warp.pc + 1);
        warp.next_stop = 0;
    }
}

/// Lets the lanes that wait at `bar.warp.sync`, perhaps at several, go on if all have come.
fn meet(warp: &mut Warp, wanted: u32) {
    let at_barrier = warp.groups.iter().filter(|group| group.at_barrier && group.waits_for == wanted);
    if at_barrier.fold(0, |all, group| all | group.mask) & wanted != wanted {
        return;
    }
    for group in &mut warp.groups {
        if group.at_barrier && group.waits_for == wanted {
            group.pc += 1;
            group.waits_for = 0;
            group.at_barrier = false;
        }
    }
    warp.meet();
}
