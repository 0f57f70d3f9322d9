//! A launch: clusters of blocks, and which warp runs next.

use super::cluster::Cluster;
use super::progress::Progress;
use super::schedule::{Random, Schedule};
use super::step::{Executor, LaneFault};
use super::warp::{Env, Identity, State, Warp};
use crate::device::{Grid, Report};
use crate::memory::{Actors, Geometry, Memory};
use crate::module::Entry;
use crate::{Counters, Fault, FaultKind};

/// A warp runs this many instructions at most before the next is drawn.
const LONGEST_TURN: u64 = 96;
/// Warps that the report of a deadlock names.
const MOST_NAMED: usize = 24;

/// Entries for the mbarriers of a block in the clocks, if the kernel has any. Our largest ring has 28.
const MBARRIERS: u32 = 64;
/// Turns without a finished cluster after which copies land for clusters that wait for nothing else: one that spins until
/// such a cluster has written something always has a turn.
const PATIENCE: u32 = 512;
/// How often in a row all sleepers may be told that their time is up before that is a deadlock.
const MOST_EXPIRIES: u32 = 64;

/// What a launch is.
pub(crate) struct Setup<'a> {
    pub entry: &'a Entry,
    pub grid: Grid,
    /// Blocks of a cluster, per axis; divides the grid.
    pub cluster: [u32; 3],
    pub params: &'a [u8],
    pub globals: &'a [u64],
    pub shared_bytes: usize,
    pub seed: u64,
    pub limit: u64,
    /// Clusters that run at once.
    pub resident: usize,
    /// The launch may begin before the one before it is finished.
    pub dependent: bool,
}

/// A resident cluster.
struct Resident {
    /// By their slots.
    warps: Vec<Warp>,
    cluster: Cluster,
}

/// Runs all blocks; the report, or the first fault.
pub(crate) fn run(setup: &Setup<'_>, memory: &mut Memory) -> Result<Report, Fault> {
    let mut executor = Executor {
        entry: setup.entry,
        memory,
        params: setup.params,
        env: Env { globals: setup.globals, executed: 0 },
        counts: vec![0; setup.entry.kinds.len()],
        counters: Counters::default(),
        limit: setup.limit,
        expiries: 0,
        progress: Progress::default(),
    };
    let warps = setup.grid.threads.iter().product::<u32>().div_ceil(32);
    let geometry = Geometry { blocks: setup.grid.blocks, warps };
    executor.memory.begin_launch(&setup.entry.name, geometry, setup.dependent);
    let mut random = Random(setup.seed);
    let blocks: u32 = setup.cluster.iter().product();
    let total = setup.clusters().map(u64::from).iter().product();
    let mut schedule = Schedule::new(total, blocks as usize, setup.resident, &mut random);
    let mut turns = 0;
    while !schedule.finished() {
        turns += 1;
        if turns % PATIENCE == 0 {
            land_for_waiting(&mut executor, schedule.started_mut(), &mut random)?;
        }
        let focus = schedule.focus(&mut random, |number| Resident::new(setup, number));
        match turn(&mut executor, focus, &mut random)? {
            Turn::Ran => {}
            Turn::Finished(at) => {
                turns = 0;
                schedule.finish(at);
            }
            Turn::Stuck => {
                if !schedule.refocus(|resident| resident.ready().next().is_some())
                    && !idle(&mut executor, schedule.started_mut(), &mut random)?
                {
                    return Err(deadlock(&mut executor, schedule.started_mut()));
                }
            }
            Turn::Quiet => {
                let circles = |resident: &Resident| resident.warps.iter().all(|warp| executor.goes_round(warp));
                let stuck = schedule.full() && schedule.started().iter().all(circles);
                if executor.too_quiet() || stuck && !idle(&mut executor, schedule.started_mut(), &mut random)? {
                    return Err(deadlock(&mut executor, schedule.started_mut()));
                }
            }
        }
    }
    let kinds = setup.entry.kinds.iter().cloned().zip(executor.counts);
    let mut counters = executor.counters;
    (counters.global_bytes_read, counters.global_bytes_written) = executor.memory.bytes_touched();
    Ok(Report { instructions: kinds.filter(|(_, count)| *count > 0).collect(), counters })
}

/// How a turn ended.
enum Turn {
    Ran,
    /// All warps of this cluster have exited.
    Finished(usize),
    /// No warp could run.
    Stuck,
    /// Nothing has changed for a while.
    Quiet,
}

/// Draws a warp that can run, lets some of its copies land, and runs it for a while.
fn turn(executor: &mut Executor<'_>, focus: &mut [Resident], random: &mut Random) -> Result<Turn, Fault> {
    let count: usize = focus.iter().map(|resident| resident.ready().count()).sum();
    if count == 0 {
        return Ok(Turn::Stuck);
    }
    let mut pick = random.below(count as u64) as usize;
    for (at, resident) in focus.iter_mut().enumerate() {
        let Some(warp) = resident.ready().nth(pick) else {
            pick -= resident.ready().count();
            continue;
        };
        let Resident { warps, cluster } = resident;
        executor.land_some(warps, cluster, random)?;
        land_some(executor, &mut warps[warp], cluster, random)?;
        let budget = 1 + random.below(LONGEST_TURN) as u32;
        executor.run(&mut warps[warp], cluster, budget)?;
        let quiet = executor.quiet(&mut warps[warp]);
        if resident.wake() {
            executor.expiries = 0;
        }
        if !resident.done() {
            return Ok(if quiet { Turn::Quiet } else { Turn::Ran });
        }
        executor.expiries = 0;
        executor.retire(&resident.warps, &mut resident.cluster, random)?;
        return Ok(Turn::Finished(at));
    }
    Ok(Turn::Ran)
}

/// Data land for clusters that wait for nothing else.
fn land_for_waiting(executor: &mut Executor<'_>, residents: &mut [Resident], random: &mut Random) -> Result<(), Fault> {
    for resident in residents {
        if resident.cluster.flight.is_airborne() && resident.ready().next().is_none() {
            executor.land_any(&resident.warps, &mut resident.cluster, random)?;
            resident.wake();
        }
    }
    Ok(())
}

/// No warp can go on: data must land, or the time of those that sleep in `try_wait` runs out. False if nothing helps.
fn idle(executor: &mut Executor<'_>, residents: &mut [Resident], random: &mut Random) -> Result<bool, Fault> {
    let mut airborne: Vec<_> = residents.iter_mut().filter(|resident| resident.cluster.flight.is_airborne()).collect();
    if !airborne.is_empty() {
        let pick = random.below(airborne.len() as u64) as usize;
        let Resident { warps, cluster } = &mut *airborne[pick];
        executor.land_any(warps, cluster, random)?;
        airborne[pick].wake();
        return Ok(true);
    }
    let asleep = |warp: &Warp| warp.groups.iter().any(|group| group.watch.is_some());
    let sleepers = residents.iter().any(|resident| resident.warps.iter().any(asleep));
    if !sleepers || executor.expiries == MOST_EXPIRIES {
        return Ok(false);
    }
    executor.expiries += 1;
    for warp in residents.iter_mut().flat_map(|resident| &mut resident.warps).filter(|warp| asleep(warp)) {
        warp.rouse(None);
        warp.expired = true;
    }
    Ok(true)
}

/// Half of the time, the data of one in two copies in flight arrive.
fn land_some(
    executor: &mut Executor<'_>,
    warp: &mut Warp,
    cluster: &mut Cluster,
    random: &mut Random,
) -> Result<(), Fault> {
    if warp.copies.pending.is_empty() || random.below(2) == 0 {
        return Ok(());
    }
    let crew = cluster.own(warp);
    let mut pending = std::mem::take(&mut warp.copies.pending);
    for copy in pending.iter_mut().filter(|copy| !copy.landed) {
        if random.below(2) == 0 {
            executor.land_copy(crew, copy).map_err(|fault| executor.fault(warp, fault))?;
        }
    }
    warp.copies.pending = pending;
    Ok(())
}

fn deadlock(executor: &mut Executor<'_>, residents: &mut [Resident]) -> Fault {
    let (mut waits, mut circles) = (Vec::new(), Vec::new());
    let mut first: Option<(usize, usize, Option<u32>)> = None;
    for (at, resident) in residents.iter_mut().enumerate() {
        let Resident { warps, cluster } = resident;
        for (slot, warp) in warps.iter_mut().enumerate().filter(|(_, warp)| warp.state != State::Done) {
            let (what, pc) = match warp.state {
                State::Ready if circles.len() >= MOST_NAMED => (String::new(), None),
                State::Ready => executor.polls(warp, cluster),
                _ => (executor.waits(warp), None),
            };
            // A warp that polls, if there is one: what it looks at tells more than who waits for it.
            if first.is_none_or(|(.., known)| known.is_none() && pc.is_some()) {
                first = Some((at, slot, pc));
            }
            let into = if warp.state == State::Ready { &mut circles } else { &mut waits };
            into.push(format!("block {:?}: {what}", warp.identity.block));
        }
        waits.extend(cluster.crews.iter().flat_map(|crew| crew.barriers.open()));
        waits.extend(cluster.crews.iter().flat_map(|crew| crew.shared.mbarriers.open()));
        waits.extend(cluster.barrier.state());
        let for_registers = |warp: &&Warp| matches!(warp.state, State::ForRegisters(_));
        if let Some(warp) = warps.iter().find(for_registers) {
            waits.push(cluster.crews[warp.identity.rank as usize].warpgroups.pool());
        }
    }
    let more = (waits.len() + circles.len()).saturating_sub(MOST_NAMED);
    // Half of the names at least are those of warps that wait, if there are as many.
    circles.truncate(MOST_NAMED - waits.len().min(MOST_NAMED / 2));
    circles.append(&mut waits);
    circles.truncate(MOST_NAMED);
    if more > 0 {
        circles.push(format!("and {more} more"));
    }
    let kind = FaultKind::Deadlock { waits: circles.join("; ") };
    match first {
        Some((at, slot, pc)) => executor.fault(&residents[at].warps[slot], LaneFault { kind, lane: None, pc }),
        None => kind.into(),
    }
}

impl Setup<'_> {
    /// Clusters of the grid, per axis.
    fn clusters(&self) -> [u32; 3] {
        std::array::from_fn(|axis| self.grid.blocks[axis] / self.cluster[axis])
    }

    /// The number of a block in the grid.
    fn number(&self, [x, y, z]: [u32; 3]) -> u32 {
        let [width, height, _] = self.grid.blocks;
        (z * height + y) * width + x
    }
}

impl Resident {
    /// Cluster `number` of the grid, whose blocks all start now.
    fn new(setup: &Setup<'_>, number: u64) -> Self {
        let first: [u32; 3] = {
            let at = place(number, setup.clusters());
            std::array::from_fn(|axis| at[axis] * setup.cluster[axis])
        };
        let threads: u32 = setup.grid.threads.iter().product();
        let shared = setup.entry.static_shared + setup.shared_bytes;
        let blocks: u32 = setup.cluster.iter().product();
        let identity = |rank: u32| {
            let within = place(rank.into(), setup.cluster);
            Identity {
                block: std::array::from_fn(|axis| first[axis] + within[axis]),
                blocks: setup.grid.blocks,
                threads: setup.grid.threads,
                dynamic_shared: setup.shared_bytes as u32,
                total_shared: shared as u32,
                warps: threads.div_ceil(32),
                cluster: setup.cluster,
                rank,
                number: setup.number(std::array::from_fn(|axis| first[axis] + within[axis])),
                cluster_number: number as u32,
            }
        };
        let mbarriers = if setup.entry.has_mbarriers { MBARRIERS } else { 0 };
        let actors = Actors { warps: blocks * threads.div_ceil(32), blocks, rank: 0, mbarriers };
        let warps = |rank| {
            let identity = identity(rank);
            (0..identity.warps).map(move |index| Warp::new(index, setup.entry, identity, actors))
        };
        Self { warps: (0..blocks).flat_map(warps).collect(), cluster: Cluster::new(blocks, threads, shared, actors) }
    }

    /// Slots of the warps that can run.
    fn ready(&self) -> impl Iterator<Item = usize> {
        self.warps.iter().enumerate().filter(|(_, warp)| warp.state == State::Ready).map(|(slot, _)| slot)
    }

    fn done(&self) -> bool {
        self.cluster.crews.iter().all(|crew| crew.barriers.live == 0)
    }

    /// Lets the warps go on whose barrier is complete; true if there is one.
    fn wake(&mut self) -> bool {
        let mut woken = self.cluster.barrier.completed;
        let per_block = self.warps.len() / self.cluster.crews.len();
        for (rank, crew) in self.cluster.crews.iter_mut().enumerate() {
            let warps = &mut self.warps[rank * per_block..][..per_block];
            if std::mem::take(&mut crew.warpgroups.released) {
                for warp in warps.iter_mut().filter(|warp| matches!(warp.state, State::ForRegisters(_))) {
                    warp.state = State::Ready;
                }
            }
            for (index, clock) in crew.barriers.released.drain(..) {
                woken = true;
                let warp = &mut warps[index as usize];
                super::cluster::join(&mut warp.clock, &clock);
                warp.pc += 1;
                warp.state = State::Ready;
            }
            for barrier in crew.shared.mbarriers.completed.drain(..) {
                woken = true;
                for warp in &mut self.warps[rank * per_block..][..per_block] {
                    warp.rouse(Some(barrier));
                }
            }
        }
        if std::mem::take(&mut self.cluster.barrier.completed) {
            for warp in &mut self.warps {
                warp.cluster_barrier_completed();
            }
        }
        woken
    }
}

/// Coordinates of item `number` in a box of this size, x fastest.
fn place(number: u64, size: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = size.map(u64::from);
    [number % x, number / x % y, number / x / y].map(|n| n as u32)
}
