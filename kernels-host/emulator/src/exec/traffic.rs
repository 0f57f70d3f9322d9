//! Counts what warp instructions ask of memory.

use super::access::resolve;
use super::step::Executor;
use super::{Lanes, lanes};
use crate::Access;
use crate::instruction::Space;

impl Executor<'_> {
    /// Counts an access of `bytes` bytes by each lane in `mask`. Generic addresses of several spaces count as one
    /// request in each.
    pub(super) fn count_access(
        &mut self,
        access: Access,
        space: Space,
        addresses: &Lanes<u64>,
        mask: u32,
        bytes: usize,
    ) {
        let mut global = [0_u64; 32];
        let mut found = 0;
        let mut shared = [None; 32];
        let mut any_shared = false;
        for lane in lanes(mask) {
            match resolve(space, addresses[lane]) {
                (Space::Shared | Space::Cluster, at) => {
                    // Blocks' windows are multiples of the banks, so the bank is right wherever the address leads.
                    shared[lane] = Some(at as u32);
                    any_shared = true;
                }
                (Space::Param, _) => {}
                (_, at) => {
                    global[found] = at;
                    found += 1;
                }
            }
        }
        let counters = &mut self.counters;
        if found > 0 {
            let traffic = match access {
                Access::Read => &mut counters.global_loads,
                Access::Write => &mut counters.global_stores,
                Access::Atomic => &mut counters.global_atomics,
            };
            traffic.add(&global[..found], bytes);
        }
        if any_shared {
            let banks = match access {
                Access::Read => &mut counters.shared_loads,
                Access::Write => &mut counters.shared_stores,
                Access::Atomic => &mut counters.shared_atomics,
            };
            banks.add(&shared, bytes);
        }
    }
}
