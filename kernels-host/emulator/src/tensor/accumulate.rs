//! How tensor cores add up: d = c + Σ a·b.
//!
//! No manual defines it. Measurements (Fasi et al., PeerJ CS 7:e330; MMA-Sim, arXiv:2511.10909) agree that the
//! products are exact, and that c and the products of a group are added in one go: all are shifted to the
//! greatest exponent among them and cut off so many bits below, the sum is exact, and becomes f32 by
//! dropping bits. [`Accumulate::Truncated`] is that, with the measured numbers in [`Accumulate::of_mma`] and
//! [`Accumulate::of_wgmma`]. The default, [`Accumulate::Rounded`], is what all of these approximate.
use super::element::{Element, Matrix};
use super::fused::{self, Columns, Cut, canonical};
use crate::formats::{F16, Narrowing};

/// How c and the products of one instruction become d. For integers, where the sum is exact, it does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accumulate {
    /// Exact products are added to c in f64 in the order of k, and rounded to f32 once, at the end. f64 holds
    /// 29 bits more than f32, so that the order shows only where terms cancel by more than that; rounding after every
    /// addition instead would invent an order that no hardware has.
    #[default]
    Rounded,
    /// The hardware's fused addition of c and `group` products at a time.
    Truncated {
        /// Products added at a time; a group's result is the next one's c.
        group: usize,
        /// Bits kept below the binary point of the greatest term (its significand, a product's not normalised,
        /// so up to 4).
        kept_bits: u32,
        /// Fraction bits of the result: 23, or 13 where it is an f32 with fewer.
        result_bits: u32,
    },
    /// What ptxas makes of `mma.sync` with 8-bit floats for compute capability 9.0, whose tensor cores have them in
    /// `wgmma` only: the elements become f16, those of the lower and then of the upper halves of a's and b's registers
    /// (of each four of k the first two, then the others) are multiplied and added up as f16 is, from zero, and the sum
    /// is added to c, rounded to nearest.
    Unpacked,
}

impl Accumulate {
    /// As measured on `mma.sync` of a GPU of compute capability `sm` (80, 86, 89, 90, …) with elements of `a`. It is
    /// the GPU's that counts: on an H200, a module for sm_80 adds as 90 does.
    /// The 8.x generation adds 16 bytes of k at a time and keeps 24 bits; 9.0 all of k, and 25.
    pub const fn of_mma(sm: u32, a: Element) -> Accumulate {
        let group = if sm < 90 { 16 / a.bytes() } else { usize::MAX };
        match (sm, a.is_fp8()) {
            (89, true) => Accumulate::Truncated { group, kept_bits: 13, result_bits: 13 },
            (90, true) => Accumulate::Unpacked,
            (..90, _) => Accumulate::Truncated { group, kept_bits: 24, result_bits: 23 },
            _ => Accumulate::Truncated { group, kept_bits: 25, result_bits: 23 },
        }
    }
    /// As measured on `wgmma` with elements of `a`: 25 bits, but only 13, and as many in the result, of the
    /// 8-bit types (why FP8 kernels add up partial sums by other means).
    pub const fn of_wgmma(a: Element) -> Accumulate {
        let (kept_bits, result_bits) = if a.is_fp8() { (13, 13) } else { (25, 23) };
        Accumulate::Truncated { group: usize::MAX, kept_bits, result_bits }
    }
}

/// d = a · bᵀ + d for `d` [a's rows, b's rows] of f32 or s32 patterns, row by row. With `saturate`
/// (`.satfinite`), an s32 sum outside of the range becomes its end; else it wraps.
///
/// # Panics
/// Where `a`, `b` and `d` do not fit each other: callers have checked.
pub fn multiply_add(d: &mut [u32], a: &Matrix, b: &Matrix, how: Accumulate, saturate: bool) {
    multiply_prepared(d, a, &Prepared::new(b.clone(), how), saturate);
}

/// The operand b made ready for any number of products.
#[derive(Clone, Debug)]
pub struct Prepared {
    matrix: Matrix,
    how: Accumulate,
    columns: Option<Columns>,
}

impl Prepared {
    /// `b` for products that add up as `how` says.
    pub fn new(b: Matrix, how: Accumulate) -> Prepared {
        let fused = !b.element.is_integer() && matches!(how, Accumulate::Truncated { .. });
        let columns = fused.then(|| Columns::new(&b));
        Prepared { matrix: b, how, columns }
    }
    /// The operand.
    pub fn matrix(&self) -> &Matrix {
        &self.matrix
    }
}

/// As [`multiply_add`].
///
/// # Panics
/// Where `a`, `b` and `d` do not fit each other: callers have checked.
pub fn multiply_prepared(d: &mut [u32], a: &Matrix, b: &Prepared, saturate: bool) {
    let Prepared { matrix, how, columns } = b;
    assert!(a.k == matrix.k && d.len() == a.rows() * matrix.rows() && a.element.multiplies(matrix.element));
    match (*how, columns) {
        (Accumulate::Truncated { group, kept_bits, result_bits }, Some(columns)) => {
            fused::multiply_add(d, a, columns, matrix.rows(), Cut { group, kept_bits, result_bits });
        }
        _ if a.element.is_integer() => integers(d, a, matrix, saturate),
        (Accumulate::Unpacked, _) => unpacked(d, a, matrix),
        _ => rounded(d, a, matrix),
    }
}

fn unpacked(d: &mut [u32], a: &Matrix, b: &Matrix) {
    let mut sums = vec![0; d.len()];
    for half in 0..2 {
        let (a, b) = (widened_half(a, half), widened_half(b, half));
        multiply_add(&mut sums, &a, &b, Accumulate::of_mma(90, Element::F16), false);
    }
    for (c, sum) in d.iter_mut().zip(sums) {
        *c = canonical(f32::from_bits(*c) + f32::from_bits(sum));
    }
}

/// The first or the last two of each four elements of a row, as f16: which all of 8 bits are.
fn widened_half(m: &Matrix, half: usize) -> Matrix {
    let fours = m.codes.chunks(4).map(|four| &four[2 * half..2 * half + 2]);
    let f16 = |code: &u32| F16.from_f32(m.element.value(*code), Narrowing::RN);
    Matrix { element: Element::F16, k: m.k / 2, codes: fours.flatten().map(f16).collect() }
}

fn integers(d: &mut [u32], a: &Matrix, b: &Matrix, saturate: bool) {
    let values = |m: &Matrix| m.codes.iter().map(|&code| m.element.integer(code)).collect::<Vec<i32>>();
    let (left, right) = (values(a), values(b));
    let pairs = left.chunks(a.k).flat_map(|row| right.chunks(b.k).map(move |column| (row, column)));
    for (sum, (row, column)) in d.iter_mut().zip(pairs) {
        // At most 32 products of 16 bits.
        let dot: i32 = row.iter().zip(column).map(|(x, y)| x * y).sum();
        *sum = if saturate { (*sum as i32).saturating_add(dot) } else { (*sum as i32).wrapping_add(dot) } as u32;
    }
}

/// Columns of d that are computed side by side, in vector registers.
const LANES: usize = 8;

/// What `f` makes of b's elements, for [`LANES`] columns (the last filled up with zeros) and each k one after another.
fn side_by_side<T: Copy>(b: &Matrix, f: impl Fn(u32) -> T) -> Vec<[T; LANES]> {
    let mut blocks = vec![[f(0); LANES]; b.rows().div_ceil(LANES) * b.k];
    for (column, codes) in b.codes.chunks(b.k).enumerate() {
        for (block, &code) in blocks[column / LANES * b.k..].iter_mut().zip(codes) {
            block[column % LANES] = f(code);
        }
    }
    blocks
}

fn rounded(d: &mut [u32], a: &Matrix, b: &Matrix) {
    let left: Vec<f64> = a.codes.iter().map(|&code| a.element.value(code) as f64).collect();
    let right = side_by_side(b, |code| b.element.value(code) as f64);
    for (row, d) in left.chunks(a.k).zip(d.chunks_mut(b.rows())) {
        for (columns, d) in right.chunks(b.k).zip(d.chunks_mut(LANES)) {
            let mut sums = [0.0f64; LANES];
            sums.iter_mut().zip(d.iter()).for_each(|(sum, &c)| *sum = f32::from_bits(c) as f64);
            for (x, y) in row.iter().zip(columns) {
                sums.iter_mut().zip(y).for_each(|(sum, y)| *sum += x * y);
            }
            d.iter_mut().zip(&sums).for_each(|(d, &sum)| *d = canonical(sum as f32));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(element: Element, values: &[f32]) -> Matrix {
        let format = element.format().expect("a floating-point type");
        let codes = values.iter().map(|&x| format.from_f32(x, Narrowing::RN)).collect();
        Matrix { element, k: values.len(), codes }
    }
    fn dot(element: Element, c: f32, a: &[f32], b: &[f32], how: Accumulate) -> f32 {
        let mut d = [c.to_bits()];
        multiply_add(&mut d, &row(element, a), &row(element, b), how, false);
        f32::from_bits(d[0])
    }

    #[test]
    fn what_lies_below_the_kept_bits_is_dropped() {
        let ones = [1.0f32; 16];
        let mut a = [0.0f32; 16];
        (a[0], a[1]) = (1.0, 2f32.powi(-13));
        let mut b = ones;
        b[1] = 2f32.powi(-11);
        // 1 + 2^-24, a tie: rounded to even; and with 23 fraction bits dropped.
        let hopper = Accumulate::of_wgmma(Element::F16);
        assert_eq!(dot(Element::F16, 0.0, &a, &b, Accumulate::Rounded), 1.0);
        assert_eq!(dot(Element::F16, 0.0, &a, &b, hopper), 1.0);
        // Twice 2^-24 count, since 25 bits are kept while adding…
        (a[2], b[2]) = (a[1], b[1]);
        assert_eq!(dot(Element::F16, 0.0, &a, &b, hopper), 1.0f32.next_up());
        // …while 2^-25 and 2^-26, on a generation that keeps 24, do not.
        (b[1], b[2]) = (2f32.powi(-12), 2f32.powi(-12));
        assert_eq!(dot(Element::F16, 2f32.powi(-23), &a, &b, hopper), 1.0f32.next_up());
        a[0] = -1.0;
        assert_eq!(dot(Element::F16, 1.0, &a, &b, hopper), 2f32.powi(-24));
        assert_eq!(dot(Element::F16, 1.0, &a, &b, Accumulate::of_mma(80, Element::F16)), 0.0);
    }

    #[test]
    fn ampere_adds_halves_one_after_the_other() {
        let (mut a, b) = ([0.0f32; 16], [1.0f32; 16]);
        (a[0], a[15]) = (1024.0, -1024.0);
        let c = 2f32.powi(-15);
        // 2^10 + 2^-15 loses the small one at once; in one sum of 16 with 25 kept bits it lives.
        assert_eq!(dot(Element::F16, c, &a, &b, Accumulate::of_mma(80, Element::F16)), 0.0);
        assert_eq!(dot(Element::F16, c, &a, &b, Accumulate::of_mma(90, Element::F16)), c);
    }

    #[test]
    fn fp8_keeps_13_bits() {
        let a = [1.0f32; 32];
        let how = Accumulate::of_wgmma(Element::E4m3);
        assert_eq!(dot(Element::E4m3, 2f32.powi(20), &a, &a, how), 2f32.powi(20), "32 is below 2^20 · 2^-13");
        assert_eq!(dot(Element::E4m3, 4096.0, &a, &a, how), 4128.0);
        assert_eq!(dot(Element::E4m3, 2f32.powi(20), &a, &a, Accumulate::Rounded), 1048608.0);
    }

    #[test]
    fn specials_follow_ieee() {
        for how in [Accumulate::Rounded, Accumulate::of_wgmma(Element::Bf16)] {
            let inf = f32::INFINITY;
            assert_eq!(dot(Element::Bf16, 0.0, &[inf, 1.0], &[1.0, 1.0], how), inf);
            assert_eq!(dot(Element::Bf16, 0.0, &[inf, inf], &[1.0, -1.0], how).to_bits(), 0x7fff_ffff);
            assert_eq!(dot(Element::Bf16, f32::NAN, &[0.0], &[1.0], how).to_bits(), 0x7fff_ffff);
            assert_eq!(dot(Element::Bf16, 0.0, &[inf], &[0.0], how).to_bits(), 0x7fff_ffff);
            assert_eq!(dot(Element::Bf16, f32::MAX, &[3e38], &[3e38], how), inf);
            assert_eq!(dot(Element::Bf16, 3e38, &[-1.0, 1.0], &[3e38, 1.0], how), 3e38 - 3e38f32.round_bf16());
        }
    }

    trait RoundBf16 {
        fn round_bf16(self) -> f32;
    }
    impl RoundBf16 for f32 {
        fn round_bf16(self) -> f32 {
            let format = crate::formats::BF16;
            format.to_f32(format.from_f32(self, Narrowing::RN))
        }
    }

    #[test]
    fn integers_wrap_or_saturate() {
        let a = Matrix { element: Element::S8, k: 2, codes: vec![0x80, 0x80] };
        let b = Matrix { element: Element::S8, k: 2, codes: vec![0x80, 0x7f] };
        let run = |c: i32, saturate| {
            let mut d = [c as u32];
            multiply_add(&mut d, &a, &b, Accumulate::Rounded, saturate);
            d[0] as i32
        };
        assert_eq!(run(5, false), 5 + 16384 - 16256);
        assert_eq!(run(i32::MAX, true), i32::MAX);
        assert_eq!(run(i32::MAX, false), i32::MIN + 127);
        let b = Matrix { element: Element::U8, ..b };
        let mut d = [0];
        multiply_add(&mut d, &a, &b, Accumulate::Rounded, false);
        assert_eq!(d[0] as i32, -128 * 128 - 128 * 127);
    }

    proptest! {
        /// The hardware's sum is off the exact one by less than a unit of the last kept bit per term, and one of the
        /// result.
        #[test]
        fn truncation_stays_within_its_bound(
            c in -1e4f32..1e4,
            terms in prop::collection::vec((-100f32..100.0, -100f32..100.0), 16),
            sm in prop::sample::select(vec![80u32, 90]),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = terms.into_iter().map(|(x, y)| (x.round_bf16(), y.round_bf16())).unzip();
            let exact = a.iter().zip(&b).fold(c as f64, |sum, (&x, &y)| sum + x as f64 * y as f64);
            let greatest = a.iter().zip(&b).map(|(x, y)| (x * y).abs()).fold(c.abs(), f32::max) as f64;
            let found = dot(Element::Bf16, c, &a, &b, Accumulate::of_mma(sm, Element::Bf16)) as f64;
            let bound = 19.0 * greatest * 16.0 * 2f64.powi(-24) + exact.abs() * 2f64.powi(-22);
            prop_assert!((found - exact).abs() <= bound, "{found} for {exact}");
            let rounded = dot(Element::Bf16, c, &a, &b, Accumulate::Rounded);
            prop_assert_eq!(rounded, exact as f32);
        }

        /// Against the definition, in integers, on any patterns: subnormal, zero, infinite, far apart.
        #[test]
        fn truncation_is_that_of_the_definition(
            element in prop::sample::select(vec![Element::F16, Element::Bf16, Element::E4m3, Element::E5m2]),
            patterns in prop::collection::vec(any::<(u16, u16)>(), 16),
            near in any::<bool>(),
            c in any::<u32>(),
            (kept_bits, result_bits) in prop::sample::select(vec![(24, 23), (25, 23), (13, 13)]),
        ) {
            let format = element.format().unwrap();
            // Half of the cases around 1, where sums cancel.
            let code = |bits: u16| match near {
                true => format.from_f32(bits as i16 as f32 / 4096.0, Narrowing::RN),
                false => bits as u32 & (u32::MAX >> (32 - format.bits())),
            };
            let c = if near { f32::from_bits(c % (1 << 26) + 0x3d00_0000) } else { f32::from_bits(c) };
            let matrix = |f: &dyn Fn(&(u16, u16)) -> u16| {
                Matrix { element, k: 16, codes: patterns.iter().map(|p| code(f(p))).collect() }
            };
            let (a, b) = (matrix(&|p| p.0), matrix(&|p| p.1));
            let mut d = [c.to_bits()];
            multiply_add(&mut d, &a, &b, Accumulate::Truncated { group: 16, kept_bits, result_bits }, false);
            prop_assert_eq!(d[0], defined(c, &a, &b, kept_bits, result_bits), "{:#x}", d[0]);
        }
    }

    /// The fused addition as the papers define it: significands as integers, shifted right by exponents' distance.
    fn defined(c: f32, a: &Matrix, b: &Matrix, kept_bits: u32, result_bits: u32) -> u32 {
        let min = a.element.format().unwrap().min_exponent();
        // ±significand · 2^(exponent - 30)
        let apart = |x: f32, min: i32| {
            let exponent = if x == 0.0 { -126 } else { (((x.abs() as f64).log2().floor() as i32).max(min)).min(127) };
            ((x as f64 * 2f64.powi(30 - exponent)) as i128, exponent)
        };
        let values = |m: &Matrix| m.codes.iter().map(|&code| m.element.value(code)).collect::<Vec<f32>>();
        let (a, b) = (values(a), values(b));
        let ieee = a.iter().zip(&b).fold(c as f64, |sum, (&x, &y)| sum + x as f64 * y as f64);
        if !ieee.is_finite() {
            return if ieee.is_nan() { 0x7fff_ffff } else { (ieee as f32).to_bits() };
        }
        let (significand, exponent) = apart(c, -126);
        let mut terms = vec![(significand << 30, exponent)];
        for (&x, &y) in a.iter().zip(&b) {
            let ((x, ex), (y, ey)) = (apart(x, min), apart(y, min));
            terms.push((x * y, ex + ey));
        }
        let greatest = terms.iter().map(|t| t.1).max().unwrap();
        let cut = |(x, e): &(i128, i32)| {
            let shift = (60 - kept_bits as i32 + greatest - e).min(127);
            (x.abs() >> shift) * x.signum()
        };
        let sum: i128 = terms.iter().map(cut).sum();
        if sum == 0 {
            return 0;
        }
        let unit = greatest - kept_bits as i32;
        let exponent = (127 - sum.unsigned_abs().leading_zeros() as i32 + unit).max(-126);
        let drop = exponent - result_bits as i32 - unit;
        let kept = if drop > 0 { sum.abs() >> drop.min(127) << drop.min(100) } else { sum.abs() };
        let result = kept as f64 * 2f64.powi(unit) * sum.signum() as f64;
        if result == 0.0 { 0 } else { (result as f32).to_bits() }
    }
}
