//! Which resident cluster runs next.
//!
//! All resident clusters are to make progress, in an order that nobody may rely on, without walking through the registers
//! and shared memory of a thousand blocks all the time. So a few are in focus, and warps of those take turns;
//! the focus moves on when nothing in it has finished for a while. Clusters start when they first come into focus, as
//! late as hardware may start them, so that a grid of independent blocks has few of them in memory at once.

/// A focus holds as many blocks, give or take what a cluster has. Eight were fastest of 1 to 64 on a normalisation of
/// 2048 blocks, and within 3 % up to 16.
const FOCUS_BLOCKS: [usize; 3] = [4, 8, 16];
/// Turns before the focus moves on if none of its clusters finished: 6,000 instructions or so.
const SPELL: u32 = 128;

/// SplitMix64.
#[derive(Debug)]
pub(super) struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    fn index(&mut self, end: usize) -> usize {
        self.below(end as u64) as usize
    }
}

/// Clusters that have started and not finished: first those in focus, then the others, who has waited longest in front.
#[derive(Debug)]
pub(super) struct Schedule<T> {
    started: Vec<T>,
    focus: usize,
    /// Clusters in a full focus.
    room: usize,
    turns: u32,
    /// Clusters that are resident at once.
    limit: usize,
    /// Number of the cluster that starts next, and how many there are.
    next: u64,
    total: u64,
}

impl<T> Schedule<T> {
    /// `total` clusters of `blocks` blocks, `limit` of them resident at once.
    pub fn new(total: u64, blocks: usize, limit: usize, random: &mut Random) -> Self {
        let room = (FOCUS_BLOCKS[random.index(FOCUS_BLOCKS.len())] / blocks).max(1);
        Self { started: Vec::new(), focus: 0, room, turns: 0, limit: limit.max(1), next: 0, total }
    }

    pub fn finished(&self) -> bool {
        self.started.is_empty() && self.next == self.total
    }

    /// Whether no cluster can start before another finishes.
    pub fn full(&self) -> bool {
        self.startable() == 0
    }

    /// Clusters that have started.
    pub fn started(&self) -> &[T] {
        &self.started
    }

    /// As [`Self::started`].
    pub fn started_mut(&mut self) -> &mut [T] {
        &mut self.started
    }

    /// Clusters that may start now.
    fn startable(&self) -> usize {
        let left = usize::try_from(self.total - self.next).unwrap_or(usize::MAX);
        left.min(self.limit - self.started.len())
    }

    /// The clusters in focus, which is filled up, or moved, by those that have waited longest, more or less, and by new
    /// ones.
    pub fn focus(&mut self, random: &mut Random, mut start: impl FnMut(u64) -> T) -> &mut [T] {
        self.turns += 1;
        if self.turns > SPELL {
            self.turns = 0;
            self.started.rotate_left(self.focus);
            self.focus = 0;
        }
        while self.focus < self.room {
            let idle = self.started.len() - self.focus;
            let new = self.startable() > 0 && (idle == 0 || random.below(2) == 0);
            if new {
                self.started.push(start(self.next));
                self.next += 1;
                let last = self.started.len() - 1;
                self.started.swap(self.focus, last);
            } else if idle > 0 {
                let at = self.focus + random.index(idle.min(2 * self.room));
                self.started.swap(self.focus, at);
            } else {
                break;
            }
            self.focus += 1;
        }
        &mut self.started[..self.focus]
    }

    /// Cluster `at` of the focus has finished.
    pub fn finish(&mut self, at: usize) {
        self.turns = 0;
        self.focus -= 1;
        self.started.swap(at, self.focus);
        self.started.swap_remove(self.focus);
    }

    /// Nothing in focus can run: turns to clusters of which `ready` holds, or starts new ones. False if there are none.
    pub fn refocus(&mut self, ready: impl Fn(&T) -> bool) -> bool {
        self.turns = 0;
        self.focus = 0;
        for at in 0..self.started.len() {
            if self.focus < self.room && ready(&self.started[at]) {
                self.started.swap(self.focus, at);
                self.focus += 1;
            }
        }
        self.focus > 0 || self.startable() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clusters_run_and_no_more_than_the_limit_at_once() {
        let mut random = Random(5);
        let mut schedule = Schedule::new(1000, 1, 40, &mut random);
        let mut done = Vec::new();
        while !schedule.finished() {
            let count = schedule.focus(&mut random, |number| number).len();
            let at = random.index(count);
            assert!(schedule.started().len() <= 40);
            done.push(schedule.started()[at]);
            schedule.finish(at);
        }
        done.sort_unstable();
        assert!(done.into_iter().eq(0..1000));
    }

    #[test]
    fn those_who_wait_for_all_others_see_all_start() {
        let mut random = Random(1);
        let mut schedule = Schedule::new(300, 2, 300, &mut random);
        for _ in 0..300 * SPELL {
            schedule.focus(&mut random, |number| number);
        }
        assert_eq!(schedule.started().len(), 300);
    }

    #[test]
    fn a_focus_that_waits_gives_way_to_what_can_run() {
        let mut random = Random(2);
        let mut schedule = Schedule::new(3, 4, 3, &mut random);
        while schedule.started().len() < 3 {
            schedule.focus(&mut random, |number| number);
        }
        assert!(schedule.refocus(|number| *number == 2));
        assert_eq!(schedule.focus(&mut random, |number| number)[0], 2);
        assert!(!schedule.refocus(|_| false));
    }
}
