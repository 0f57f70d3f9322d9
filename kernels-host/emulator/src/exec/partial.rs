//! `.aligned` instructions: all lanes of the warp, or none.

use super::ALL;
use super::step::{Executor, LaneFault};
use super::warp::Warp;
use crate::FaultKind;

impl Executor<'_> {
    /// True if the lanes in `mask` are all that live. If not, they wait for the rest to come to the same instruction,
    /// as `.aligned` demands.
    ///
    /// # Errors
    /// The guard leaves lanes out, which never come.
    pub(super) fn converged(&mut self, warp: &mut Warp, mask: u32) -> Result<bool, LaneFault> {
        if mask != warp.active {
            return Err(partial(mask, warp.active & !mask, "which its guard leaves out"));
        }
        if mask == warp.live {
            return Ok(true);
        }
        // It will be executed, and counted, again.
        self.uncount(warp.pc);
        self.env.executed -= 1;
        warp.park(warp.live, false);
        if let Some(group) = warp.groups.last_mut() {
            group.aligned = true;
        }
        Ok(false)
    }

    /// The lanes in `leaving` exit: no group may wait for them at an `.aligned` instruction.
    pub(super) fn check_exit(&self, warp: &Warp, leaving: u32) -> Result<(), LaneFault> {
        match warp.groups.iter().find(|group| group.aligned) {
            None => Ok(()),
            Some(group) => {
                let fault = partial(group.mask, leaving, "which exit without it");
                let lane = Some(group.mask.trailing_zeros() as usize);
                Err(LaneFault { lane, pc: Some(group.pc), ..fault })
            }
        }
    }
}

/// The lanes in `mask`, which are all that live, execute an instruction that needs all 32.
pub(super) fn whole(mask: u32) -> Result<(), LaneFault> {
    if mask == ALL {
        return Ok(());
    }
    Err(partial(mask, !mask, "which have exited or never were"))
}

fn partial(present: u32, missing: u32, why: &str) -> LaneFault {
    FaultKind::PartialWarp { present, missing, why: why.to_owned() }.into()
}
