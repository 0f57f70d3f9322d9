//! Matrix product of a few rows: the weights go from memory to registers and from there to the tensor cores.
//!
//! Grid: one block of four warps per 16 weight rows. The warps split K: warp w takes the blocks of 64 elements
//! 4i + w, of which lane l loads 16 bytes, the chunk l % 8, of the rows l / 8, 4 further, 8 and 12 further: whole lines
//! of 128 bytes. (64 bytes of twice as many rows a load, which `mma` wants, come at 3.7 TB/s where these do at 4.1.)
//! These go to `mma.m16n8k16` as they are, without a shuffle and without shared memory. In which order a
//! product adds up the elements of K is free, and what the instruction takes for row g of 8 is half g % 2 of the block,
//! of row g / 2; its columns are halves of tokens in the same way. Of the 8 by 8 sums those of equal halves count.
//!
//! The same lanes load the tokens, from L1, where the blocks of a multiprocessor meet them. `DEPTH` blocks of K are in
//! flight, those of the weights before the predecessor has ended. The warps' sums meet in shared memory and are added
//! in order.
//!
//! Bytes: 2·n·k of weights. Bound by memory: 16 warps per multiprocessor with `DEPTH` · 2 KiB each, 64 KiB and more, is
//! twice what its latency needs.
use crate::prim::{
    memory::{load_v4_if, load_v4_streaming_256_if},
    shared,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait, sync_threads, thread_idx_x},
    warp::{LANES, lane_id, shuffle_xor, warp_id},
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
pub const WEIGHT_ROWS: usize = 16;
/// Most rows of a.
pub const MAX_ROWS: usize = 16;
/// 16-byte chunks of a row in a block of K.
const CHUNKS: u32 = 8;
/// Weight rows of a lane.
const GROUPS: usize = WEIGHT_ROWS / 4;
/// f32 from token to token of a warp's sums: 8 more than the weight rows, so that the stores of a warp, 4 tokens by 8
/// rows, lie in 32 banks.
const PITCH: u32 = WEIGHT_ROWS as u32 + 8;

/// Bytes of shared memory for `m` rows of a.
pub const fn shared_bytes(m: usize) -> u32 {
    WARPS * m.next_multiple_of(8) as u32 * PITCH * 4
}

entry! {
    /// Arguments: `a`: [m, k], `w`: [n, k], the rest as [`Epilogue`].
    pub struct Narrow {
        a: *const u16, w: *const u16, bias: *const u16, out: *mut u16,
        m: u32, n: u32, k: u32, a_stride: u32, w_stride: u32, out_stride: u32, activation: u32, accumulate: u32,
    }
    fn narrow8_bf16(threads: THREADS, min_blocks: 4) = narrow::<Bf16, PLAIN, 2, 3>;
    fn narrow8_f16(threads: THREADS, min_blocks: 4) = narrow::<F16, PLAIN, 2, 3>;
    fn narrow8_gated_bf16(threads: THREADS, min_blocks: 4) = narrow::<Bf16, GATED, 2, 3>;
    fn narrow8_gated_f16(threads: THREADS, min_blocks: 4) = narrow::<F16, GATED, 2, 3>;
    fn narrow8_f32_bf16(threads: THREADS, min_blocks: 4) = narrow::<Bf16, F32, 2, 3>;
    fn narrow8_f32_f16(threads: THREADS, min_blocks: 4) = narrow::<F16, F32, 2, 3>;
    fn narrow16_bf16(threads: THREADS, min_blocks: 3) = narrow::<Bf16, PLAIN, 4, 2>;
    fn narrow16_f16(threads: THREADS, min_blocks: 3) = narrow::<F16, PLAIN, 4, 2>;
    fn narrow16_gated_bf16(threads: THREADS, min_blocks: 3) = narrow::<Bf16, GATED, 4, 2>;
    fn narrow16_gated_f16(threads: THREADS, min_blocks: 3) = narrow::<F16, GATED, 4, 2>;
    fn narrow16_f32_bf16(threads: THREADS, min_blocks: 3) = narrow::<Bf16, F32, 4, 2>;
    fn narrow16_f32_f16(threads: THREADS, min_blocks: 3) = narrow::<F16, F32, 4, 2>;
}

#[inline(always)]
unsafe fn narrow<E: Elem, const KIND: u32, const NT: usize, const DEPTH: usize>(
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
    let first_row = block_idx_x() * WEIGHT_ROWS as u32;
    let row = lane_id() / CHUNKS;
    let weights = Rows { matrix: w, stride: w_stride, first: first_row + row, rows: n, chunks: k / 8 };
    let tokens = Rows { matrix: a, stride: a_stride, first: row, rows: m, chunks: k / 8 };
    // The same for all warps; what lies beyond k is zero.
    let steps = k.div_ceil(WARPS * CHUNKS * 8);
    let chunk = |step: u32| (step * WARPS + warp_id()) * CHUNKS + lane_id() % CHUNKS;

    let mut ring = [([[0; 4]; GROUPS], [[0; 4]; NT]); DEPTH];
    for i in 0..DEPTH {
        ring[i].0 = weights.load_streaming(chunk(i as u32));
    }
    grid_dependency_launch();
    grid_dependency_wait();
    for i in 0..DEPTH {
        ring[i].1 = tokens.load(chunk(i as u32));
    }
    // [rows 0 to 8, rows 8 to 16][four tokens]
    let mut acc = [[[0.0f32; 4]; NT]; 2];
    let mut first = 0;
    while first < steps {
        for i in 0..DEPTH {
            let (w, x) = ring[i];
            for pair in 0..2 {
                let [lo, hi] = [2 * pair, 2 * pair + 1];
                for half in 0..2 {
                    let [upper, lower] = [w[2 * half], w[2 * half + 1]];
                    for t in 0..NT {
                        E::mma(&mut acc[half][t], [upper[lo], lower[lo], upper[hi], lower[hi]], [x[t][lo], x[t][hi]]);
                    }
                }
            }
            let next = chunk(first + (i + DEPTH) as u32);
            ring[i] = (weights.load_streaming(next), tokens.load(next));
        }
        first += DEPTH as u32;
    }
    put_sums(&acc);
    sync_threads();
    let epilogue = Epilogue { bias, out, out_stride, m, n, activation, accumulate };
    add_and_store::<E, KIND>(&epilogue, 4 * NT as u32, first_row);
}

/// The rows of a matrix that a lane reads: every fourth from `first` on.
#[derive(Clone, Copy)]
struct Rows {
    matrix: *const u16,
    stride: u32,
    first: u32,
    rows: u32,
    /// Chunks of a row.
    chunks: u32,
}

impl Rows {
    /// Where the chunk of the lane's row `i` is, and whether it is.
    #[inline(always)]
    unsafe fn at(&self, i: usize, chunk: u32) -> (bool, *const u32) {
        let row = self.first + 4 * i as u32;
        let inside = row < self.rows && chunk < self.chunks;
        // Not read from outside, but it has to be an address.
        let row = if row < self.rows { row } else { 0 };
        (inside, self.matrix.add(row as usize * self.stride as usize + chunk as usize * 8).cast())
    }
    #[inline(always)]
    unsafe fn load_streaming<const N: usize>(&self, chunk: u32) -> [[u32; 4]; N] {
        let mut x = [[0; 4]; N];
        for i in 0..N {
            let (inside, at) = self.at(i, chunk);
            x[i] = load_v4_streaming_256_if(inside, at);
        }
        x
    }
    #[inline(always)]
    unsafe fn load<const N: usize>(&self, chunk: u32) -> [[u32; 4]; N] {
        let mut x = [[0; 4]; N];
        for i in 0..N {
            let (inside, at) = self.at(i, chunk);
            x[i] = load_v4_if(inside, at);
        }
        x
    }
}

/// Where the sum of warp `warp` for a token and a weight row of the block lies.
#[inline(always)]
fn sum_at(tokens: u32, warp: u32, token: u32, row: u32) -> u32 {
    shared::base() + ((warp * tokens + token) * PITCH + row) * 4
}

/// Adds up the two halves of K and puts the warp's sums into shared memory.
#[inline(always)]
unsafe fn put_sums<const NT: usize>(acc: &[[[f32; 4]; NT]; 2]) {
    let (g, q) = (lane_id() / 4, lane_id() % 4);
    for half in 0..2 {
        for t in 0..NT {
            // Of this lane's two columns, both of token q, the one of its own half of K.
            let d = acc[half][t];
            let own = if g % 2 == 0 { [d[0], d[2]] } else { [d[1], d[3]] };
            let sums = own.map(|sum| sum + shuffle_xor(sum, 4));
            // The even lane of the pair stores rows 0 to 4, the odd one rows 4 to 8.
            let sum = if g % 2 == 0 { sums[0] } else { sums[1] };
            let row = 8 * half as u32 + 4 * (g % 2) + g / 2;
            shared::store_f32(sum_at(4 * NT as u32, warp_id(), 4 * t as u32 + q, row), sum);
        }
    }
}

/// The sums for weight rows `row` and `row` + 1 of the block, over the warps in order.
#[inline(always)]
unsafe fn pair_sum(tokens: u32, token: u32, row: u32) -> [f32; 2] {
    let mut sum = [0.0; 2];
    for warp in 0..WARPS {
        let bits = shared::load_u64(sum_at(tokens, warp, token, row));
        sum[0] += f32::from_bits(bits as u32);
        sum[1] += f32::from_bits((bits >> 32) as u32);
    }
    sum
}

/// Threads go over the tokens' pairs of columns; when gated over the pairs of gate columns.
#[inline(always)]
unsafe fn add_and_store<E: Elem, const KIND: u32>(epilogue: &Epilogue, tokens: u32, first_row: u32) {
    let pairs = if KIND == GATED { 4 } else { 8 };
    let (token, row) = (thread_idx_x() / pairs, thread_idx_x() % pairs * 2);
    if token >= epilogue.m {
        return;
    }
    let sum = pair_sum(tokens, token, row);
    if KIND == GATED {
        epilogue.store_gated::<E>(token, first_row + row, sum, pair_sum(tokens, token, row + 8));
    } else {
        epilogue.store_pair::<E, KIND>(token, first_row + row, sum);
    }
}
