//! Execution: blocks of warps, one instruction of one warp at a time.

mod access;
mod alu;
mod asynchronous;
mod barrier;
pub(crate) mod cluster;
mod collective;
mod convert;
mod copy;
mod flight;
mod float;
mod half;
pub(crate) mod launch;
mod matrix;
mod mbarrier;
mod order;
mod partial;
mod progress;
mod schedule;
mod step;
mod traffic;
mod warp;
mod warpgroup;

/// One value per lane.
pub(crate) type Lanes<T> = [T; 32];

/// All lanes of a warp.
pub(crate) const ALL: u32 = u32::MAX;

/// The lanes in `mask`, from the lowest.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros();
        left &= left.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}

/// Applies `f` to each lane.
pub(crate) fn map<A: Copy, T: Copy + Default>(a: &Lanes<A>, f: impl Fn(A) -> T) -> Lanes<T> {
    let mut out = [T::default(); 32];
    for lane in 0..32 {
        out[lane] = f(a[lane]);
    }
    out
}

/// Applies `f` to each lane of two values.
pub(crate) fn map2<A: Copy, B: Copy, T: Copy + Default>(a: &Lanes<A>, b: &Lanes<B>, f: impl Fn(A, B) -> T) -> Lanes<T> {
    let mut out = [T::default(); 32];
    for lane in 0..32 {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

/// Applies `f` to each lane of three values.
pub(crate) fn map3<A: Copy, B: Copy, C: Copy, T: Copy + Default>(
    a: &Lanes<A>,
    b: &Lanes<B>,
    c: &Lanes<C>,
    f: impl Fn(A, B, C) -> T,
) -> Lanes<T> {
    let mut out = [T::default(); 32];
    for lane in 0..32 {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    out
}
