//! Matrix product of one to four rows: each warp streams two rows of the weights.
//!
//! Grid: one block of four warps per 8 weight rows. Warp i has rows 2i and 2i + 1 or, when gated, a gate row and its
//! up row, 8 further. A lane takes 16 bytes of every 512 of a row and keeps eight loads in flight, the
//! first eight issued before the predecessor has ended. The rows of a lie in shared memory, padded with zeros to a
//! multiple of 1024 elements; the f32 sums of the lanes are added by butterfly.
//!
//! Bytes: 2·n·k weights. Bound by memory: 16 warps per SM have 64 KiB in flight, twice what its latency needs.
use crate::prim::{
    async_copy,
    math::fma,
    memory::load_v4_streaming_if,
    shared,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, sync_threads, thread_idx_x},
    warp::{LANES, lane_id, warp_id, warp_sum},
};
use crate::tile::{
    Bf16, Elem, F16,
    epilogue::{Epilogue, F32, GATED, PLAIN},
};

/// Warps per block.
const WARPS: u32 = 4;
/// Threads per block.
pub const THREADS: u32 = WARPS * LANES;
/// Weight rows per block.
pub const WEIGHT_ROWS: usize = 2 * WARPS as usize;
/// Most rows of a.
pub const MAX_ROWS: usize = 4;
/// Loads per row that a lane keeps in flight.
pub(super) const DEPTH: u32 = 4;

/// 16-byte chunks of a row of a in shared memory.
#[inline(always)]
pub(super) const fn padded_chunks(k: u32) -> u32 {
    (k / 8).next_multiple_of(DEPTH * LANES)
}

/// Bytes of shared memory for `m` rows of `k`.
pub const fn shared_bytes(m: usize, k: usize) -> usize {
    m.next_power_of_two() * padded_chunks(k as u32) as usize * 16
}

entry! {
    /// Arguments: `a`: [m, k], `w`: [n, k], the rest as [`Epilogue`].
    pub struct Gemv {
        a: *const u16, w: *const u16, bias: *const u16, out: *mut u16,
        m: u32, n: u32, k: u32, a_stride: u32, w_stride: u32, out_stride: u32, activation: u32, accumulate: u32,
    }
    fn gemv1_bf16(threads: THREADS, min_blocks: 4) = gemv::<Bf16, PLAIN, 1>;
    fn gemv1_f16(threads: THREADS, min_blocks: 4) = gemv::<F16, PLAIN, 1>;
    fn gemv1_gated_bf16(threads: THREADS, min_blocks: 4) = gemv::<Bf16, GATED, 1>;
    fn gemv1_gated_f16(threads: THREADS, min_blocks: 4) = gemv::<F16, GATED, 1>;
    fn gemv1_f32_bf16(threads: THREADS, min_blocks: 4) = gemv::<Bf16, F32, 1>;
    fn gemv1_f32_f16(threads: THREADS, min_blocks: 4) = gemv::<F16, F32, 1>;
    fn gemv2_bf16(threads: THREADS, min_blocks: 4) = gemv::<Bf16, PLAIN, 2>;
    fn gemv2_f16(threads: THREADS, min_blocks: 4) = gemv::<F16, PLAIN, 2>;
    fn gemv2_gated_bf16(threads: THREADS, min_blocks: 4) = gemv::<Bf16, GATED, 2>;
    fn gemv2_gated_f16(threads: THREADS, min_blocks: 4) = gemv::<F16, GATED, 2>;
    fn gemv2_f32_bf16(threads: THREADS, min_blocks: 4) = gemv::<Bf16, F32, 2>;
    fn gemv2_f32_f16(threads: THREADS, min_blocks: 4) = gemv::<F16, F32, 2>;
    fn gemv4_bf16(threads: THREADS, min_blocks: 4) = gemv::<Bf16, PLAIN, 4>;
    fn gemv4_f16(threads: THREADS, min_blocks: 4) = gemv::<F16, PLAIN, 4>;
    fn gemv4_gated_bf16(threads: THREADS, min_blocks: 4) = gemv::<Bf16, GATED, 4>;
    fn gemv4_gated_f16(threads: THREADS, min_blocks: 4) = gemv::<F16, GATED, 4>;
    fn gemv4_f32_bf16(threads: THREADS, min_blocks: 4) = gemv::<Bf16, F32, 4>;
    fn gemv4_f32_f16(threads: THREADS, min_blocks: 4) = gemv::<F16, F32, 4>;
}

#[inline(always)]
unsafe fn gemv<E: Elem, const KIND: u32, const M: usize>(
    a: *const u16,
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
) {
    let (chunks, padded, lane) = (k / 8, padded_chunks(k), lane_id());
    let rows = Rows::new::<KIND>(block_idx_x(), w, n, chunks, w_stride);

    let mut w = [[[0u32; 4]; 2]; DEPTH as usize];
    for i in 0..DEPTH {
        for r in 0..2 {
            w[i as usize][r] = rows.load(r, i * LANES + lane);
        }
    }
    grid_dependency_launch();
    grid_dependency_wait();
    stage_rows::<M>(a, m, a_stride, chunks, padded);

    let mut sums = [[0.0f32; 2]; M];
    let mine = shared::base() + lane * 16;
    let mut first = 0;
    while first < padded {
        for i in 0..DEPTH {
            let chunk = first + i * LANES;
            multiply::<E, M>(&mut sums, w[i as usize], mine + chunk * 16, padded);
            for r in 0..2 {
                w[i as usize][r] = rows.load(r, chunk + DEPTH * LANES + lane);
            }
        }
        first += DEPTH * LANES;
    }
    let epilogue = Epilogue { bias, out, out_stride, m, n, activation, accumulate };
    store::<E, KIND, M>(&epilogue, rows.row, &sums);
}

/// The two weight rows of a warp.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// The first.
    pub row: u32,
    from: [*const u32; 2],
    valid: [bool; 2],
    chunks: u32,
}

impl Rows {
    /// Those of this warp among the 8 of `group`, of [n, 8 · chunks] at `w`.
    #[inline(always)]
    pub unsafe fn new<const KIND: u32>(group: u32, w: *const u16, n: u32, chunks: u32, w_stride: u32) -> Self {
        let pair = Self::pair(group);
        let (row, apart) = if KIND == GATED { (pair / 8 * 16 + pair % 8, 8) } else { (pair * 2, 1) };
        Rows::at(row, apart, w, n, chunks, w_stride)
    }

    /// Which of all pairs of rows is this warp's in `group`.
    #[inline(always)]
    pub fn pair(group: u32) -> u32 {
        group * WARPS + warp_id()
    }

    /// Row `row` and the one `apart` further.
    #[inline(always)]
    pub unsafe fn at(row: u32, apart: u32, w: *const u16, n: u32, chunks: u32, w_stride: u32) -> Self {
        // Addresses of rows outside are not read from, but have to be ones.
        let clamp = |row: u32| w.add((if row < n { row } else { 0 }) as usize * w_stride as usize).cast::<u32>();
        Rows { row, from: [clamp(row), clamp(row + apart)], valid: [row < n, row + apart < n], chunks }
    }

    /// Eight elements of the first or the second; zeros outside.
    #[inline(always)]
    pub unsafe fn load(&self, second: usize, chunk: u32) -> [u32; 4] {
        let inside = self.valid[second] && chunk < self.chunks;
        load_v4_streaming_if(inside, self.from[second].add(chunk as usize * 4))
    }
}

/// Adds the products of eight elements of both weight rows with the rows of a, `padded` chunks apart from `at` on in
/// shared memory.
#[inline(always)]
pub(super) unsafe fn multiply<E: Elem, const M: usize>(
    sums: &mut [[f32; 2]; M],
    w: [[u32; 4]; 2],
    at: u32,
    padded: u32,
) {
    let [w0, w1] = w.map(E::unpack8);
    for row in 0..M {
        let x = E::unpack8(shared::load_v4(at + row as u32 * padded * 16));
        for e in 0..8 {
            sums[row][0] = fma(w0[e], x[e], sums[row][0]);
            sums[row][1] = fma(w1[e], x[e], sums[row][1]);
        }
    }
}

/// Adds up the lanes' sums: every lane gets all of them, lane i returns those of row i of out.
#[inline(always)]
pub(super) fn own_sums<const M: usize>(sums: &[[f32; 2]; M]) -> [f32; 2] {
    let mut mine = [0.0; 2];
    for row in 0..M {
        let sum = [warp_sum(sums[row][0]), warp_sum(sums[row][1])];
        if lane_id() == row as u32 {
            mine = sum;
        }
    }
    mine
}

/// Adds up the lanes' sums for weight row `row` and its second, and stores them.
#[inline(always)]
pub(super) unsafe fn store<E: Elem, const KIND: u32, const M: usize>(
    epilogue: &Epilogue,
    row: u32,
    sums: &[[f32; 2]; M],
) {
    let (mine, lane) = (own_sums(sums), lane_id());
    if lane < M as u32 {
        if KIND == GATED {
            epilogue.store_gated_one::<E>(lane, row, mine[0], mine[1]);
        } else {
            epilogue.store_pair::<E, KIND>(lane, row, mine);
        }
    }
}

/// Copies the rows of a to shared memory, `padded` chunks each; rows from m on and the padding become zeros.
#[inline(always)]
unsafe fn stage_rows<const M: usize>(a: *const u16, m: u32, a_stride: u32, chunks: u32, padded: u32) {
    for row in 0..M as u32 {
        let mut chunk = thread_idx_x();
        while chunk < padded {
            let inside = row < m && chunk < chunks;
            let from = if inside { a.add(row as usize * a_stride as usize + chunk as usize * 8) } else { a };
            async_copy::copy_16(shared::base() + (row * padded + chunk) * 16, from.cast(), if inside { 16 } else { 0 });
            chunk += THREADS;
        }
    }
    async_copy::commit();
    async_copy::wait::<0>();
    sync_threads();
}
