//! The CPU device's matrix product: blocked, vectorised, parallel over the weights' rows. A token's results do not depend
//! on the other tokens, to the bit: every dot product adds the same [`WIDTH`] partial sums in the same order.
use super::{Activation, Gemm, Shape};
use crate::{DType, View, ViewMut};
use rayon::prelude::*;

/// Multiply-adds that are worth a thread's task: about 10 µs.
const TASK: usize = 128 * 1024;
/// Partial sums of a dot product, one AVX2 register: 2 weight rows × 4 tokens, or 4 rows × 1 token, of them hide the latency
/// of a fused multiply-add.
const WIDTH: usize = 8;
/// Tokens per block.
const TOKENS: usize = 4;
/// Weight rows per block of a single token.
const ROWS: usize = 4;

/// Computes `gemm`, which its launcher has checked.
pub(super) fn run(gemm: Gemm<'_>, shape: &Shape) {
    let &Shape { m, n, k } = shape;
    if m == 0 || n == 0 {
        return;
    }
    let mut a = gemm.a.to_f32();
    if m > 1 {
        // Whole blocks of tokens.
        a.resize(m.next_multiple_of(TOKENS) * k, 0.0);
    }
    let product = Product { a: &a, w: gemm.w, m, k };
    // Transposed, [n, m]: a task owns whole rows of the weights and so a contiguous piece.
    let mut columns = vec![0.0; n * m];
    let rows = (TASK / (m * k).max(1)).next_multiple_of(ROWS).max(ROWS);
    let task = |(index, columns): (usize, &mut [f32])| product.rows(index * rows, columns);
    if n <= rows {
        task((0, &mut columns));
    } else {
        columns.par_chunks_mut(rows * m).enumerate().for_each(task);
    }
    let bias = gemm.bias.map(|bias| bias.to_f32());
    finish(&columns, bias.as_deref(), gemm.activation, gemm.accumulate, m, gemm.out);
}

struct Product<'a> {
    a: &'a [f32],
    w: View<'a>,
    m: usize,
    k: usize,
}

impl Product<'_> {
    /// The products of all tokens with weight rows `first..`, into [rows, m].
    fn rows(&self, first: usize, columns: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has the features.
            return unsafe { self.rows_fma(first, columns) };
        }
        self.rows_generic::<false>(first, columns);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn rows_fma(&self, first: usize, columns: &mut [f32]) {
        self.rows_generic::<true>(first, columns);
    }

    #[inline(always)]
    fn rows_generic<const FMA: bool>(&self, first: usize, columns: &mut [f32]) {
        let (m, k) = (self.m, self.k);
        let bf16 = self.w.dtype() != DType::F16;
        if m == 1 {
            for (block, out) in columns.chunks_mut(ROWS).enumerate() {
                // The last block repeats its last row.
                let last = out.len() - 1;
                let w = [0, 1, 2, 3].map(|row: usize| self.w.row(first + ROWS * block + row.min(last)));
                let sums =
                    if bf16 { column::<FMA>(w, self.a, bf16_to_f32) } else { column::<FMA>(w, self.a, f16_to_f32) };
                out.copy_from_slice(&sums[..out.len()]);
            }
            return;
        }
        let mut decoded = vec![0.0; 2 * k];
        let (w0, w1) = decoded.split_at_mut(k);
        for (pair, out) in columns.chunks_mut(2 * m).enumerate() {
            let row = first + 2 * pair;
            let (out0, out1) = out.split_at_mut(m);
            decode(self.w.row(row), bf16, w0);
            decode(self.w.row(if out1.is_empty() { row } else { row + 1 }), bf16, w1);
            for (block, a) in self.a.chunks_exact(TOKENS * k).enumerate() {
                let [sums0, sums1] = tile::<FMA>(w0, w1, a);
                let tokens = block * TOKENS..m.min((block + 1) * TOKENS);
                out0[tokens.clone()].copy_from_slice(&sums0[..tokens.len()]);
                if !out1.is_empty() {
                    out1[tokens.clone()].copy_from_slice(&sums1[..tokens.len()]);
                }
            }
        }
    }
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    // Without the instruction `mul_add` is a library call.
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn decode(bits: &[u16], bf16: bool, into: &mut [f32]) {
    if bf16 {
        into.iter_mut().zip(bits).for_each(|(x, &bits)| *x = bf16_to_f32(bits));
    } else {
        into.iter_mut().zip(bits).for_each(|(x, &bits)| *x = f16_to_f32(bits));
    }
}

#[inline(always)]
fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Without branches, so that it vectorises: the fields shifted in place and the exponent's bias made up by
/// a multiplication, which also normalises subnormals.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let infinite = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | infinite | (bits & 0x8000) << 16)
}

/// Four weight rows times one token. k is a multiple of 8 = [`WIDTH`], here and below: no tail.
#[inline(always)]
fn column<const FMA: bool>(w: [&[u16]; ROWS], a: &[f32], to_f32: impl Fn(u16) -> f32) -> [f32; ROWS] {
    // Separate arrays and not an array of them: those stay in registers.
    let [mut s0, mut s1, mut s2, mut s3] = [[0.0; WIDTH]; ROWS];
    let [w0, w1, w2, w3] = w.map(|row| row.as_chunks::<WIDTH>().0.iter());
    for ((((w0, w1), w2), w3), a) in w0.zip(w1).zip(w2).zip(w3).zip(a.as_chunks::<WIDTH>().0) {
        step::<FMA>(&mut s0, &w0.map(&to_f32), a);
        step::<FMA>(&mut s1, &w1.map(&to_f32), a);
        step::<FMA>(&mut s2, &w2.map(&to_f32), a);
        step::<FMA>(&mut s3, &w3.map(&to_f32), a);
    }
    [s0, s1, s2, s3].map(total)
}

/// Two weight rows times four tokens, `a`: [4, k].
#[inline(always)]
fn tile<const FMA: bool>(w0: &[f32], w1: &[f32], a: &[f32]) -> [[f32; TOKENS]; 2] {
    let k = w0.len();
    let (a0, a) = a.split_at(k);
    let (a1, a) = a.split_at(k);
    let (a2, a3) = a.split_at(k);
    let [mut s00, mut s01, mut s02, mut s03, mut s10, mut s11, mut s12, mut s13] = [[0.0; WIDTH]; 8];
    let chunks = |row| <[f32]>::as_chunks::<WIDTH>(row).0;
    let (weights, tokens) = (chunks(w0).iter().zip(chunks(w1)), chunks(a0).iter().zip(chunks(a1)));
    let tokens = tokens.zip(chunks(a2).iter().zip(chunks(a3)));
    for ((w0, w1), ((a0, a1), (a2, a3))) in weights.zip(tokens) {
        step::<FMA>(&mut s00, w0, a0);
        step::<FMA>(&mut s01, w0, a1);
        step::<FMA>(&mut s02, w0, a2);
        step::<FMA>(&mut s03, w0, a3);
        step::<FMA>(&mut s10, w1, a0);
        step::<FMA>(&mut s11, w1, a1);
        step::<FMA>(&mut s12, w1, a2);
        step::<FMA>(&mut s13, w1, a3);
    }
    [[s00, s01, s02, s03].map(total), [s10, s11, s12, s13].map(total)]
}

#[inline(always)]
fn total(lanes: [f32; WIDTH]) -> f32 {
    lanes.iter().sum()
}

#[inline(always)]
fn step<const FMA: bool>(sums: &mut [f32; WIDTH], w: &[f32; WIDTH], a: &[f32; WIDTH]) {
    for lane in 0..WIDTH {
        sums[lane] = multiply_add::<FMA>(w[lane], a[lane], sums[lane]);
    }
}

/// Bias, activation, residual and the one rounding. `columns`: [n, m].
fn finish(
    columns: &[f32],
    bias: Option<&[f32]>,
    activation: Activation,
    accumulate: bool,
    m: usize,
    mut out: ViewMut<'_>,
) {
    let (cols, stride, dtype) = (out.cols(), out.stride(), out.dtype());
    let product = |col: usize, row: usize| columns[col * m + row] + bias.map_or(0.0, |bias| bias[col]);
    let value = |col: usize, row: usize| {
        if !activation.is_gated() {
            return activation.apply(product(col, row));
        }
        let gate = col / 8 * 16 + col % 8;
        activation.apply(product(gate, row)) * product(gate + 8, row)
    };
    let parallel = m > 1 && m * cols > 16 * 1024;
    if dtype == DType::F32 {
        let store = |(row, out): (usize, &mut [f32])| {
            out[..cols].iter_mut().enumerate().for_each(|(col, out)| *out = value(col, row));
        };
        let host = out.host_mut::<f32>();
        if parallel {
            host.par_chunks_mut(stride).enumerate().for_each(store);
        } else {
            host.chunks_mut(stride).enumerate().for_each(store);
        }
        return;
    }
    let store = |(row, out): (usize, &mut [u16])| {
        for (col, out) in out[..cols].iter_mut().enumerate() {
            let residual = if accumulate { dtype.decode(*out) } else { 0.0 };
            *out = dtype.encode(value(col, row) + residual);
        }
    };
    let host = out.host_mut::<u16>();
    if parallel {
        host.par_chunks_mut(stride).enumerate().for_each(store);
    } else {
        host.chunks_mut(stride).enumerate().for_each(store);
    }
}

impl Activation {
    /// Of one value: of the gate, when gated.
    pub(crate) fn apply(self, x: f32) -> f32 {
        match self {
            Activation::None => x,
            Activation::SwiGlu => silu(x),
            Activation::GeluTanh | Activation::GeGlu => gelu_tanh(x),
            Activation::GeluErf => gelu_erf(x),
        }
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh())
}

/// Abramowitz and Stegun's 7.1.26 for erf: absolute error at most 1.5e-7.
fn gelu_erf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let erf = (1.0 - poly * (-z * z).exp()).copysign(x);
    0.5 * x * (1.0 + erf)
}

#[cfg(test)]
mod tests {
    use super::f16_to_f32;

    #[test]
    fn every_f16_is_decoded() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(found == expected || (found.is_nan() && expected.is_nan()), "{bits:#x}: {found}, not {expected}");
        }
    }
}
