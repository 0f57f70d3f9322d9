//! The reference of both kernels, and the CPU device's attention: blocked by pages, f32, threaded.
//!
//! A row's result depends on its own query and keys only, not on what it is batched with, and
//! prefill and decode of the same row give the same bits.
use super::{Geometry, PagedKv};
use crate::{DType, ViewMut};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use kernels_gpu::tile::kv::{PAGE, ROW, offset};
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
    q: &crate::View<'_>,
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
    let compute = |item: &Item| attend(geometry, q, kv, item);
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

/// [queries, group, head_dim] of one item.
fn attend(geometry: &Geometry, q: &crate::View<'_>, kv: &PagedKv<'_>, item: &Item) -> Vec<f32> {
    let (dim, group) = (geometry.head_dim, geometry.group());
    let kv_len = kv.kv_lens.row::<u32>(0)[item.sequence] as usize;
    let table = kv.block_tables.row::<u32>(item.sequence);
    let mut queries = vec![0.0; item.queries * group * dim];
    for (query, values) in queries.chunks_mut(group * dim).enumerate() {
        let bits = &q.row::<u16>(item.first_row + query)[item.kv_head * group * dim..][..group * dim];
        decode(q.dtype(), bits, values);
        values.iter_mut().for_each(|x| *x *= geometry.scale);
    }
    // Positions are below kv_len unless the caller's lengths contradict each other.
    let end = (item.position + item.queries).min(kv_len);
    let first_page = geometry.first_key(item.position) / PAGE;
    let mut out = vec![0.0; queries.len()];
    let mut state = vec![Running { max: f32::NEG_INFINITY, sum: 0.0 }; item.queries * group];
    let (mut k, mut v) = (vec![0.0; PAGE * dim], vec![0.0; PAGE * dim]);
    for (index, &page) in table.iter().enumerate().take(end.div_ceil(PAGE)).skip(first_page) {
        let start = index * PAGE;
        let used = (end - start).min(PAGE);
        decode_page(geometry, q.dtype(), kv.k.host(), page as usize, item.kv_head, used, &mut k);
        decode_page(geometry, q.dtype(), kv.v.host(), page as usize, item.kv_head, used, &mut v);
        for (row, state) in state.iter_mut().enumerate() {
            let position = item.position + row / group;
            let from = geometry.first_key(position).max(start) - start;
            let to = (position + 1).min(end).saturating_sub(start).min(PAGE);
            if from < to {
                let keys = from * dim..to * dim;
                step(&queries[row * dim..][..dim], &k[keys.clone()], &v[keys], state, &mut out[row * dim..][..dim]);
            }
        }
    }
    for (values, state) in out.chunks_mut(dim).zip(&state) {
        let inverse = 1.0 / state.sum;
        values.iter_mut().for_each(|x| *x *= inverse);
    }
    out
}

/// One page's keys into one row: scores, online softmax, weighted values.
fn step(query: &[f32], k: &[f32], v: &[f32], state: &mut Running, out: &mut [f32]) {
    let dim = query.len();
    let mut weights = [0.0f32; PAGE];
    let weights = &mut weights[..k.len() / dim];
    let mut max = state.max;
    for (weight, key) in weights.iter_mut().zip(k.chunks_exact(dim)) {
        *weight = dot(query, key);
        max = max.max(*weight);
    }
    // All scores -inf (or NaN): exp(-inf - -inf) would make a NaN of a masked row.
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let correction = (state.max - base).exp();
    state.max = max;
    state.sum *= correction;
    out.iter_mut().for_each(|x| *x *= correction);
    for (weight, value) in weights.iter_mut().zip(v.chunks_exact(dim)) {
        let p = (*weight - base).exp();
        state.sum += p;
        out.iter_mut().zip(value).for_each(|(x, v)| *x += p * v);
    }
}

/// Sixteen partial sums, so that it vectorises.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum()
}

fn decode(dtype: DType, bits: &[u16], into: &mut [f32]) {
    match dtype {
        DType::F16 => bits.reinterpret_cast::<half::f16>().convert_to_f32_slice(into),
        _ => into.iter_mut().zip(bits).for_each(|(x, &bits)| *x = f32::from_bits(u32::from(bits) << 16)),
    }
}

/// The first `used` tokens of one head's share of a page as [token, head_dim], the swizzle undone.
fn decode_page(
    geometry: &Geometry,
    dtype: DType,
    pool: &[u16],
    page: usize,
    kv_head: usize,
    used: usize,
    into: &mut [f32],
) {
    let dim = geometry.head_dim;
    for (slot, row) in into.chunks_exact_mut(dim).enumerate().take(used) {
        for (column, half_row) in row.chunks_exact_mut(ROW).enumerate() {
            for (chunk, values) in half_row.chunks_exact_mut(8).enumerate() {
                let at = offset(page, kv_head, slot, column * ROW + chunk * 8, geometry.kv_heads, dim);
                decode(dtype, &pool[at..at + 8], values);
            }
        }
    }
}
