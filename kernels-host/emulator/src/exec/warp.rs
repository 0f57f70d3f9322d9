//! A warp: registers, and lanes grouped by where they are.
//!
//! The lanes at the smallest position run; the others wait until the running ones reach them.
//! Compilers place a join behind its arms, so lanes that diverged meet again at the join.

use std::fmt;

use super::copy::Copies;
use super::order::Recent;
use super::progress::Spin;
use super::warpgroup::TensorState;
use super::{ALL, Lanes};
use crate::instruction::{Class, Guard, Operand, Reg, Special, Type};
use crate::memory::Actors;
use crate::memory::mbarriers::Phase;
use crate::module::Entry;

/// A warp's time at its start. What others know below it is which of its relaxed arrivals at the cluster's barrier they
/// have met: that it has started, and the barriers that it had initialised and fenced.
pub(crate) const FIRST_EPOCH: u32 = 1 << 16;

/// Registers of a warp.
#[derive(Debug)]
pub(crate) struct Registers {
    /// One bit per lane.
    pub pred: Vec<u32>,
    pub narrow: Vec<Lanes<u32>>,
    pub wide: Vec<Lanes<u64>>,
}

/// Lanes that are at the same position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub pc: u32,
    pub mask: u32,
    /// The lanes that it waits for at a collective instruction; zero if it can run.
    pub waits_for: u32,
    /// It waits at a `bar.warp.sync`, which lanes may meet from different positions.
    pub at_barrier: bool,
    /// It waits at an `.aligned` instruction for the whole warp.
    pub aligned: bool,
    /// It waits for the cluster's barrier.
    pub at_cluster: bool,
    /// It sleeps until a phase of this mbarrier ends.
    pub watch: Option<Watch>,
}

/// What a `try_wait` sleeps for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    /// Address of the barrier in the block's shared memory.
    pub barrier: u32,
    pub phase: Phase,
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the mbarrier at byte {}", self.phase, self.barrier)
    }
}

impl Group {
    /// Lanes that can run.
    pub fn running(pc: u32, mask: u32) -> Self {
        Self::waiting(pc, mask, 0)
    }

    pub fn can_run(&self) -> bool {
        self.waits_for == 0 && self.watch.is_none()
    }

    /// Lanes that wait for others.
    pub fn waiting(pc: u32, mask: u32, waits_for: u32) -> Self {
        Self { pc, mask, waits_for, at_barrier: false, aligned: false, at_cluster: false, watch: None }
    }
}

/// What keeps a warp from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// At the named barrier of the block.
    Waiting(u32),
    /// Some of its lanes sleep, see [`Group::watch`]; none can run.
    Asleep,
    /// At the barrier of the cluster.
    AtCluster,
    /// At a `setmaxnreg` that needs so many more for each thread.
    ForRegisters(u32),
    Done,
}

/// A warp of a resident block.
#[derive(Debug)]
pub(crate) struct Warp {
    /// Number in the block.
    pub index: u32,
    /// Number in the cluster, block by block.
    pub slot: u32,
    pub registers: Registers,
    pub pc: u32,
    /// The lanes that run.
    pub active: u32,
    /// The lanes that have not exited.
    pub live: u32,
    /// All other live lanes.
    pub groups: Vec<Group>,
    /// Position at which running lanes meet a group.
    pub next_stop: u32,
    pub state: State,
    /// Vector clock over the warps of the cluster, by their slots, and what else [`Actors`] counts.
    pub clock: Vec<u32>,
    /// How often all lanes have met at a barrier.
    pub meetings: u32,
    /// The time of those that sleep is up: their `try_wait` answers no.
    pub expired: bool,
    pub copies: Copies,
    pub tensor: TensorState,
    pub identity: Identity,
    /// How often lanes have arrived at the cluster's barrier without a release.
    pub relaxed: u32,
    /// The first epoch since the lanes last met.
    pub since: u32,
    pub recent: Recent,
    pub spin: Spin,
    /// Lanes that poll and let the warp's others go first.
    pub behind: u32,
    /// Position and lanes that looked last at what others may change, and how often in a row.
    pub looks: (u32, u32, u32),
}

/// What special registers are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub block: [u32; 3],
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
    pub dynamic_shared: u32,
    pub total_shared: u32,
    /// Warps of a block.
    pub warps: u32,
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// The block's rank in its cluster.
    pub rank: u32,
    /// The block's number in the grid.
    pub number: u32,
    /// Its cluster's number in the grid.
    pub cluster_number: u32,
}

impl Identity {
    /// Warps of the cluster.
    pub fn cluster_warps(&self) -> u32 {
        self.cluster.iter().product::<u32>() * self.warps
    }
}

impl Warp {
    pub fn new(index: u32, entry: &Entry, identity: Identity, actors: Actors) -> Self {
        let registers = entry.registers;
        let threads: u32 = identity.threads.iter().product();
        let count = (threads - index * 32).min(32);
        let live = ALL >> (32 - count);
        let slot = identity.rank * identity.warps + index;
        let mut clock = vec![0; actors.entries()];
        clock[slot as usize] = FIRST_EPOCH;
        Self {
            index,
            slot,
            registers: Registers {
                pred: vec![0; registers[0] as usize],
                narrow: vec![[0; 32]; registers[1] as usize],
                wide: vec![[0; 32]; registers[2] as usize],
            },
            pc: 0,
            active: live,
            live,
            groups: Vec::new(),
            next_stop: u32::MAX,
            state: State::Ready,
            clock,
            meetings: 0,
            expired: false,
            copies: Copies::default(),
            tensor: TensorState::new(entry),
            identity,
            relaxed: 0,
            since: FIRST_EPOCH,
            recent: Recent::default(),
            spin: Spin::default(),
            behind: 0,
            looks: (0, 0, 0),
        }
    }

    // Time.

    /// The warp's own time.
    pub fn epoch(&self) -> u32 {
        self.clock[self.slot as usize]
    }

    /// `%tid` of a lane.
    pub fn thread(&self, lane: u32) -> [u32; 3] {
        let [x, y, _] = self.identity.threads;
        let flat = self.index * 32 + lane;
        [flat % x, flat / x % y, flat / x / y]
    }

    // Divergence.

    /// Sends the running lanes in `mask` to `pc`; the rest stay.
    pub fn leave(&mut self, mask: u32, pc: u32) {
        self.active &= !mask;
        self.groups.push(Group::running(pc, mask));
    }

    /// The running lanes wait at their instruction until `waits_for` are there.
    pub fn park(&mut self, waits_for: u32, at_barrier: bool) {
        self.groups.push(Group { at_barrier, ..Group::waiting(self.pc, self.active, waits_for) });
        self.active = 0;
    }

    /// The running lanes in `mask` sleep at their instruction until what they watch changes.
    pub fn sleep(&mut self, mask: u32, watch: Watch) {
        self.groups.push(Group { watch: Some(watch), ..Group::running(self.pc, mask) });
        self.active &= !mask;
        self.next_stop = 0;
    }

    /// A phase of `barrier` ended, or all time is up if there is none: who sleeps for it looks again.
    pub fn rouse(&mut self, barrier: Option<u32>) {
        let mut roused = false;
        for group in &mut self.groups {
            if group.watch.is_some_and(|watch| barrier.is_none_or(|barrier| barrier == watch.barrier)) {
                group.watch = None;
                roused = true;
            }
        }
        if roused && self.state == State::Asleep {
            self.state = State::Ready;
        }
    }

    /// The state of a warp none of whose lanes can run; `None` if that can never change.
    pub fn rest(&self) -> Option<State> {
        if self.groups.iter().any(|group| group.watch.is_some()) {
            return Some(State::Asleep);
        }
        self.groups.iter().all(|group| group.at_cluster).then_some(State::AtCluster)
    }

    /// What the warp does from now on is not what others have learnt of it.
    pub fn advance(&mut self) {
        self.clock[self.slot as usize] += 1;
    }

    /// Arrives without a release: what that tells the others.
    pub fn arrive_relaxed(&mut self) -> u32 {
        self.relaxed = (self.relaxed + 1).min(FIRST_EPOCH - 1);
        self.relaxed
    }

    /// All lanes have met: their accesses are ordered.
    pub fn meet(&mut self) {
        self.advance();
        self.meetings += 1;
        self.since = self.epoch();
    }

    /// Lets every waiting group look again.
    pub fn unpark(&mut self) {
        for group in self.groups.iter_mut().filter(|group| !group.at_cluster) {
            group.waits_for = 0;
        }
    }

    /// The lanes that wait for the cluster's barrier look again.
    pub fn cluster_barrier_completed(&mut self) {
        for group in self.groups.iter_mut().filter(|group| group.at_cluster) {
            group.at_cluster = false;
            group.waits_for = 0;
            self.next_stop = 0;
        }
        if matches!(self.state, State::AtCluster | State::Asleep) {
            self.state = State::Ready;
        }
    }

    /// The running lanes have looked at what other threads may change. If they come back to look, others of the warp go
    /// first: what they wait for may be one of those, whose position is behind theirs.
    pub fn look(&mut self, patience: u32) {
        let (pc, active, times) = self.looks;
        let again = (pc, active) == (self.pc, self.active);
        self.looks = (self.pc, self.active, if again { times + 1 } else { 1 });
        if self.looks.2 >= patience && self.groups.iter().any(Group::can_run) {
            self.behind |= self.active;
            self.next_stop = 0;
        }
    }

    /// Merges lanes that have met and picks those at the smallest position that can run. False if
    /// all wait.
    pub fn regroup(&mut self) -> bool {
        if self.active != 0 {
            self.groups.push(Group::running(self.pc, self.active));
            self.active = 0;
        }
        self.groups.sort_by_key(|group| group.pc);
        self.groups.dedup_by(|b, a| {
            let met = a.pc == b.pc && !(a.at_cluster || b.at_cluster);
            if met {
                a.mask |= b.mask;
                // Waiting lanes that meet others may be complete now; two waiting parts merge
                // once, since a merged group waits no more until it has looked.
                a.waits_for = 0;
                a.aligned = false;
                a.watch = None;
            }
            met
        });
        self.next_stop = u32::MAX;
        let ahead = self.groups.iter().position(|group| group.can_run() && group.mask & !self.behind != 0);
        let Some(at) = ahead.or_else(|| {
            self.behind = 0;
            self.groups.iter().position(Group::can_run)
        }) else {
            return false;
        };
        let group = self.groups.remove(at);
        (self.pc, self.active) = (group.pc, group.mask);
        if let Some(next) = self.groups.get(at) {
            self.next_stop = next.pc;
        }
        true
    }

    // Operands.

    pub fn guard(&self, guard: Guard) -> u32 {
        let mask = self.registers.pred[guard.pred as usize];
        if guard.negated { !mask } else { mask }
    }

    /// The low 32 bits of an operand.
    pub fn get32(&self, operand: Operand, env: &Env<'_>) -> Lanes<u32> {
        match operand {
            Operand::Reg(Reg { class: Class::B64, index }) => {
                super::map(&self.registers.wide[index as usize], |value| value as u32)
            }
            Operand::Reg(reg) => self.registers.narrow[reg.index as usize],
            Operand::Imm(bits) => [bits as u32; 32],
            Operand::Special(special) => self.special(special, env),
            Operand::Global(index) => [env.globals[index as usize] as u32; 32],
        }
    }

    /// 64 bits of an operand; narrower registers are zero-extended.
    pub fn get64(&self, operand: Operand, env: &Env<'_>) -> Lanes<u64> {
        match operand {
            Operand::Reg(Reg { class: Class::B64, index }) => self.registers.wide[index as usize],
            Operand::Reg(reg) => super::map(&self.registers.narrow[reg.index as usize], u64::from),
            Operand::Imm(bits) => [bits; 32],
            Operand::Special(Special::Clock) => [env.executed; 32],
            Operand::Special(special) => super::map(&self.special(special, env), u64::from),
            Operand::Global(index) => [env.globals[index as usize]; 32],
        }
    }

    /// An operand of up to 32 bits, extended to 32 by the signedness of `ty`.
    pub fn get(&self, operand: Operand, ty: Type, env: &Env<'_>) -> Lanes<u32> {
        let raw = self.get32(operand, env);
        match ty {
            Type::S(16) => super::map(&raw, |value| value as i16 as u32),
            Type::S(8) => super::map(&raw, |value| value as i8 as u32),
            _ if ty.bits() == 16 => super::map(&raw, |value| value & 0xffff),
            _ if ty.bits() == 8 => super::map(&raw, |value| value & 0xff),
            _ => raw,
        }
    }

    pub fn set32(&mut self, dst: Reg, mask: u32, values: &Lanes<u32>) {
        match dst.class {
            Class::B64 => self.set64(dst, mask, &super::map(values, u64::from)),
            Class::B16 => {
                let values = super::map(values, |value| value & 0xffff);
                merge(&mut self.registers.narrow[dst.index as usize], mask, &values);
            }
            _ => merge(&mut self.registers.narrow[dst.index as usize], mask, values),
        }
    }

    pub fn set64(&mut self, dst: Reg, mask: u32, values: &Lanes<u64>) {
        match dst.class {
            Class::B64 => merge(&mut self.registers.wide[dst.index as usize], mask, values),
            _ => self.set32(dst, mask, &super::map(values, |value| value as u32)),
        }
    }

    pub fn set_pred(&mut self, dst: Reg, mask: u32, values: u32) {
        let old = &mut self.registers.pred[dst.index as usize];
        *old = (*old & !mask) | (values & mask);
    }

    fn special(&self, special: Special, env: &Env<'_>) -> Lanes<u32> {
        use crate::instruction::Cmp;
        let each = |f: &dyn Fn(u32) -> u32| std::array::from_fn(|lane| f(lane as u32));
        let id = &self.identity;
        match special {
            Special::Tid(axis) => each(&|lane| self.thread(lane)[axis as usize]),
            Special::NTid(axis) => [id.threads[axis as usize]; 32],
            Special::CtaId(axis) => [id.block[axis as usize]; 32],
            Special::NCtaId(axis) => [id.blocks[axis as usize]; 32],
            Special::LaneId => each(&|lane| lane),
            Special::WarpId => [self.index; 32],
            Special::NWarpId => [id.warps; 32],
            Special::Clock => [env.executed as u32; 32],
            Special::LaneMask(Cmp::Eq) => each(&|lane| 1 << lane),
            Special::LaneMask(Cmp::Lt) => each(&|lane| (1 << lane) - 1),
            Special::LaneMask(Cmp::Le) => each(&|lane| (2_u64 << lane).wrapping_sub(1) as u32),
            Special::LaneMask(Cmp::Gt) => each(&|lane| !((2_u64 << lane).wrapping_sub(1) as u32)),
            Special::LaneMask(_) => each(&|lane| !((1 << lane) - 1)),
            Special::DynamicSharedBytes => [id.dynamic_shared; 32],
            Special::TotalSharedBytes => [id.total_shared; 32],
            Special::ClusterCtaId(axis) => [id.block[axis as usize] % id.cluster[axis as usize]; 32],
            Special::ClusterNCtaId(axis) => [id.cluster[axis as usize]; 32],
            Special::ClusterId(axis) => [id.block[axis as usize] / id.cluster[axis as usize]; 32],
            Special::NClusterId(axis) => [id.blocks[axis as usize] / id.cluster[axis as usize]; 32],
            Special::ClusterCtaRank => [id.rank; 32],
            Special::ClusterNCtaRank => [id.cluster.iter().product(); 32],
            Special::ClockHigh => [(env.executed >> 32) as u32; 32],
            Special::Constant(value) => [value; 32],
        }
    }
}

/// What all warps of a launch read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Env<'a> {
    /// Addresses of module variables.
    pub globals: &'a [u64],
    /// Warp instructions so far.
    pub executed: u64,
}

fn merge<T: Copy>(old: &mut Lanes<T>, mask: u32, new: &Lanes<T>) {
    if mask == ALL {
        *old = *new;
        return;
    }
    for lane in 0..32 {
        if mask >> lane & 1 != 0 {
            old[lane] = new[lane];
        }
    }
}
