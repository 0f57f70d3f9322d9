//! Proxy fences and global memory: what a thread stored reaches bulk copies and TMA loads of the same launch through
//! `fence.proxy.async` only.
//!
//! In shared memory the clocks carry what is fenced; across clusters they do not reach. Here a store counts as fenced
//! once a warp of its cluster that knew of it has fenced, or once the warp that issues the copy has, later than the
//! store. The fence's place between the two is not checked, their order is: see [`super::shadow`].

use std::collections::HashMap;

use super::shadow::Instant;

/// The proxy fences of a launch.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    /// Newest fenced epoch, by cluster and slot.
    epochs: HashMap<(u32, u32), u32>,
    /// Instants of the launch when the warp fenced last, by its cluster and slot.
    instants: HashMap<(u32, u32), u32>,
}

impl Fences {
    /// Warp `slot` of `cluster`, whose clock of the cluster's warps is `clock`, fences after `instants` instants.
    pub fn add(&mut self, (cluster, slot): (u32, u32), clock: &[u32], instants: u32) {
        for (other, epoch) in (0..).zip(clock).filter(|(_, epoch)| **epoch > 0) {
            let fenced = self.epochs.entry((cluster, other)).or_default();
            *fenced = (*fenced).max(*epoch);
        }
        self.instants.insert((cluster, slot), instants);
    }

    /// Whether a store of instant `number` is fenced for a copy that warp `reader` issues.
    pub fn cover(&self, number: u32, store: &Instant, reader: (u32, u32)) -> bool {
        let newest = |found: Option<&u32>| found.copied().unwrap_or(0);
        newest(self.epochs.get(&(store.cluster, store.slot))) >= store.epoch
            || newest(self.instants.get(&reader)) >= number
    }
}
