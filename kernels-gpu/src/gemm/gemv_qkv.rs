//! The head of an attention block for one to four tokens as one kernel: RMSNorm, the product with the stacked q, k and v
//! weights, RoPE, and the write into the paged KV cache. What [`gemv_norm`](super::gemv_norm) and `rope/rope_kv` compute
//! one after the other, bit for bit.
//!
//! ```text
//! q, k, v = h · wᵀ + bias, rounded,  h = rms_norm(a), rounded
//! q, k: (x[i], x[i + d/2]) turned by position · frequency[i]       d = head_dim
//! q goes to out, k and v to their slot in the cache pools
//! ```
//! Grid: as [`gemv_norm`](super::gemv_norm), with another pair of weight rows for a warp: i and i + d/2 of a head, whose
//! products are what RoPE turns together. So lane t has both values of token t and nothing is exchanged. Its sine and
//! cosine are computed while the weights are on their way. k and v never reach `out`, whose columns for them stay as they
//! were.
//!
//! Bytes: 2·n·k of weights. Bound by memory. Saves a kernel that at these sizes is nothing but its launch, its latency
//! and its tail (2 µs).
use super::gemv::{Rows, THREADS, own_sums};
use super::gemv_norm::Input;
use crate::prim::{math::sin_cos, warp::lane_id};
use crate::tile::{Bf16, Elem, F16, kv, rope::rotate_pair};

entry! {
    /// Arguments: `a`: [m, k] before the norm, `norm_weight`: [k], `w`: [n, k] with n = (heads + 2·kv_heads)·2·half,
    /// `bias`: [n] or null, `out`: [m, n]; `positions`, `slots`: [m]; `frequencies`: [half] of a head's dimensions; the
    /// pools hold `pool_slots` tokens each.
    pub struct GemvQkv {
        a: *const u16, norm_weight: *const u16, w: *const u16, bias: *const u16, out: *mut u16,
        positions: *const u32, slots: *const u32, frequencies: *const f32, k_cache: *mut u16, v_cache: *mut u16,
        m: u32, n: u32, k: u32, a_stride: u32, w_stride: u32, out_stride: u32, eps: f32,
        heads: u32, kv_heads: u32, half: u32, pool_slots: u32, attention_scale: f32,
    }
    fn gemv1_qkv_bf16(threads: THREADS, min_blocks: super::gemv_norm::BLOCKS) = gemv_qkv::<Bf16, 1>;
    fn gemv1_qkv_f16(threads: THREADS, min_blocks: super::gemv_norm::BLOCKS) = gemv_qkv::<F16, 1>;
    fn gemv2_qkv_bf16(threads: THREADS, min_blocks: super::gemv_norm::BLOCKS) = gemv_qkv::<Bf16, 2>;
    fn gemv2_qkv_f16(threads: THREADS, min_blocks: super::gemv_norm::BLOCKS) = gemv_qkv::<F16, 2>;
    fn gemv4_qkv_bf16(threads: THREADS, min_blocks: 4) = gemv_qkv::<Bf16, 4>;
    fn gemv4_qkv_f16(threads: THREADS, min_blocks: 4) = gemv_qkv::<F16, 4>;
}

#[inline(always)]
unsafe fn gemv_qkv<E: Elem, const M: usize>(
    a: *const u16,
    norm_weight: *const u16,
    w: *const u16,
    bias: *const u16,
    out: *mut u16,
    positions: *const u32,
    slots: *const u32,
    frequencies: *const f32,
    k_cache: *mut u16,
    v_cache: *mut u16,
    m: u32,
    n: u32,
    k: u32,
    a_stride: u32,
    w_stride: u32,
    out_stride: u32,
    eps: f32,
    heads: u32,
    kv_heads: u32,
    half: u32,
    pool_slots: u32,
    attention_scale: f32,
) {
    let rotation = Rotation { positions, frequencies, m, rotated: heads + kv_heads, half, scale: attention_scale };
    let to = To { bias, out, out_stride, slots, k_cache, v_cache, heads, kv_heads, half, pool_slots };
    Input { a, norm_weight, m, k, a_stride, eps }.multiply::<E, M, (f32, f32)>(
        |group| {
            let pair = Rows::pair(group);
            Rows::at(pair / half * 2 * half + pair % half, half, w, n, k / 8, w_stride)
        },
        n,
        |row| rotation.of(row),
        |row, turn, sums| {
            let mine = own_sums(sums);
            if lane_id() < m {
                to.store::<E>(lane_id(), row, mine, turn);
            }
        },
    );
}

/// The angles.
struct Rotation {
    positions: *const u32,
    frequencies: *const f32,
    m: u32,
    /// Heads of q and k.
    rotated: u32,
    half: u32,
    scale: f32,
}

impl Rotation {
    /// Sine and cosine of this lane's token for weight row `row` and the one `half` further: of v's no rotation.
    #[inline(always)]
    unsafe fn of(&self, row: u32) -> (f32, f32) {
        let (head, i) = (row / (2 * self.half), row % (2 * self.half));
        if lane_id() < self.m && head < self.rotated {
            let angle = *self.positions.add(lane_id() as usize) as f32 * *self.frequencies.add(i as usize);
            let (sin, cos) = sin_cos(angle);
            (sin * self.scale, cos * self.scale)
        } else {
            (0.0, 1.0)
        }
    }
}

/// Where q, k and v go.
struct To {
    bias: *const u16,
    out: *mut u16,
    out_stride: u32,
    slots: *const u32,
    k_cache: *mut u16,
    v_cache: *mut u16,
    heads: u32,
    kv_heads: u32,
    half: u32,
    pool_slots: u32,
}

impl To {
    /// Stores the values of weight rows `row` and `row + half` for a token.
    #[inline(always)]
    unsafe fn store<E: Elem>(&self, token: u32, row: u32, sums: [f32; 2], (sin, cos): (f32, f32)) {
        let rows = [row, row + self.half];
        let mut v = sums;
        for i in 0..2 {
            if !self.bias.is_null() {
                v[i] += E::to_f32(*self.bias.add(rows[i] as usize));
            }
            // The product's rounding, which RoPE as a kernel of its own reads.
            v[i] = E::to_f32(E::from_f32(v[i]));
        }
        let (head, dim) = (row / (2 * self.half), row % (2 * self.half));
        let is_v = head >= self.heads + self.kv_heads;
        if !is_v {
            (v[0], v[1]) = rotate_pair(v[0], v[1], sin, cos);
        }
        let bits = v.map(E::from_f32);
        if head < self.heads {
            let out = self.out.add(token as usize * self.out_stride as usize);
            *out.add(rows[0] as usize) = bits[0];
            *out.add(rows[1] as usize) = bits[1];
            return;
        }
        let slot = *self.slots.add(token as usize);
        if slot < self.pool_slots {
            let (pool, kv_head) = if is_v {
                (self.v_cache, head - self.heads - self.kv_heads)
            } else {
                (self.k_cache, head - self.heads)
            };
            let (page, place) = (slot as usize / kv::PAGE, slot as usize % kv::PAGE);
            for i in 0..2 {
                let dim = (dim + i as u32 * self.half) as usize;
                let at = kv::offset(page, kv_head as usize, place, dim, self.kv_heads as usize, 2 * self.half as usize);
                *pool.add(at) = bits[i];
            }
        }
    }
}
