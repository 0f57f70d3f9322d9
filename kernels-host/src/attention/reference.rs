//! The reference of both kernels, and the CPU device's attention: blocked by pages, f32, threaded.
//!
//! A row's result depends on its own query and keys only, not on what it is batched with, and
//! prefill and decode of the same row give the same bits.
use super::{Geometry, PagedKv};
use crate::{DType, View, ViewMut};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use kernels_gpu::tile::kv::{PAGE, ROW, offset, swizzle_chunk};
use rayon::prelude::*;
use std::ops::Range;

/// Queries of one (sequence, KV head) that share decoded pages.
const QUERIES: usize = 16;

/// Below this many multiply-adds a thread costs more than it saves.
const SERIAL: usize = 64 * 1024;

/// A run of consecutive queries of one sequence under one KV head.
struct Item {
    sequence: usize,
    kv_head: usize,
    /// Row in q and out of the first query.
    first_row: usize,
    /// Position of the first query.
    position: usize,
    queries: usize,
}

/// Attention of `queries[s]` (rows of q and out, the last of which sits at position kv_lens[s] - 1).
pub(super) fn attention(
    geometry: &Geometry,
    q: &View<'_>,
    kv: &PagedKv<'_>,
    queries: &[Range<usize>],
    out: &mut ViewMut<'_>,
) {
    let kv_lens = kv.kv_lens.row::<u32>(0);
    let mut items = Vec::new();
    let mut work = 0;
    for (sequence, rows) in queries.iter().enumerate() {
        let kv_len = kv_lens[sequence] as usize;
        if kv_len == 0 || rows.is_empty() {
            continue;
        }
        work += rows.len() * kv_len * geometry.heads * geometry.head_dim;
        let prefix = kv_len.saturating_sub(rows.len());
        for start in (0..rows.len()).step_by(QUERIES) {
            let count = QUERIES.min(rows.len() - start);
            items.extend((0..geometry.kv_heads).map(|kv_head| Item {
                sequence,
                kv_head,
                first_row: rows.start + start,
                position: prefix + start,
                queries: count,
            }));
        }
    }
    let compute = |item: &Item| match geometry.head_dim {
        64 => attend::<64>(geometry, q, kv, item),
        96 => attend::<96>(geometry, q, kv, item),
        128 => attend::<128>(geometry, q, kv, item),
        _ => attend::<256>(geometry, q, kv, item),
    };
    let results: Vec<Vec<f32>> =
        if work < SERIAL { items.iter().map(compute).collect() } else { items.par_iter().map(compute).collect() };
    let columns = geometry.group() * geometry.head_dim;
    let dtype = out.dtype();
    for (item, values) in items.iter().zip(&results) {
        for (query, values) in values.chunks(columns).enumerate() {
            let bits = &mut out.row_mut::<u16>(item.first_row + query)[item.kv_head * columns..][..columns];
            bits.iter_mut().zip(values).for_each(|(bits, &x)| *bits = dtype.encode(x));
        }
    }
}

/// Softmax state of one row: the greatest score so far and the sum of exponentials relative to it.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

/// [queries, group, D] of one item.
fn attend<const D: usize>(geometry: &Geometry, q: &View<'_>, kv: &PagedKv<'_>, item: &Item) -> Vec<f32> {
    let (group, dtype) = (geometry.group(), q.dtype());
    let kv_len = kv.kv_lens.row::<u32>(0)[item.sequence] as usize;
    let table = kv.block_tables.row::<u32>(item.sequence);
    let mut queries = vec![[0.0f32; D]; item.queries * group];
    for (query, rows) in queries.chunks_mut(group).enumerate() {
        let bits = &q.row::<u16>(item.first_row + query)[item.kv_head * group * D..][..group * D];
        for (row, bits) in rows.iter_mut().zip(bits.chunks_exact(D)) {
            decode(dtype, bits, row);
            row.iter_mut().for_each(|x| *x *= geometry.scale);
        }
    }
    // Positions are below kv_len unless the caller's lengths contradict each other.
    let end = (item.position + item.queries).min(kv_len);
    let first_page = geometry.first_key(item.position) / PAGE;
    let mut out = vec![[0.0f32; D]; queries.len()];
    let mut state = vec![Running { max: f32::NEG_INFINITY, sum: 0.0 }; queries.len()];
    let (mut k, mut v) = ([[0.0f32; D]; PAGE], [[0.0f32; D]; PAGE]);
    for (index, &page) in table.iter().enumerate().take(end.div_ceil(PAGE)).skip(first_page) {
        let start = index * PAGE;
        let used = (end - start).min(PAGE);
        decode_page(geometry, dtype, kv.k.host(), page as usize, item.kv_head, &mut k[..used]);
        decode_page(geometry, dtype, kv.v.host(), page as usize, item.kv_head, &mut v[..used]);
        for (row, state) in state.iter_mut().enumerate() {
            let position = item.position + row / group;
            let from = geometry.first_key(position).max(start) - start;
            let to = (position + 1).min(end).saturating_sub(start).min(PAGE);
            if from < to {
                let (k, v) = (&k[from..to], &v[from..to]);
                step(geometry.softcap, &queries[row], k, v, state, &mut out[row]);
            }
        }
    }
    for (values, state) in out.iter_mut().zip(&state) {
        let inverse = 1.0 / state.sum;
        values.iter_mut().for_each(|x| *x *= inverse);
    }
    out.into_flattened()
}

/// One page's keys into one row: scores, online softmax, weighted values.
fn step<const D: usize>(
    softcap: Option<f32>,
    query: &[f32; D],
    k: &[[f32; D]],
    v: &[[f32; D]],
    state: &mut Running,
    out: &mut [f32; D],
) {
    let mut weights = [0.0f32; PAGE];
    let weights = &mut weights[..k.len()];
    let mut max = state.max;
    for (weight, key) in weights.iter_mut().zip(k) {
        *weight = dot(query, key);
        if let Some(cap) = softcap {
            *weight = cap * (*weight / cap).tanh();
        }
        max = max.max(*weight);
    }
    // All scores -inf (or NaN): exp(-inf - -inf) would make a NaN of a masked row.
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let correction = (state.max - base).exp();
    state.max = max;
    state.sum *= correction;
    let mut sums = out.map(|x| x * correction);
    for (weight, value) in weights.iter_mut().zip(v) {
        let p = (*weight - base).exp();
        state.sum += p;
        for (sum, value) in sums.iter_mut().zip(value) {
            *sum += p * value;
        }
    }
    *out = sums;
}

/// Sixteen partial sums, so that it vectorises, added as a tree.
fn dot<const D: usize>(a: &[f32; D], b: &[f32; D]) -> f32 {
    let mut sums = [0.0f32; 16];
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}

fn decode(dtype: DType, bits: &[u16], into: &mut [f32]) {
    match dtype {
        DType::F16 => bits.reinterpret_cast::<half::f16>().convert_to_f32_slice(into),
        _ => into.iter_mut().zip(bits).for_each(|(x, &bits)| *x = f32::from_bits(u32::from(bits) << 16)),
    }
}

/// The first tokens of one head's share of a page, the swizzle undone.
fn decode_page<const D: usize>(
    geometry: &Geometry,
    dtype: DType,
    pool: &[u16],
    page: usize,
    kv_head: usize,
    into: &mut [[f32; D]],
) {
    for column in 0..D.div_ceil(ROW) {
        let tile = offset(page, kv_head, 0, column * ROW, geometry.kv_heads, D);
        for (slot, (row, bits)) in into.iter_mut().zip(pool[tile..].chunks_exact(ROW)).enumerate() {
            // One row at a time, then its eight chunks to their places.
            let mut swizzled = [0.0f32; ROW];
            decode(dtype, bits, &mut swizzled);
            for (chunk, values) in row[column * ROW..].chunks_exact_mut(8).take(ROW / 8).enumerate() {
                let from = swizzle_chunk(slot as u32, chunk as u32) as usize * 8 % ROW;
                values.copy_from_slice(&swizzled[from..from + 8]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Cache, Problem, Rows};
    use super::super::{DecodeAttention, PrefillAttention};
    use crate::{DType, Device};

    /// What `--device cpu` promises: a token's result is the same alone, in a batch, decoded or prefilled.
    #[test]
    fn decode_and_prefill_agree_to_the_bit() {
        let stream = Device::cpu().stream().unwrap();
        let problem = Problem { window: Some(70), ..Problem::new(DType::Bf16, 6, 2, 64) };
        let problem = problem.sequences(&[(1, 200), (1, 64), (1, 1)]);
        let mut cache = Cache::new(&problem, &stream, 3).unwrap();
        let mut rows = Rows::new(&problem, &stream, cache.rng()).unwrap();
        let (heads, kv_heads, head_dim, scale, window, softcap) = (6, 2, 64, problem.scale(), problem.window, None);
        let (q, query_starts, out) = rows.views();
        let kv = cache.paged();
        PrefillAttention { q, kv, query_starts, heads, kv_heads, head_dim, scale, window, softcap, max_query: 1, out }
            .launch(&stream)
            .unwrap();
        let prefilled = rows.bits();
        rows.reset(&stream).unwrap();
        let mut workspace = crate::Buffer::new(stream.device(), DType::F32, 1 << 20).unwrap();
        let (q, _, out) = rows.views();
        let workspace = workspace.view_mut();
        let (query_starts, max_query, max_kv) = (None, 1, 200);
        #[rustfmt::skip]
        let attention = DecodeAttention {
            q, kv, query_starts, heads, kv_heads, head_dim, scale, window, softcap, max_query, max_kv, workspace, out
        };
        attention.launch(&stream).unwrap();
        assert_eq!(prefilled, rows.bits());
    }
}
