//! What threads of different clusters know of each other: releases, acquires, fences and their scopes.
//!
//! Inside a cluster, warps carry a dense vector clock. Between clusters that would be a clock of all warps of the
//! grid for each warp; instead, what a cluster has heard of others is logged beside its own clock: "warp w, in its
//! epoch e, learnt K". Whoever has heard of w's epoch e knows K as well, so everything that orders warps inside a
//! cluster (barriers, `mbarrier`) carries foreign knowledge without knowing of it. Most kernels never acquire
//! anything from another block: then the log is empty and any foreign epoch is unknown.
//!
//! Knowledge is made by release patterns and learnt by acquire patterns, at one location, as the PTX memory model
//! has it: a release (or a fence and then a strong write), possibly read-modify-write operations, an acquire (or a
//! strong read and then a fence), each of a scope that holds the other thread.

use std::collections::HashMap;
use std::sync::Arc;

use crate::instruction::Scope;

/// The warp that acts, with its vector clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor<'c> {
    pub cluster: u32,
    /// The block's number in the grid.
    pub block: u32,
    /// The warp's place in its cluster's clock.
    pub slot: u32,
    pub clock: &'c [u32],
    /// The first epoch since the warp's lanes last met.
    pub since: u32,
}

impl Actor<'_> {
    pub fn epoch(&self) -> u32 {
        self.clock[self.slot as usize]
    }

    /// Whether lane `lane` knows what lanes `lanes` of warp `slot` of its cluster did in `epoch`.
    fn heard(&self, lane: u32, slot: u32, epoch: u32, lanes: u32) -> bool {
        if slot == self.slot {
            return lanes >> lane & 1 != 0 || epoch < self.since;
        }
        self.clock.get(slot as usize).is_some_and(|known| *known >= epoch)
    }
}

/// What one lane did until an epoch, when its warp's lanes had not met since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LaneEpoch {
    cluster: u32,
    slot: u32,
    lane: u32,
    epoch: u32,
}

/// Clocks of clusters, by ascending number, and single lanes that were further than their warps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Knowledge {
    clocks: Vec<(u32, Arc<[u32]>)>,
    lanes: Vec<LaneEpoch>,
}

impl Knowledge {
    pub fn clock(&self, cluster: u32) -> Option<&[u32]> {
        let at = self.clocks.binary_search_by_key(&cluster, |(number, _)| *number).ok()?;
        Some(&self.clocks[at].1)
    }

    /// Whether it tells of what a lane did in an epoch; any one of several lanes will do for a lane beyond 31.
    fn covers(&self, cluster: u32, slot: u32, lane: u32, epoch: u32) -> bool {
        let known = self.clock(cluster).and_then(|clock| clock.get(slot as usize));
        known.is_some_and(|known| *known >= epoch)
            || self
                .lanes
                .iter()
                .any(|l| (l.cluster, l.slot) == (cluster, slot) && (l.lane == lane || lane > 31) && l.epoch >= epoch)
    }

    fn join(&mut self, other: &Self) {
        let mut theirs = other.clocks.iter().peekable();
        let mut all = Vec::with_capacity(self.clocks.len().max(other.clocks.len()));
        for (cluster, clock) in self.clocks.drain(..) {
            while let Some(their) = theirs.next_if(|(number, _)| *number < cluster) {
                all.push(their.clone());
            }
            match theirs.next_if(|(number, _)| *number == cluster) {
                Some((_, their)) if !Arc::ptr_eq(their, &clock) => {
                    all.push((cluster, clock.iter().zip(their.iter()).map(|(a, b)| *a.max(b)).collect()));
                }
                _ => all.push((cluster, clock)),
            }
        }
        all.extend(theirs.cloned());
        self.clocks = all;
        for lane in &other.lanes {
            self.add_lane(*lane);
        }
    }

    fn add_lane(&mut self, new: LaneEpoch) {
        let same = |old: &&mut LaneEpoch| (old.cluster, old.slot, old.lane) == (new.cluster, new.slot, new.lane);
        match self.lanes.iter_mut().find(same) {
            Some(old) => old.epoch = old.epoch.max(new.epoch),
            None => self.lanes.push(new),
        }
    }
}

/// What a write at a location tells whoever acquires it.
#[derive(Clone, Debug)]
struct Release {
    scope: Scope,
    /// The cluster and block of all that released, if it is one.
    cluster: Option<u32>,
    block: Option<u32>,
    what: Arc<Knowledge>,
}

impl Release {
    fn reaches(&self, scope: Scope, by: &Actor<'_>) -> bool {
        let within = |scope| match scope {
            Scope::Block => self.block == Some(by.block),
            Scope::Cluster => self.cluster == Some(by.cluster),
            Scope::Device => true,
        };
        within(scope) && within(self.scope)
    }
}

/// Something that a warp of a cluster did, in some lanes and an epoch.
#[derive(Debug)]
struct Noted<T> {
    slot: u32,
    lanes: u32,
    epoch: u32,
    what: T,
}

/// What some lanes know, all that they learnt before included.
#[derive(Debug)]
struct Learnt {
    all: Arc<Knowledge>,
    /// What it was learnt from last: whoever spins learns the same again and again.
    source: Arc<Knowledge>,
}

/// A fence's half of a release pattern: what it makes known once a strong write follows.
#[derive(Debug)]
struct Fence {
    scope: Scope,
    what: Arc<Knowledge>,
}

/// What the warps of one cluster have learnt, seen and fenced.
#[derive(Debug, Default)]
struct Log {
    learnt: Vec<Noted<Learnt>>,
    /// Strong reads: what a fence would make known, with the scope of the read.
    seen: Vec<Noted<(Scope, Release)>>,
    fences: Vec<Noted<Fence>>,
    /// Executions of `griddepcontrol.wait`.
    waits: Vec<Noted<()>>,
}

/// Where something was released: zero and an address in global memory, or one more than the cluster's number and a
/// place in its shared memory.
pub(crate) type Location = (u32, u64);

/// All that is known between the clusters of a launch.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    logs: HashMap<u32, Log>,
    released: HashMap<Location, Vec<Release>>,
}

impl Orders {
    /// Whether lane `lane` of `by` knows what a lane of another cluster did.
    pub fn knows(&self, by: &Actor<'_>, lane: u32, (cluster, slot, at, epoch): (u32, u32, u32, u32)) -> bool {
        let Some(log) = self.logs.get(&by.cluster) else { return false };
        let heard = |noted: &&Noted<Learnt>| by.heard(lane, noted.slot, noted.epoch, noted.lanes);
        log.learnt.iter().rev().filter(heard).any(|noted| noted.what.all.covers(cluster, slot, at, epoch))
    }

    /// All that lane `lane` of `by` knows, itself included.
    fn knowledge(&self, by: &Actor<'_>, lane: u32) -> Knowledge {
        let mut all = Knowledge::default();
        if let Some(log) = self.logs.get(&by.cluster) {
            for noted in log.learnt.iter().filter(|noted| by.heard(lane, noted.slot, noted.epoch, noted.lanes)) {
                all.join(&noted.what.all);
            }
        }
        // Its warp's other lanes are known only until they last met.
        let mut clock = by.clock.to_vec();
        clock[by.slot as usize] = by.since - 1;
        all.join(&Knowledge { clocks: vec![(by.cluster, clock.into())], lanes: Vec::new() });
        all.add_lane(LaneEpoch { cluster: by.cluster, slot: by.slot, lane, epoch: by.epoch() });
        all
    }

    /// Lane `lane` writes at a location, strongly. The caller begins a new epoch if it is told something was released.
    pub fn release(&mut self, by: &Actor<'_>, lane: u32, at: Location, scope: Scope, pattern: Pattern) -> bool {
        let mut told: Vec<(Scope, Arc<Knowledge>)> = Vec::new();
        if pattern.release {
            told.push((scope, Arc::new(self.knowledge(by, lane))));
        } else if let Some(log) = self.logs.get(&by.cluster) {
            let heard = |noted: &&Noted<Fence>| by.heard(lane, noted.slot, noted.epoch, noted.lanes);
            let fences = log.fences.iter().filter(heard);
            told.extend(fences.map(|noted| (noted.what.scope.min(scope), noted.what.what.clone())));
        }
        if !pattern.modifies {
            self.released.remove(&at);
        }
        if told.is_empty() {
            return false;
        }
        let found = self.released.entry(at).or_default();
        for (scope, what) in told {
            add_release(found, Release { scope, cluster: Some(by.cluster), block: Some(by.block), what });
        }
        true
    }

    /// A weak write ends what was released at a location.
    pub fn overwrite(&mut self, at: Location) {
        if !self.released.is_empty() {
            self.released.remove(&at);
        }
    }

    /// Lane `lane` reads a location strongly; returns what its cluster's own clock gains.
    pub fn acquire(
        &mut self,
        by: &Actor<'_>,
        lane: u32,
        at: Location,
        scope: Scope,
        acquire: bool,
    ) -> Option<Vec<u32>> {
        let found: Vec<Release> = self.released.get(&at)?.iter().filter(|r| r.reaches(scope, by)).cloned().collect();
        let mut gained = None;
        for release in found {
            if acquire {
                gained = self.learn(by, 1 << lane, &release.what).or(gained);
                continue;
            }
            let seen = &mut self.logs.entry(by.cluster).or_default().seen;
            let again = |noted: &&mut Noted<(Scope, Release)>| {
                noted.slot == by.slot && noted.what.0 == scope && Arc::ptr_eq(&noted.what.1.what, &release.what)
            };
            match seen.iter_mut().find(again) {
                Some(noted) => noted.lanes |= 1 << lane,
                None => seen.push(Noted { slot: by.slot, lanes: 1 << lane, epoch: by.epoch(), what: (scope, release) }),
            }
        }
        gained
    }

    /// The lanes `mask` execute a fence; returns what their cluster's own clock gains.
    pub fn fence(&mut self, by: &Actor<'_>, mask: u32, scope: Scope) -> Option<Vec<u32>> {
        let mut gained = None;
        for lane in crate::exec::lanes(mask) {
            let heard = |noted: &&Noted<(Scope, Release)>| {
                let (read, release) = &noted.what;
                by.heard(lane as u32, noted.slot, noted.epoch, noted.lanes) && release.reaches(scope.min(*read), by)
            };
            let seen = self.logs.get(&by.cluster).map(|log| log.seen.iter().filter(heard));
            let seen: Vec<_> = seen.into_iter().flatten().map(|noted| noted.what.1.what.clone()).collect();
            for what in seen {
                gained = self.learn(by, 1 << lane, &what).or(gained);
            }
        }
        for lane in crate::exec::lanes(mask) {
            let what = Arc::new(self.knowledge(by, lane as u32));
            let fences = &mut self.logs.entry(by.cluster).or_default().fences;
            // A later fence of the same lane and at least the scope tells all that an earlier one did.
            fences.retain(|old| old.slot != by.slot || old.lanes != 1 << lane || old.what.scope > scope);
            fences.push(Noted { slot: by.slot, lanes: 1 << lane, epoch: by.epoch(), what: Fence { scope, what } });
        }
        gained
    }

    /// The lanes `mask` have waited for the launches before this one.
    pub fn wait(&mut self, by: &Actor<'_>, mask: u32) {
        let waits = &mut self.logs.entry(by.cluster).or_default().waits;
        if !waits.iter().any(|noted| noted.slot == by.slot && noted.lanes & mask == mask) {
            waits.push(Noted { slot: by.slot, lanes: mask, epoch: by.epoch(), what: () });
        }
    }

    /// Whether lane `lane` of `by`, or one before it, has waited for the launches before this one.
    pub fn waited(&self, by: &Actor<'_>, lane: u32) -> bool {
        let Some(log) = self.logs.get(&by.cluster) else { return false };
        log.waits.iter().any(|noted| by.heard(lane, noted.slot, noted.epoch, noted.lanes))
    }

    fn learn(&mut self, by: &Actor<'_>, lanes: u32, what: &Arc<Knowledge>) -> Option<Vec<u32>> {
        let learnt = &mut self.logs.entry(by.cluster).or_default().learnt;
        let mine = |noted: &&mut Noted<Learnt>| noted.slot == by.slot && noted.lanes == lanes;
        let last = learnt.iter_mut().rev().find(mine);
        if last.as_ref().is_some_and(|last| Arc::ptr_eq(&last.what.source, what)) {
            return None;
        }
        let gained = what.clock(by.cluster).map(|clock| {
            let mut clock = clock.to_vec();
            // The dense clock has no lanes: inside a cluster the warp of a lane is as far as the lane.
            for lane in what.lanes.iter().filter(|lane| lane.cluster == by.cluster) {
                clock[lane.slot as usize] = clock[lane.slot as usize].max(lane.epoch);
            }
            clock[by.slot as usize] = 0;
            clock
        });
        let source = what.clone();
        let (all, epoch) = match last {
            None => (what.clone(), 0),
            Some(last) => {
                let mut all = (*last.what.all).clone();
                all.join(what);
                (Arc::new(all), last.epoch)
            }
        };
        let (slot, now) = (by.slot, by.epoch());
        // Who heard of an earlier epoch knows what was learnt until then, and no more.
        learnt.retain(|old| old.slot != slot || old.lanes != lanes || old.epoch != now || epoch != now);
        learnt.push(Noted { slot, lanes, epoch: now, what: Learnt { all, source } });
        gained
    }
}

/// How a strong write takes part in a release pattern.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    /// The operation itself releases.
    pub release: bool,
    /// It is a read-modify-write operation, which passes on what was released before.
    pub modifies: bool,
}

/// Adds a release to those at a location; those of one scope are joined, unless the scope tells them apart.
fn add_release(found: &mut Vec<Release>, new: Release) {
    let same = |old: &&mut Release| {
        old.scope == new.scope
            && match new.scope {
                Scope::Block => old.block == new.block,
                Scope::Cluster => old.cluster == new.cluster,
                Scope::Device => true,
            }
    };
    match found.iter_mut().find(same) {
        None => found.push(new),
        Some(old) => {
            Arc::make_mut(&mut old.what).join(&new.what);
            old.block = old.block.filter(|block| Some(*block) == new.block);
            old.cluster = old.cluster.filter(|cluster| Some(*cluster) == new.cluster);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(cluster: u32, clock: &[u32]) -> Actor<'_> {
        Actor { cluster, block: cluster, slot: 0, clock, since: 1 }
    }

    const FLAG: Location = (0, 0x100);
    const STORE: Pattern = Pattern { release: true, modifies: false };
    const RELAXED: Pattern = Pattern { release: false, modifies: false };
    const MODIFY: Pattern = Pattern { release: false, modifies: true };

    /// Whether cluster 1 knows epoch 3 of lane 0 of cluster 0's first warp.
    fn knows(orders: &Orders, clock: &[u32]) -> bool {
        orders.knows(&actor(1, clock), 0, (0, 0, 0, 3))
    }

    #[test]
    fn an_acquire_learns_what_a_release_told() {
        let mut orders = Orders::default();
        assert!(orders.release(&actor(0, &[3, 0]), 0, FLAG, Scope::Device, STORE));
        assert!(!knows(&orders, &[1, 0]));
        orders.acquire(&actor(1, &[1, 0]), 0, FLAG, Scope::Device, true);
        assert!(knows(&orders, &[1, 0]));
        // What lane 4 does in the same epoch is not told by lane 0, nor does lane 1 learn it.
        assert!(!orders.knows(&actor(1, &[1, 0]), 0, (0, 0, 4, 3)));
        assert!(!orders.knows(&actor(1, &[1, 0]), 1, (0, 0, 0, 3)));
        // Another warp that has heard of the acquiring one's epoch knows as well.
        let other = Actor { slot: 1, ..actor(1, &[1, 5]) };
        assert!(orders.knows(&other, 0, (0, 0, 0, 3)));
        let deaf = Actor { slot: 1, ..actor(1, &[0, 5]) };
        assert!(!orders.knows(&deaf, 0, (0, 0, 0, 3)));
    }

    #[test]
    fn narrow_scopes_do_not_reach_other_clusters() {
        for (told, asked) in
            [(Scope::Block, Scope::Device), (Scope::Device, Scope::Block), (Scope::Cluster, Scope::Device)]
        {
            let mut orders = Orders::default();
            orders.release(&actor(0, &[3, 0]), 0, FLAG, told, STORE);
            orders.acquire(&actor(1, &[1, 0]), 0, FLAG, asked, true);
            assert!(!knows(&orders, &[1, 0]), "{told:?} {asked:?}");
        }
    }

    #[test]
    fn fences_make_patterns_of_relaxed_accesses() {
        for (before, after) in [(true, true), (true, false), (false, true)] {
            let mut orders = Orders::default();
            if before {
                orders.fence(&actor(0, &[3, 0]), 1, Scope::Device);
            }
            orders.release(&actor(0, &[4, 0]), 0, FLAG, Scope::Device, RELAXED);
            orders.acquire(&actor(1, &[1, 0]), 0, FLAG, Scope::Device, false);
            if after {
                orders.fence(&actor(1, &[1, 0]), 1, Scope::Device);
            }
            assert_eq!(knows(&orders, &[1, 0]), before && after);
            // What came after the fence is not told.
            assert!(!orders.knows(&actor(1, &[1, 0]), 0, (0, 0, 0, 4)));
        }
    }

    #[test]
    fn modifications_pass_on_and_stores_end_what_was_released() {
        for (pattern, passes) in [(MODIFY, true), (RELAXED, false)] {
            let mut orders = Orders::default();
            orders.release(&actor(0, &[3, 0]), 0, FLAG, Scope::Device, STORE);
            orders.release(&actor(2, &[1, 0]), 0, FLAG, Scope::Device, pattern);
            orders.acquire(&actor(1, &[1, 0]), 0, FLAG, Scope::Device, true);
            assert_eq!(knows(&orders, &[1, 0]), passes);
        }
    }
}
