//! Rotary position embedding, optional q and k RMSNorm, and the write into the paged KV cache.
//!
//! ```text
//! q, k: x ← x · rsqrt(mean(x²) + eps) · weight            over head_dim, where a weight is given
//! q, k: (x₁, x₂) ← (x₁ cos − x₂ sin, x₂ cos + x₁ sin)     angle = position · frequency[i], cos and sin × scale
//!       pairs: (x[i], x[i + rotary/2]), or interleaved (x[2i], x[2i + 1]); dimensions from rotary on pass through
//! q goes back to its place, k and v to their slot in the cache pools (layout: tile/kv.rs)
//! ```
//! Grid: (tokens, head groups) blocks of 128 threads; head_dim / 16 neighbouring threads share a head (of 96, 8 of
//! which two are idle) and a
//! block strides over the q, k and v heads of its token. The launcher gives a token one block where there are
//! tokens enough to fill the GPU, so that sines are computed once for several heads (a sine and cosine cost
//! about as much as moving 16 bytes), and one block per [`heads_per_block`] heads otherwise (decode).
//! Bytes per token: 4·(heads + 2·kv_heads)·head_dim. Bound by memory; by the launch at decode.
//!
//! Thread p of a head owns two 16-byte chunks (8 dimensions each), chosen so that every pair lies within one
//! thread, in both conventions with the frequencies 8p..8p+8 (R = rotary_dim / 16, so p < R rotates):
//!
//! | convention  | p < R                                 | p ≥ R (pass through) |
//! |-------------|---------------------------------------|----------------------|
//! | halves      | p and p + R: pair j is (a[j], b[j])   | 2p and 2p + 1        |
//! | interleaved | 2p and 2p + 1: pairs (a[2j], a[2j+1]) | 2p and 2p + 1        |
//!
//! Nothing is exchanged but the sums of squares, and q can be rotated in place. A chunk is also the unit of
//! the cache's swizzle, so every access is 16 bytes.
//!
//! A slot at or beyond the pool's size (`u32::MAX` by convention) writes neither k nor v. Everything is f32
//! between the one load and the one rounding.
use crate::prim::{
    math::{fma, rsqrt, sin_cos},
    memory::{load_v4, store_v4},
    thread::{block_idx_x, block_idx_y, grid_dependency_launch, grid_dependency_wait, grid_dim_y, thread_idx_x},
    warp::shuffle_xor,
};
use crate::tile::{Bf16, Elem, F16, kv, rope::rotate_pair};

/// Threads per block.
pub const THREADS: u32 = 128;
/// Dimensions that a thread owns in a head.
const SHARE: usize = 16;
/// The rotary dimension must be a multiple of this: both halves of a thread's pairs are whole chunks.
pub const ROTARY_MULTIPLE: usize = SHARE;

/// Neighbouring threads that share a head: a power of two, for the shuffles.
const fn lanes(head_dim: usize) -> usize {
    (head_dim / SHARE).next_power_of_two()
}

/// Heads that a block handles at once.
pub const fn heads_per_block(head_dim: usize) -> usize {
    THREADS as usize / lanes(head_dim)
}

entry! {
    /// Arguments: `qkv`: [tokens, (heads + 2·kv_heads)·head_dim], rows `stride` elements apart; `q_norm`, `k_norm`:
    /// [head_dim] or null; `positions`, `slots`: [tokens]; `frequencies`: [rotary_dim / 2]; `rotating` =
    /// rotary_dim / 16; the pools hold `pool_slots` tokens each.
    pub struct RopeKv {
        qkv: *mut u16, q_norm: *const u16, k_norm: *const u16, positions: *const u32, slots: *const u32,
        frequencies: *const f32, k_cache: *mut u16, v_cache: *mut u16,
        stride: u32, heads: u32, kv_heads: u32, rotating: u32, interleaved: u32, pool_slots: u32,
        norm_eps: f32, attention_scale: f32,
    }
    fn rope_kv_64_bf16(threads: THREADS, min_blocks: 6) = rope_kv::<Bf16, 64>;
    fn rope_kv_64_f16(threads: THREADS, min_blocks: 6) = rope_kv::<F16, 64>;
    fn rope_kv_96_bf16(threads: THREADS, min_blocks: 6) = rope_kv::<Bf16, 96>;
    fn rope_kv_96_f16(threads: THREADS, min_blocks: 6) = rope_kv::<F16, 96>;
    fn rope_kv_128_bf16(threads: THREADS, min_blocks: 6) = rope_kv::<Bf16, 128>;
    fn rope_kv_128_f16(threads: THREADS, min_blocks: 6) = rope_kv::<F16, 128>;
    fn rope_kv_256_bf16(threads: THREADS, min_blocks: 6) = rope_kv::<Bf16, 256>;
    fn rope_kv_256_f16(threads: THREADS, min_blocks: 6) = rope_kv::<F16, 256>;
}

#[inline(always)]
unsafe fn rope_kv<E: Elem, const HEAD_DIM: usize>(
    qkv: *mut u16,
    q_norm: *const u16,
    k_norm: *const u16,
    positions: *const u32,
    slots: *const u32,
    frequencies: *const f32,
    k_cache: *mut u16,
    v_cache: *mut u16,
    stride: u32,
    heads: u32,
    kv_heads: u32,
    rotating: u32,
    interleaved: u32,
    pool_slots: u32,
    norm_eps: f32,
    attention_scale: f32,
) {
    let lanes = lanes(HEAD_DIM) as u32;
    let token = block_idx_x() as usize;
    let qkv = qkv.add(token * stride as usize);
    let p = thread_idx_x() % lanes;
    // Whether the thread has dimensions. One that has none reads the last one's and writes nothing.
    let works = p < (HEAD_DIM / SHARE) as u32;
    let p = if works { p } else { (HEAD_DIM / SHARE) as u32 - 1 };
    let rotates = p < rotating;
    let halves = interleaved == 0;
    let [a, b] = if halves && rotates { [p, p + rotating] } else { [2 * p, 2 * p + 1] };

    // A product behind this has weights to fetch meanwhile.
    grid_dependency_launch();
    grid_dependency_wait();
    let slot = *slots.add(token);
    let (mut sin, mut cos) = ([0.0; 8], [1.0; 8]);
    if rotates {
        let position = *positions.add(token) as f32;
        let frequency = load_f32x8(frequencies.add(8 * p as usize));
        for i in 0..8 {
            let (s, c) = sin_cos(position * frequency[i]);
            (sin[i], cos[i]) = (s * attention_scale, c * attention_scale);
        }
    }

    // The trip count is the same for all threads: the shuffles below need whole warps.
    let per_block = THREADS / lanes;
    let total = heads + 2 * kv_heads;
    let mut first = block_idx_y() * per_block;
    while first < total {
        let head = first + thread_idx_x() / lanes;
        first += grid_dim_y() * per_block;
        let exists = head < total;
        // Beyond the last head, read the last one (a v, which nothing writes): with a branch around the loads
        // LLVM gives each of its arms a copy of the shuffles.
        let head = if exists { head } else { total - 1 };
        let at = |chunk: u32| head as usize * HEAD_DIM + chunk as usize * 8;
        let (mut x, mut y) = (load_v4(qkv.add(at(a)).cast()), load_v4(qkv.add(at(b)).cast()));
        let (is_q, is_v) = (head < heads, head >= heads + kv_heads);
        let scale = norm_scale::<E, HEAD_DIM>(x, y, works, norm_eps);
        if exists && !is_v {
            let weight = if is_q { q_norm } else { k_norm };
            let (mut u, mut v) = (E::unpack8(x), E::unpack8(y));
            if !weight.is_null() {
                let w = E::unpack8(load_v4(weight.add(8 * a as usize).cast()));
                let z = E::unpack8(load_v4(weight.add(8 * b as usize).cast()));
                for i in 0..8 {
                    u[i] *= scale * w[i];
                    v[i] *= scale * z[i];
                }
            }
            if rotates {
                rotate(&mut u, &mut v, &sin, &cos, halves);
            }
            (x, y) = (E::pack8(u), E::pack8(v));
        }
        if exists && works && is_q {
            store_v4(qkv.add(at(a)).cast(), x);
            store_v4(qkv.add(at(b)).cast(), y);
        } else if exists && works && slot < pool_slots {
            let (pool, kv_head) = if is_v { (v_cache, head - heads - kv_heads) } else { (k_cache, head - heads) };
            let (page, row) = (slot as usize / kv::PAGE, slot as usize % kv::PAGE);
            let to =
                |chunk: u32| kv::offset(page, kv_head as usize, row, chunk as usize * 8, kv_heads as usize, HEAD_DIM);
            store_v4(pool.add(to(a)).cast(), x);
            store_v4(pool.add(to(b)).cast(), y);
        }
    }
}

/// rsqrt(mean of squares + eps) over a head, the same bits in all its threads, of which those that `works` have a
/// share. All of the warp must call.
#[inline(always)]
fn norm_scale<E: Elem, const HEAD_DIM: usize>(x: [u32; 4], y: [u32; 4], works: bool, eps: f32) -> f32 {
    let (u, v) = (E::unpack8(x), E::unpack8(y));
    let mut squares = 0.0;
    for i in 0..8 {
        squares = fma(u[i], u[i], squares);
        squares = fma(v[i], v[i], squares);
    }
    if !works {
        squares = 0.0;
    }
    squares += shuffle_xor(squares, 1);
    squares += shuffle_xor(squares, 2);
    if HEAD_DIM > 64 {
        squares += shuffle_xor(squares, 4);
    }
    if HEAD_DIM > 128 {
        squares += shuffle_xor(squares, 8);
    }
    rsqrt(fma(squares, 1.0 / HEAD_DIM as f32, eps))
}

/// Rotates a thread's eight pairs.
#[inline(always)]
fn rotate(u: &mut [f32; 8], v: &mut [f32; 8], sin: &[f32; 8], cos: &[f32; 8], halves: bool) {
    if halves {
        for i in 0..8 {
            (u[i], v[i]) = rotate_pair(u[i], v[i], sin[i], cos[i]);
        }
    } else {
        for i in 0..4 {
            (u[2 * i], u[2 * i + 1]) = rotate_pair(u[2 * i], u[2 * i + 1], sin[i], cos[i]);
            (v[2 * i], v[2 * i + 1]) = rotate_pair(v[2 * i], v[2 * i + 1], sin[i + 4], cos[i + 4]);
        }
    }
}

#[inline(always)]
unsafe fn load_f32x8(p: *const f32) -> [f32; 8] {
    let (lo, hi) = (load_v4(p.cast()), load_v4(p.add(4).cast()));
    [lo[0], lo[1], lo[2], lo[3], hi[0], hi[1], hi[2], hi[3]].map(f32::from_bits)
}
