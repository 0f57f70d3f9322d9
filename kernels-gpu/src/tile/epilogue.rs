//! What happens to a matrix product's accumulators: bias, activation, gating, residual, one rounding.
//!
//! ```text
//! PLAIN  out[row, col] = act(acc + bias[col]) (+ out[row, col])
//! GATED  out[row, 8t + i] = act(x[16t + i]) · x[16t + 8 + i] (+ out[row, 8t + i]), x = acc[row] + bias
//! F32    out[row, col] = acc + bias[col], stored as f32
//! ```
//! `mma.m16n8` and `wgmma` leave accumulators alike: of the n8-tile j a thread with lane l = 4g + q holds
//! columns 8j + 2q and 8j + 2q + 1 of row g (and of row g + 8). Gate and up rows of the weights are
//! interleaved in groups of 8, so gate and up of an output column are in one thread, in n8-tiles 2t and 2t + 1.
//!
//! Bias and activation are run-time values, the same for the whole grid: the branches cost nothing
//! beside the main loop, and the number of entries stays small. What changes the store is a constant.
use crate::prim::math::{exp, fma, rcp};
use crate::tile::Elem;

/// Kind of output: one column of out per column of the product, in the element type.
pub const PLAIN: u32 = 0;
/// Kind of output: one column of out per pair of interleaved gate and up columns.
pub const GATED: u32 = 1;
/// Kind of output: f32, no activation, no residual.
pub const F32: u32 = 2;

/// Activation codes, kernel parameter `activation`.
pub mod activation {
    /// x.
    pub const IDENTITY: u32 = 0;
    /// x · (1 + tanh(√(2/π)(x + 0.044715x³))) / 2.
    pub const GELU_TANH: u32 = 1;
    /// x · (1 + erf(x / √2)) / 2.
    pub const GELU_ERF: u32 = 2;
    /// x / (1 + e^-x).
    pub const SILU: u32 = 3;
}

/// Output column of gate column `col` (its group of 8 is an even one) of an interleaved product.
#[inline(always)]
pub const fn gated_column(col: u32) -> u32 {
    col / 16 * 8 + col % 8
}

/// Where and how a product is stored; made from a kernel's parameters.
#[derive(Clone, Copy)]
pub struct Epilogue {
    /// [n] elements, 4-byte aligned, or null.
    pub bias: *const u16,
    /// [m, n], [m, n / 2] when gated; f32 when the kind is [`F32`]. 16-byte aligned.
    pub out: *mut u16,
    /// Elements of out from row to row. Pairs are stored at once when it is even.
    pub out_stride: u32,
    /// Rows.
    pub m: u32,
    /// Columns of the product: rows of the weights.
    pub n: u32,
    /// One of [`activation`].
    pub activation: u32,
    /// Not 0: add what out holds.
    pub accumulate: u32,
}

impl Epilogue {
    /// Stores one thread's accumulators of one row: n8-tiles `0..TILES` from column `col`, which is the
    /// first tile's first column plus 2q. `acc(j)` is the pair of tile j. When gated, TILES is even
    /// and the first tile's column a multiple of 16.
    #[inline(always)]
    pub unsafe fn store_row<E: Elem, const KIND: u32, const TILES: usize>(
        &self,
        row: u32,
        col: u32,
        acc: impl Fn(usize) -> [f32; 2],
    ) {
        if KIND == GATED {
            for j in 0..TILES / 2 {
                self.store_gated::<E>(row, col + 16 * j as u32, acc(2 * j), acc(2 * j + 1));
            }
        } else {
            for j in 0..TILES {
                self.store_pair::<E, KIND>(row, col + 8 * j as u32, acc(j));
            }
        }
    }

    /// Stores columns `col` (even) and `col + 1` of `row`; nothing outside of [m, n].
    #[inline(always)]
    pub unsafe fn store_pair<E: Elem, const KIND: u32>(&self, row: u32, col: u32, acc: [f32; 2]) {
        if row >= self.m || col >= self.n {
            return;
        }
        let both = col + 1 < self.n;
        let mut v = self.biased::<E>(col, acc, both);
        if KIND == F32 {
            return self.store_f32(row, col, v, both);
        }
        if self.activation != activation::IDENTITY {
            if self.activation == activation::GELU_ERF {
                v = [gelu_erf(v[0]), gelu_erf(v[1])];
            } else {
                v = [gate(self.activation, v[0]), gate(self.activation, v[1])];
            }
        }
        self.store_half::<E>(row, col, v, both);
    }

    /// Stores the two output columns of gate columns `col` (even, in an even group of 8) and `col + 1`,
    /// whose up columns are 8 further.
    #[inline(always)]
    pub unsafe fn store_gated<E: Elem>(&self, row: u32, col: u32, gates: [f32; 2], ups: [f32; 2]) {
        if row >= self.m || col >= self.n {
            return;
        }
        let g = self.biased::<E>(col, gates, true);
        let u = self.biased::<E>(col + 8, ups, true);
        let v = [gate(self.activation, g[0]) * u[0], gate(self.activation, g[1]) * u[1]];
        self.store_half::<E>(row, gated_column(col), v, true);
    }

    /// Stores the output column of the one gate column `col`, odd or even.
    #[inline(always)]
    pub unsafe fn store_gated_one<E: Elem>(&self, row: u32, col: u32, g: f32, u: f32) {
        if row >= self.m || col >= self.n {
            return;
        }
        let (mut g, mut u) = (g, u);
        if !self.bias.is_null() {
            g += E::to_f32(*self.bias.add(col as usize));
            u += E::to_f32(*self.bias.add(col as usize + 8));
        }
        self.store_half::<E>(row, gated_column(col), [gate(self.activation, g) * u, 0.0], false);
    }

    #[inline(always)]
    unsafe fn biased<E: Elem>(&self, col: u32, acc: [f32; 2], both: bool) -> [f32; 2] {
        let mut v = acc;
        if !self.bias.is_null() {
            let bias = self.bias.add(col as usize);
            if both {
                let (x, y) = E::unpack(*bias.cast::<u32>());
                v = [v[0] + x, v[1] + y];
            } else {
                v[0] += E::to_f32(*bias);
            }
        }
        v
    }

    #[inline(always)]
    pub(crate) unsafe fn store_f32(&self, row: u32, col: u32, v: [f32; 2], both: bool) {
        let at = self.out.cast::<f32>().add(row as usize * self.out_stride as usize + col as usize);
        if both && self.out_stride.is_multiple_of(2) {
            *at.cast::<u64>() = v[0].to_bits() as u64 | (v[1].to_bits() as u64) << 32;
        } else {
            *at = v[0];
            if both {
                *at.add(1) = v[1];
            }
        }
    }

    #[inline(always)]
    unsafe fn store_half<E: Elem>(&self, row: u32, col: u32, mut v: [f32; 2], both: bool) {
        let at = self.out.add(row as usize * self.out_stride as usize + col as usize);
        if both && self.out_stride.is_multiple_of(2) {
            let at = at.cast::<u32>();
            if self.accumulate != 0 {
                let (x, y) = E::unpack(*at);
                v = [v[0] + x, v[1] + y];
            }
            *at = E::pack(v[0], v[1]);
        } else {
            self.store_one::<E>(at, v[0]);
            if both {
                self.store_one::<E>(at.add(1), v[1]);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_one<E: Elem>(&self, at: *mut u16, mut v: f32) {
        if self.accumulate != 0 {
            v += E::to_f32(*at);
        }
        *at = E::from_f32(v);
    }
}

/// SiLU or, both being x · sigmoid(z), GELU's tanh form: z is twice its tanh's argument. (`tanh.approx` would be
/// off by 2^-11, as much as f16's rounding.)
#[inline(always)]
pub(crate) fn gate(code: u32, x: f32) -> f32 {
    let cubic = x * fma(x * x, 2.0 * 0.797_884_6 * 0.044_715, 2.0 * 0.797_884_6);
    let z = if code == activation::GELU_TANH { cubic } else { x };
    x * rcp(1.0 + exp(-z))
}

/// GELU by the error function, from Abramowitz and Stegun's 7.1.26: |error of erf| ≤ 1.5e-7.
#[inline(always)]
pub(crate) fn gelu_erf(x: f32) -> f32 {
    let z = x * core::f32::consts::FRAC_1_SQRT_2;
    let absolute = f32::from_bits(z.to_bits() & 0x7fff_ffff);
    let t = rcp(fma(0.327_591_1, absolute, 1.0));
    let mut poly = fma(1.061_405_4, t, -1.453_152);
    poly = fma(poly, t, 1.421_413_7);
    poly = fma(poly, t, -0.284_496_74);
    poly = fma(poly, t, 0.254_829_6);
    let tail = poly * t * exp(-z * z);
    let erf = if z < 0.0 { tail - 1.0 } else { 1.0 - tail };
    0.5 * x * (1.0 + erf)
}
