//! A launch: which blocks are resident and which warp runs next.

use super::barrier::Barriers;
use super::step::{Crew, Executor};
use super::warp::{Env, Identity, State, Warp};
use crate::device::{Grid, Report};
use crate::memory::{Geometry, Memory, Shared};
use crate::module::Entry;
use crate::{Fault, FaultKind};

/// A warp runs this many instructions at most before the next is drawn.
const LONGEST_TURN: u64 = 96;

/// What a launch is.
pub(crate) struct Setup<'a> {
    pub entry: &'a Entry,
    pub grid: Grid,
    pub params: &'a [u8],
    pub globals: &'a [u64],
    pub shared_bytes: usize,
    pub seed: u64,
    pub limit: u64,
    /// Blocks that run at once.
    pub resident: usize,
    /// The launch may begin before the one before it is finished.
    pub dependent: bool,
}

/// A resident block.
struct Block {
    warps: Vec<Warp>,
    crew: Crew,
}

/// Runs all blocks; the report, or the first fault.
pub(crate) fn run(setup: &Setup<'_>, memory: &mut Memory) -> Result<Report, Fault> {
    let mut executor = Executor {
        entry: setup.entry,
        memory,
        params: setup.params,
        env: Env { globals: setup.globals, executed: 0 },
        counts: vec![0; setup.entry.kinds.len()],
        limit: setup.limit,
    };
    let warps = setup.grid.threads.iter().product::<u32>().div_ceil(32);
    let geometry = Geometry { blocks: setup.grid.blocks, warps };
    executor.memory.begin_launch(&setup.entry.name, geometry, setup.dependent);
    let mut random = Random(setup.seed);
    let total: u64 = setup.grid.blocks.iter().map(|n| u64::from(*n)).product();
    let mut next = 0;
    let mut blocks: Vec<Block> = Vec::new();
    while next < total || !blocks.is_empty() {
        while next < total && blocks.len() < setup.resident {
            blocks.push(Block::new(setup, next));
            next += 1;
        }
        turn(&mut executor, &mut blocks, &mut random)?;
        blocks.retain(|block| block.crew.barriers.live > 0);
    }
    let kinds = setup.entry.kinds.iter().cloned().zip(executor.counts);
    Ok(Report { instructions: kinds.filter(|(_, count)| *count > 0).collect() })
}

/// Draws a warp that can run, lets some of its copies land, and runs it for a while.
fn turn(executor: &mut Executor<'_>, blocks: &mut [Block], random: &mut Random) -> Result<(), Fault> {
    let ready = |warp: &Warp| warp.state == State::Ready;
    let count: usize = blocks.iter().map(|b| b.warps.iter().filter(|w| ready(w)).count()).sum();
    if count == 0 {
        return Err(deadlock(executor, blocks));
    }
    let mut pick = random.below(count as u64) as usize;
    for block in blocks {
        let Some(at) = nth(&block.warps, pick, ready) else {
            pick -= block.warps.iter().filter(|warp| ready(warp)).count();
            continue;
        };
        let warp = &mut block.warps[at];
        land_some(executor, warp, &mut block.crew, random)?;
        let budget = 1 + random.below(LONGEST_TURN) as u32;
        executor.run(warp, &mut block.crew, budget)?;
        wake(block);
        return Ok(());
    }
    Ok(())
}

fn nth(warps: &[Warp], pick: usize, ready: impl Fn(&Warp) -> bool) -> Option<usize> {
    warps.iter().enumerate().filter(|(_, warp)| ready(warp)).nth(pick).map(|(at, _)| at)
}

/// Half of the time, the data of one in two copies in flight arrive.
fn land_some(executor: &mut Executor<'_>, warp: &mut Warp, crew: &mut Crew, random: &mut Random) -> Result<(), Fault> {
    if warp.copies.pending.is_empty() || random.below(2) == 0 {
        return Ok(());
    }
    let mut pending = std::mem::take(&mut warp.copies.pending);
    for copy in pending.iter_mut().filter(|copy| !copy.landed) {
        if random.below(2) == 0 {
            executor.land_copy(crew, copy).map_err(|fault| executor.fault(warp, fault))?;
        }
    }
    warp.copies.pending = pending;
    Ok(())
}

/// Lets the warps go on whose barrier is complete.
fn wake(block: &mut Block) {
    for (index, clock) in block.crew.barriers.released.drain(..) {
        let warp = &mut block.warps[index as usize];
        for (own, learnt) in warp.clock.iter_mut().zip(&clock) {
            *own = (*own).max(*learnt);
        }
        warp.pc += 1;
        warp.state = State::Ready;
    }
}

fn deadlock(executor: &Executor<'_>, blocks: &[Block]) -> Fault {
    let mut waits = Vec::new();
    let mut first = None;
    for block in blocks {
        let waiting = |warp: &&Warp| matches!(warp.state, State::Waiting(_));
        for warp in block.warps.iter().filter(waiting) {
            first.get_or_insert(warp);
            waits.push(format!("block {:?}: {}", warp.identity.block, executor.waits(warp)));
        }
        waits.extend(block.crew.barriers.open());
    }
    let kind = FaultKind::Deadlock { waits: waits.join("; ") };
    match first {
        Some(warp) => executor.fault(warp, kind.into()),
        None => kind.into(),
    }
}

impl Block {
    fn new(setup: &Setup<'_>, number: u64) -> Self {
        let [x, y, _] = setup.grid.blocks.map(u64::from);
        let block = [number % x, number / x % y, number / x / y].map(|n| n as u32);
        let threads: u32 = setup.grid.threads.iter().product();
        let warps = threads.div_ceil(32);
        let shared = setup.entry.static_shared + setup.shared_bytes;
        let identity = Identity {
            block,
            blocks: setup.grid.blocks,
            threads: setup.grid.threads,
            dynamic_shared: setup.shared_bytes as u32,
            total_shared: shared as u32,
            warps,
            number: number as u32,
            cluster_number: number as u32,
        };
        let warp = |index| Warp::new(index, setup.entry.registers, identity);
        Self {
            warps: (0..warps).map(warp).collect(),
            crew: Crew { shared: Shared::new(shared), barriers: Barriers::new(warps) },
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}
