//! How tensor cores add up: d = c + Σ a·b.
//!
//! No manual defines it. Measurements (Fasi et al., PeerJ CS 7:e330; MMA-Sim, arXiv:2511.10909) agree that the
//! products are exact, and that c and the products of a group are added in one go: all are shifted to the
//! greatest exponent among them and cut off so many bits below, the sum is exact, and becomes f32 by
//! dropping bits. [`Accumulate::Truncated`] is that, with the measured numbers in [`Accumulate::of_mma`] and
//! [`Accumulate::of_wgmma`]. The default, [`Accumulate::Rounded`], is what all of these approximate.
use super::element::{Element, Matrix};

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
}

impl Accumulate {
    /// As measured on `mma.sync` of a GPU of compute capability `sm` (80, 86, 89, 90, …) with elements of `a`.
    /// The 8.x generation adds 16 bytes of k at a time and keeps 24 bits; 9.0 all of k, and 25.
    pub const fn of_mma(sm: u32, a: Element) -> Accumulate {
        let group = if sm < 90 { 16 / a.bytes() } else { usize::MAX };
        match (sm, a.is_fp8()) {
            (89, true) => Accumulate::Truncated { group, kept_bits: 13, result_bits: 13 },
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
    assert!(a.k == b.k && d.len() == a.rows() * b.rows() && a.element.multiplies(b.element));
    match how {
        _ if a.element.is_integer() => integers(d, a, b, saturate),
        Accumulate::Rounded => rounded(d, a, b),
        Accumulate::Truncated { group, kept_bits, result_bits } => truncated(d, a, b, group, kept_bits, result_bits),
    }
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

/// Row by row of d, so that its columns are added to side by side.
fn rounded(d: &mut [u32], a: &Matrix, b: &Matrix) {
    let n = b.rows();
    let mut by_k = vec![0.0f64; b.k * n];
    for (i, &code) in b.codes.iter().enumerate() {
        by_k[i % b.k * n + i / b.k] = b.element.value(code) as f64;
    }
    let mut sums = vec![0.0f64; n];
    for (row, d) in a.codes.chunks(a.k).zip(d.chunks_mut(n)) {
        sums.iter_mut().zip(d.iter()).for_each(|(sum, &c)| *sum = f32::from_bits(c) as f64);
        for (&code, b) in row.iter().zip(by_k.chunks(n)) {
            let x = a.element.value(code) as f64;
            sums.iter_mut().zip(b).for_each(|(sum, y)| *sum += x * y);
        }
        d.iter_mut().zip(&sums).for_each(|(d, &sum)| *d = canonical(sum as f32));
    }
}

/// The pattern of `x`; of NaN the hardware's.
fn canonical(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

/// A number taken apart: ±`significand` · 2^(`exponent` - [`POINT`]).
#[derive(Clone, Copy)]
struct Term {
    significand: u64,
    exponent: i32,
    negative: bool,
}
/// Fraction bits of a [`Term`]: enough for a product's 20 (of f16), c's 23 and the 25 that are kept.
const POINT: u32 = 40;
/// What the hardware takes for the exponent of a zero.
const ZERO_EXPONENT: i32 = -126;

/// Takes a finite number apart. A subnormal one of a format whose least exponent is `min_exponent` is not normalised.
fn take_apart(x: f32, min_exponent: i32) -> Term {
    let bits = x.to_bits();
    let field = (bits >> 23) & 0xff;
    let significand = (bits & 0x7f_ffff) | if field == 0 { 0 } else { 1 << 23 };
    let own = field.max(1) as i32 - 127;
    let exponent = if significand == 0 { ZERO_EXPONENT } else { own.max(min_exponent) };
    // Below `min_exponent`, f32 is finer than the format: what is shifted out is zero.
    let significand = (significand as u64) >> (exponent - own).clamp(0, 63);
    Term { significand: significand << (POINT - 23), exponent, negative: bits >> 31 != 0 }
}

fn truncated(d: &mut [u32], a: &Matrix, b: &Matrix, group: usize, kept_bits: u32, result_bits: u32) {
    let parts = |m: &Matrix| -> (Vec<f32>, Vec<Term>) {
        let min = m.element.format().map_or(ZERO_EXPONENT, |format| format.min_exponent());
        m.codes.iter().map(|&code| m.element.value(code)).map(|x| (x, take_apart(x, min))).unzip()
    };
    let ((a_values, a_terms), (b_values, b_terms)) = (parts(a), parts(b));
    let (k, n) = (a.k, b.rows());
    let specials = a_values.iter().chain(&b_values).any(|x| !x.is_finite());
    for (i, d) in d.iter_mut().enumerate() {
        let (row, column) = (i / n * k, i % n * k);
        for from in (0..k).step_by(group.min(k)) {
            let to = (from + group.min(k)).min(k);
            let (left, right) = (row + from..row + to, column + from..column + to);
            let c = f32::from_bits(*d);
            if specials || !c.is_finite() {
                let products = a_values[left.clone()].iter().zip(&b_values[right.clone()]);
                let sum = products.fold(c as f64, |sum, (&x, &y)| sum + x as f64 * y as f64);
                if !sum.is_finite() {
                    *d = canonical(sum as f32);
                    continue;
                }
            }
            *d = fused_sum(c, &a_terms[left], &b_terms[right], kept_bits, result_bits);
        }
    }
}

/// c + Σ a·b of finite numbers.
fn fused_sum(c: f32, a: &[Term], b: &[Term], kept_bits: u32, result_bits: u32) -> u32 {
    let c = take_apart(c, ZERO_EXPONENT);
    let greatest = a.iter().zip(b).map(|(x, y)| x.exponent + y.exponent).fold(c.exponent, i32::max);
    let aligned = |significand: u64, exponent: i32, negative: bool| {
        let kept = (significand >> ((greatest - exponent) as u32 + POINT - kept_bits).min(63)) as i64;
        if negative { -kept } else { kept }
    };
    let products = a.iter().zip(b).map(|(x, y)| {
        // At most 11 significant bits each, so 20 fraction bits hold the product; both shifts drop zeros.
        let product = (x.significand >> (POINT / 2)) * (y.significand >> (POINT / 2));
        aligned(product, x.exponent + y.exponent, x.negative != y.negative)
    });
    let sum = products.sum::<i64>() + aligned(c.significand, c.exponent, c.negative);
    put_together(sum, greatest - kept_bits as i32, result_bits)
}

/// `sum` · 2^`unit` as an f32 with `fraction_bits`, bits dropped; zero is positive.
fn put_together(sum: i64, unit: i32, fraction_bits: u32) -> u32 {
    if sum == 0 {
        return 0;
    }
    let magnitude = sum.unsigned_abs();
    let exponent = (63 - magnitude.leading_zeros() as i32 + unit).max(-126);
    let shift = exponent - fraction_bits as i32 - unit;
    let significand = if shift >= 0 { magnitude >> shift.min(63) } else { magnitude << -shift };
    let significand = (significand as u32) << (23 - fraction_bits);
    let sign = ((sum < 0) as u32) << 31;
    if exponent > 127 {
        return sign | f32::INFINITY.to_bits();
    }
    // A subnormal lacks the leading bit, and so the one that it adds to the exponent field.
    sign | ((((exponent + 126) as u32) << 23) + significand)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Narrowing;
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
        /// The hardware's sum is off the exact one by less than a unit of the last kept bit per term, and one of the result.
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
    }
}
