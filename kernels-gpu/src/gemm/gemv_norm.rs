//! RMSNorm and the matrix product of one to four rows as one kernel: what [`gemv`](super::gemv) computes of the rows
//! that `norm/rms_norm` would have written, bit for bit.
//!
//! ```text
//! out = epilogue(h · wᵀ),  h = x · rsqrt(mean(x²) + eps) · norm_weight, rounded to the element type
//! ```
//! Grid: at most [`BLOCKS`] blocks per multiprocessor, each with every `grid_dim`-th group of 8 weight rows. Every block
//! normalises all rows of a for itself, into shared memory, while its first weights are on their way: 5 instructions
//! per 8-byte quad of a thread in place of a kernel, which at these sizes is nothing but its launch, its latency and
//! its tail (2.5 µs). That is why the blocks stay for several groups, the loads of the next one in flight at the end of
//! the one before.
//!
//! The sum of squares is taken in the norm kernel's order: a thread here is several of that kernel's
//! ([`threads`](row::threads)), whose warps' sums are added by the same butterfly.
//!
//! Bytes: 2·n·k of weights. Bound by memory.
use super::gemv::{DEPTH, Rows, THREADS, multiply, padded_chunks, store};
use crate::prim::{
    async_copy,
    math::{fma, rsqrt},
    shared,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, grid_dim_x, sync_threads, thread_idx_x},
    warp::{LANES, lane_id, warp_sum},
};
use crate::tile::{
    Bf16, Elem, F16,
    epilogue::{Epilogue, GATED, PLAIN},
    row,
};

/// Blocks per multiprocessor.
pub const BLOCKS: u32 = 6;
/// Steps of a thread of the norm kernel.
const STEPS: u32 = row::STEPS as u32;

/// Bytes of shared memory for `m` rows of `k`: these, the norm's weights, and a warp's worth of sums a row.
pub const fn shared_bytes(m: usize, k: usize) -> usize {
    let rows = m.next_power_of_two();
    (rows + 1) * padded_chunks(k as u32) as usize * 16 + rows * LANES as usize * 4
}

entry! {
    /// Arguments: `a`: [m, k] before the norm, `norm_weight`: [k], `w`: [n, k], the rest as [`Epilogue`].
    pub struct GemvNorm {
        a: *const u16, norm_weight: *const u16, w: *const u16, bias: *const u16, out: *mut u16,
        m: u32, n: u32, k: u32, a_stride: u32, w_stride: u32, out_stride: u32, activation: u32, accumulate: u32,
        eps: f32,
    }
    fn gemv1_norm_bf16(threads: THREADS, min_blocks: BLOCKS) = gemv_norm::<Bf16, PLAIN, 1>;
    fn gemv1_norm_f16(threads: THREADS, min_blocks: BLOCKS) = gemv_norm::<F16, PLAIN, 1>;
    fn gemv1_norm_gated_bf16(threads: THREADS, min_blocks: BLOCKS) = gemv_norm::<Bf16, GATED, 1>;
    fn gemv1_norm_gated_f16(threads: THREADS, min_blocks: BLOCKS) = gemv_norm::<F16, GATED, 1>;
    fn gemv2_norm_bf16(threads: THREADS, min_blocks: BLOCKS) = gemv_norm::<Bf16, PLAIN, 2>;
    fn gemv2_norm_f16(threads: THREADS, min_blocks: BLOCKS) = gemv_norm::<F16, PLAIN, 2>;
    fn gemv2_norm_gated_bf16(threads: THREADS, min_blocks: BLOCKS) = gemv_norm::<Bf16, GATED, 2>;
    fn gemv2_norm_gated_f16(threads: THREADS, min_blocks: BLOCKS) = gemv_norm::<F16, GATED, 2>;
    fn gemv4_norm_bf16(threads: THREADS, min_blocks: 4) = gemv_norm::<Bf16, PLAIN, 4>;
    fn gemv4_norm_f16(threads: THREADS, min_blocks: 4) = gemv_norm::<F16, PLAIN, 4>;
    fn gemv4_norm_gated_bf16(threads: THREADS, min_blocks: 4) = gemv_norm::<Bf16, GATED, 4>;
    fn gemv4_norm_gated_f16(threads: THREADS, min_blocks: 4) = gemv_norm::<F16, GATED, 4>;
}

#[inline(always)]
unsafe fn gemv_norm<E: Elem, const KIND: u32, const M: usize>(
    a: *const u16,
    norm_weight: *const u16,
    w: *const u16,
    bias: *const u16,
    out: *mut u16,
    m: u32,
    n: u32,
    k: u32,
    a_stride: u32,
    w_stride: u32,
    out_stride: u32,
    activation: u32,
    accumulate: u32,
    eps: f32,
) {
    let epilogue = Epilogue { bias, out, out_stride, m, n, activation, accumulate };
    Input { a, norm_weight, m, k, a_stride, eps }.multiply::<E, M, ()>(
        |group| Rows::new::<KIND>(group, w, n, k / 8, w_stride),
        n,
        |_| (),
        |row, (), sums| store::<E, KIND, M>(&epilogue, row, sums),
    );
}

/// What is normalised; made from a kernel's parameters.
pub(super) struct Input {
    pub a: *const u16,
    pub norm_weight: *const u16,
    pub m: u32,
    pub k: u32,
    pub a_stride: u32,
    pub eps: f32,
}

impl Input {
    /// Multiplies the normalised rows with all groups of this block: `weights(group)` are this warp's two, below `n`.
    /// Before a group's loop comes `prepare(row)`, what it returns goes to `finish` with the lanes' sums.
    #[inline(always)]
    pub unsafe fn multiply<E: Elem, const M: usize, T: Copy>(
        &self,
        weights: impl Fn(u32) -> Rows,
        n: u32,
        prepare: impl Fn(u32) -> T,
        finish: impl Fn(u32, T, &[[f32; 2]; M]),
    ) {
        const BATCH: u32 = DEPTH * LANES;
        let (padded, lane) = (padded_chunks(self.k), lane_id());
        let mut group = block_idx_x();
        let mut rows = weights(group);

        let mut ring = [[[0u32; 4]; 2]; DEPTH as usize];
        for i in 0..DEPTH {
            for r in 0..2 {
                ring[i as usize][r] = rows.load(r, i * LANES + lane);
            }
        }
        let staging = Staging { m: self.m, k: self.k, chunks: self.k / 8, padded };
        // Nothing in the stream writes the norm's weights.
        staging.copy(staging.row_at(M as u32), self.norm_weight, true);
        grid_dependency_launch();
        grid_dependency_wait();
        staging.normalise::<E, M>(self.a, self.a_stride, self.eps);

        let mine = shared::base() + lane * 16;
        while rows.row < n {
            group += grid_dim_x();
            let next = weights(group);
            let prepared = prepare(rows.row);
            let mut sums = [[0.0f32; 2]; M];
            let mut first = 0;
            while first < padded {
                let ahead = first + BATCH;
                let (from, at) = if ahead < padded { (rows, ahead) } else { (next, 0) };
                for i in 0..DEPTH {
                    multiply::<E, M>(&mut sums, ring[i as usize], mine + (first + i * LANES) * 16, padded);
                    for r in 0..2 {
                        ring[i as usize][r] = from.load(r, at + i * LANES + lane);
                    }
                }
                first = ahead;
            }
            finish(rows.row, prepared, &sums);
            rows = next;
        }
    }
}

/// How the rows of a lie in shared memory: `padded` chunks of 16 bytes each, behind them the norm's weights, then a
/// row's sums of squares per warp of the norm kernel.
#[derive(Clone, Copy)]
struct Staging {
    m: u32,
    k: u32,
    chunks: u32,
    padded: u32,
}

impl Staging {
    /// Threads of the norm kernel. This one's are `thread_idx_x()`, `THREADS` further, and so on.
    #[inline(always)]
    fn threads(&self) -> u32 {
        row::threads(self.k)
    }
    #[inline(always)]
    fn row_at(&self, row: u32) -> u32 {
        shared::base() + row * self.padded * 16
    }

    /// Starts to copy this thread's chunks of a row from `from` to `to`; zeros where there are none.
    #[inline(always)]
    unsafe fn copy(&self, to: u32, from: *const u16, exists: bool) {
        let mut thread = thread_idx_x();
        while thread < self.threads() {
            for step in 0..STEPS {
                let chunk = thread + step * self.threads();
                let inside = exists && chunk < self.chunks;
                let from = if inside { from.add(chunk as usize * 8) } else { from };
                async_copy::copy_16(to + chunk * 16, from.cast(), if inside { 16 } else { 0 });
            }
            thread += THREADS;
        }
        async_copy::commit();
    }

    /// Leaves the normalised rows of a in shared memory, for all threads; rows from m on and the padding are finite.
    #[inline(always)]
    unsafe fn normalise<E: Elem, const M: usize>(&self, a: *const u16, a_stride: u32, eps: f32) {
        for row in 0..M as u32 {
            let exists = row < self.m;
            let from = if exists { a.add(row as usize * a_stride as usize) } else { a };
            self.copy(self.row_at(row), from, exists);
            // What no thread of the norm kernel has.
            let mut chunk = STEPS * self.threads() + thread_idx_x();
            while chunk < self.padded {
                shared::store_v4(self.row_at(row) + chunk * 16, [0; 4]);
                chunk += THREADS;
            }
        }
        // A thread reads here only what it copied itself: no barrier.
        async_copy::wait::<0>();
        let sums = self.row_at(M as u32 + 1);
        for row in 0..M as u32 {
            self.sum_squares::<E>(self.row_at(row), sums + row * LANES * 4);
        }
        sync_threads();
        for row in 0..M as u32 {
            let at = sums + (row * LANES + lane_id()) * 4;
            let share = if lane_id() < self.threads() / LANES { shared::load_f32(at) } else { 0.0 };
            let scale = rsqrt(warp_sum(share) / self.k as f32 + eps);
            self.scale::<E>(self.row_at(row), self.row_at(M as u32), scale);
        }
        sync_threads();
    }

    /// The sums of squares of the norm kernel's warps of which this is a part, to `sums`.
    #[inline(always)]
    unsafe fn sum_squares<E: Elem>(&self, row: u32, sums: u32) {
        let mut thread = thread_idx_x();
        // The same number of turns in all lanes: there are whole warps of threads.
        while thread < self.threads() {
            let mut squares = 0.0;
            for step in 0..STEPS {
                let x = E::unpack8(shared::load_v4(row + (thread + step * self.threads()) * 16));
                for i in 0..8 {
                    squares = fma(x[i], x[i], squares);
                }
            }
            let sum = warp_sum(squares);
            if lane_id() == 0 {
                shared::store_f32(sums + thread / LANES * 4, sum);
            }
            thread += THREADS;
        }
    }

    /// Multiplies a row by its scale and the norm's weights, in place.
    #[inline(always)]
    unsafe fn scale<E: Elem>(&self, row: u32, gain: u32, scale: f32) {
        let mut thread = thread_idx_x();
        while thread < self.threads() {
            for step in 0..STEPS {
                let at = (thread + step * self.threads()) * 16;
                let mut x = E::unpack8(shared::load_v4(row + at));
                let gain = E::unpack8(shared::load_v4(gain + at));
                for i in 0..8 {
                    x[i] = x[i] * scale * gain[i];
                }
                shared::store_v4(row + at, E::pack8(x));
            }
            thread += THREADS;
        }
    }
}
