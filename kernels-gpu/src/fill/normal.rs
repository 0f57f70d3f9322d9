//! About normally distributed random numbers.
//!
//! ```text
//! out[i] = n(seed, i) · scale / √21845 + offset        rounded to the element type
//! ```
//! n is a centred sum of four uniform bytes (kurtosis 2.7, |n| ≤ 3.45 standard deviations). One Philox4x32-7 makes the
//! eight values of a group: each of its words holds bytes a, b, c, d for two values,
//! (a + b − 255) ± (c + d − 255), which are uncorrelated. A value depends on the seed and its index only.
//! Integer arithmetic and exactly rounded f32 operations: host and device agree bit for bit.
//!
//! Grid: as many blocks of 256 threads as fit, each thread steps through groups of 8 elements (one 16-byte
//! store). Writes 2 bytes an element; about 16 instruction slots an element keep it near the memory's speed.
use crate::prim::{
    memory::store_v4,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, grid_dim_x, thread_idx_x},
};
use crate::tile::{Bf16, Elem, F16, philox::philox4x32};

/// Threads per block.
pub const THREADS: u32 = 256;
/// Elements per group.
pub const GROUP: usize = 8;
/// 1/√21845: one over the standard deviation of a sum of four bytes.
pub const INVERSE_DEVIATION: f32 = 0.006_765_875_3;

entry! {
    /// Arguments: `out`: [len]; `step`: the standard deviation times [`INVERSE_DEVIATION`].
    pub struct FillNormal { out: *mut u16, len: u64, seed: u64, step: f32, offset: f32 }
    fn fill_normal_bf16(threads: THREADS, min_blocks: 8) = fill_normal::<Bf16>;
    fn fill_normal_f16(threads: THREADS, min_blocks: 8) = fill_normal::<F16>;
}

/// The eight values of a group, before they are rounded to the element type. Shared with the host.
#[inline(always)]
pub fn group(seed: u64, group: u64, step: f32, offset: f32) -> [f32; GROUP] {
    let words = philox4x32::<7>([group as u32, (group >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let mut values = [0.0; GROUP];
    let mut i = 0;
    while i < 4 {
        // Sums of two bytes side by side: c + d below, a + b above.
        let sums = (words[i] & 0x00ff_00ff) + (words[i] >> 8 & 0x00ff_00ff);
        let (low, high) = ((sums & 0xffff) as i32 - 255, (sums >> 16) as i32 - 255);
        values[2 * i] = (high + low) as f32 * step + offset;
        values[2 * i + 1] = (high - low) as f32 * step + offset;
        i += 1;
    }
    values
}

#[inline(always)]
unsafe fn fill_normal<E: Elem>(out: *mut u16, len: u64, seed: u64, step: f32, offset: f32) {
    let stride = grid_dim_x() as u64 * THREADS as u64;
    let mut index = block_idx_x() as u64 * THREADS as u64 + thread_idx_x() as u64;
    let whole = len / GROUP as u64;
    grid_dependency_wait();
    while index < whole {
        let values = group(seed, index, step, offset);
        store_v4(out.add(index as usize * GROUP).cast(), E::pack8(values));
        index += stride;
    }
    // Exactly one thread's next group is the first that is not whole.
    if index == whole {
        let values = group(seed, index, step, offset);
        let rest = (len % GROUP as u64) as usize;
        for i in 0..GROUP {
            if i < rest {
                *out.add(index as usize * GROUP + i) = E::from_f32(values[i]);
            }
        }
    }
    grid_dependency_launch();
}
