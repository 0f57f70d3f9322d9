//! The sixteen named barriers of a block.

/// A barrier's open phase.
#[derive(Debug, Default)]
struct Named {
    /// Threads that have come; whole warps count.
    arrived: u32,
    /// Threads to wait for: a number, or all that live.
    count: Option<u32>,
    /// Warps that wait.
    waiting: Vec<u32>,
    /// Join of the clocks of all that came.
    clock: Vec<u32>,
}

/// The barriers of a block, and who was released since the scheduler last looked.
#[derive(Debug)]
pub(crate) struct Barriers {
    named: [Named; 16],
    /// Warps to wake, each with the clock that it learns.
    pub released: Vec<(u32, Vec<u32>)>,
    /// Warps that have not exited.
    pub live: u32,
}

impl Barriers {
    pub fn new(warps: u32) -> Self {
        Self { named: Default::default(), released: Vec::new(), live: warps }
    }

    /// Warp `warp` comes to barrier `id`, which completes when `count` threads have come.
    ///
    /// # Errors
    /// What is wrong with the use of the barrier.
    pub fn arrive(&mut self, id: u32, count: Option<u32>, warp: u32, clock: &[u32], wait: bool) -> Result<(), String> {
        if id > 15 {
            return Err(format!("barrier {id} does not exist; there are 0 to 15"));
        }
        if let Some(count) = count
            && (count == 0 || !count.is_multiple_of(32))
        {
            return Err(format!("{count} threads are not a whole number of warps"));
        }
        let barrier = &mut self.named[id as usize];
        if barrier.arrived > 0 && barrier.count != count {
            let name = |count: Option<u32>| count.map_or("all".into(), |count| count.to_string());
            return Err(format!(
                "barrier {id} is open for {} threads, this warp names {}",
                name(barrier.count),
                name(count)
            ));
        }
        barrier.count = count;
        barrier.arrived += 32;
        barrier.clock.resize(clock.len(), 0);
        for (joined, own) in barrier.clock.iter_mut().zip(clock) {
            *joined = (*joined).max(*own);
        }
        if wait {
            barrier.waiting.push(warp);
        }
        self.complete(id)
    }

    /// A warp has exited: barriers for all threads wait for one warp less.
    ///
    /// # Errors
    /// As [`Self::arrive`].
    pub fn exit(&mut self) -> Result<(), String> {
        self.live -= 1;
        (0..16).try_for_each(|id| self.complete(id))
    }

    fn complete(&mut self, id: u32) -> Result<(), String> {
        let live = self.live * 32;
        let barrier = &mut self.named[id as usize];
        let wanted = barrier.count.unwrap_or(live);
        if barrier.arrived == 0 || barrier.arrived < wanted {
            return Ok(());
        }
        if barrier.arrived > wanted {
            return Err(format!("{} threads came to barrier {id} for {wanted}", barrier.arrived));
        }
        let Named { waiting, clock, .. } = std::mem::take(barrier);
        self.released.extend(waiting.into_iter().map(|warp| (warp, clock.clone())));
        Ok(())
    }

    /// "barrier 1: 64 of 128 threads have come" for each that is open.
    pub fn open(&self) -> impl Iterator<Item = String> {
        self.named.iter().enumerate().filter(|(_, barrier)| barrier.arrived > 0).map(|(id, b)| {
            let wanted = b.count.unwrap_or(self.live * 32);
            format!("barrier {id}: {} of {wanted} threads have come", b.arrived)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_wait_learn_from_all_who_came() {
        let mut barriers = Barriers::new(3);
        barriers.arrive(1, Some(64), 0, &[4, 0, 0], false).unwrap();
        assert_eq!(barriers.open().collect::<Vec<_>>(), ["barrier 1: 32 of 64 threads have come"]);
        barriers.arrive(1, Some(64), 2, &[0, 0, 9], true).unwrap();
        assert_eq!(barriers.released, [(2, vec![4, 0, 9])]);
        assert_eq!(barriers.open().count(), 0);
    }

    #[test]
    fn an_exit_completes_a_barrier_for_all() {
        let mut barriers = Barriers::new(3);
        barriers.arrive(0, None, 0, &[1, 0, 0], true).unwrap();
        barriers.arrive(0, None, 1, &[0, 1, 0], true).unwrap();
        assert!(barriers.released.is_empty());
        barriers.exit().unwrap();
        assert_eq!(barriers.released.len(), 2);
    }

    #[test]
    fn misuse_says_what_is_wrong() {
        let mut barriers = Barriers::new(4);
        assert!(barriers.arrive(16, None, 0, &[1], true).unwrap_err().contains("barrier 16 does not exist"));
        assert!(barriers.arrive(1, Some(33), 0, &[1], true).unwrap_err().contains("33 threads"));
        barriers.arrive(1, Some(64), 0, &[1], true).unwrap();
        assert!(barriers.arrive(1, None, 1, &[1], true).unwrap_err().contains("open for 64 threads"));
    }
}
