//! What kernel families share.
mod elem;
pub mod epilogue;
pub mod kv;
pub mod meeting;
pub mod philox;
pub mod quad;
pub mod reduce;
mod ring;
pub mod rope;
pub mod row;
mod warpgroup;

pub use elem::*;
pub use ring::{DeepRing, Ring};
pub use warpgroup::{WarpgroupMma, WarpgroupMmaRegisters};

/// Of a power of two. Divisions, 30 to 100 cycles each, would delay a kernel's first copy.
#[inline(always)]
pub fn log2(x: u32) -> u32 {
    x.trailing_zeros()
}
