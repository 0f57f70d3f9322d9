//! The meeting of a cluster whose blocks share a tile's K: their warps hold f32 sums of the same part of the tile. Each
//! sends its own to the one block that finishes that part, from registers to its shared memory, where barriers count the
//! bytes. (Reading other blocks' sums took 2 µs of a product of 17; sending them between two meetings of the whole
//! cluster 1.7, most of which were their memory fences.)
use crate::prim::{
    cluster, mbarrier, shared,
    warp::{LANES, lane_id},
};

use super::log2;

/// Most blocks that share a K.
pub const MAX_SPLIT: u32 = 4;

/// Where a block and its peers meet; made from a kernel's parameters.
#[derive(Clone, Copy)]
pub struct Meeting {
    /// Two barriers, 8-byte aligned, at the same place in every block.
    pub barriers: u32,
    /// Where other blocks' sums come in, 16-byte aligned, at the same place in every block: of each of the other blocks
    /// those of the warps that it finishes.
    pub mail: u32,
    /// Whether it is in use until all warps of the cluster have [arrived](Meeting::arrive).
    pub in_use: bool,
    /// Blocks that share the K: 1, 2 or 4.
    pub split: u32,
    /// This block's place among them, its rank in the cluster.
    pub part: u32,
    /// Warps whose sums make up the tile, and how many times over a block has them.
    pub warps: u32,
    /// See `warps`.
    pub teams: u32,
    /// Groups of four registers a thread that are sent.
    pub groups: u32,
}

impl Meeting {
    /// Shared memory that the barriers take.
    pub const BYTES: u32 = 2 * mbarrier::BYTES;

    fn everyone(&self) -> u32 {
        self.barriers
    }
    fn mailed(&self) -> u32 {
        self.barriers + mbarrier::BYTES
    }
    /// Those of the warps whose sums block `part` finishes: every `split`th.
    #[inline(always)]
    fn owned(&self, part: u32) -> u32 {
        (self.warps + self.split - 1 - part) >> log2(self.split)
    }
    /// Bytes of a warp's sums.
    #[inline(always)]
    fn bytes(&self) -> u32 {
        self.groups * GROUP_BYTES
    }
    /// Initialises the barriers; `arrivals`: the warps of one block that [arrive](Meeting::arrive). One thread, before it arrives at the cluster's
    /// barrier.
    #[inline(always)]
    pub unsafe fn init(&self, arrivals: u32) {
        mbarrier::init(self.everyone(), arrivals * self.split);
        mbarrier::init(self.mailed(), 1);
        mbarrier::fence_init();
        mbarrier::arrive_expect_tx(self.mailed(), (self.split - 1) * self.owned(self.part) * self.teams * self.bytes());
    }
    /// This warp reads the shared memory in which the mail comes in no more. (Half a microsecond or more before
    /// [`Meeting::exchange`], and nobody waits there.)
    #[inline(always)]
    pub unsafe fn arrive(&self) {
        if self.in_use && lane_id() < self.split {
            mbarrier::arrive_cluster(self.everyone(), lane_id());
        }
    }
    /// Adds the sums `d` of all blocks' warp `warp` of `team`, if this block finishes them: those of its own part of K, then
    /// of the following ones around, so that results are the same from run to run. Else sends them away. Whether it does. At least one
    /// warp of each block calls it, and keeps the block from exiting before.
    #[inline(always)]
    pub unsafe fn exchange<const REGS: usize>(&self, d: &mut [f32; REGS], warp: u32, team: u32) -> bool {
        let mask = self.split - 1;
        let owner = warp & mask;
        let owned = self.owned(owner);
        let place = team * owned + (warp >> log2(self.split));
        if self.in_use {
            // Also by those who send nothing: until all have arrived here they may not exit.
            mbarrier::wait(self.everyone(), 0);
        }
        // The first slot is for the part behind the owner's.
        let slot = |slot: u32| self.mail + (slot * owned * self.teams + place) * self.bytes() + lane_id() * 16;
        if owner != self.part {
            let to = cluster::shared_of(owner, slot((self.part - owner - 1) & mask));
            let barrier = cluster::shared_of(owner, self.mailed());
            for i in 0..REGS / 4 {
                if (i as u32) < self.groups {
                    let sums = [0, 1, 2, 3].map(|j: usize| d[4 * i + j].to_bits());
                    cluster::send_v4(to + i as u32 * GROUP_BYTES, sums, barrier);
                }
            }
            return false;
        }
        mbarrier::wait(self.mailed(), 0);
        let mut from = 0;
        while from < mask {
            let at = slot(from);
            for i in 0..REGS / 4 {
                if (i as u32) < self.groups {
                    let sums = shared::load_v4(at + i as u32 * GROUP_BYTES);
                    for j in 0..4 {
                        d[4 * i + j] += f32::from_bits(sums[j]);
                    }
                }
            }
            from += 1;
        }
        true
    }
}

/// Bytes of four registers of a warp.
const GROUP_BYTES: u32 = 4 * 4 * LANES;

/// Shared memory for other blocks' sums: of `warps` warps of each of `teams`, `groups` groups of four registers each.
pub const fn mail_bytes(split: u32, warps: u32, teams: u32, groups: u32) -> u32 {
    (split - 1) * warps.div_ceil(split) * teams * groups * GROUP_BYTES
}
