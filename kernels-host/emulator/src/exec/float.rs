//! Single- and double-precision arithmetic as PTX defines it.

use crate::instruction::{Binary, Cmp, Unary};

/// The NaN that single-precision instructions return.
const NAN32: u32 = 0x7fff_ffff;
/// The NaN that double-precision instructions return.
const NAN64: u64 = 0x7fff_ffff_ffff_ffff;

/// Flushes a subnormal number to a zero of its sign.
pub(crate) fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

pub(crate) fn canonical(value: f32) -> u32 {
    if value.is_nan() { NAN32 } else { value.to_bits() }
}

pub(crate) fn canonical64(value: f64) -> u64 {
    if value.is_nan() { NAN64 } else { value.to_bits() }
}

/// `.sat`: to [0, 1], NaN to 0.
pub(crate) fn saturate(bits: u32) -> u32 {
    let value = f32::from_bits(bits);
    if value > 0.0 { value.min(1.0).to_bits() } else { 0 }
}

/// The correctly rounded `a * b + c`.
///
/// The product is exact in double precision; rounding the sum to odd there makes the second
/// rounding harmless (Boldo and Melquiond 2008), and unlike `f32::mul_add` without hardware
/// support this vectorises.
pub(crate) fn fma(a: f32, b: f32, c: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let addend = f64::from(c);
    let sum = product + addend;
    let back = sum - product;
    let error = (product - (sum - back)) + (addend - back);
    let bits = sum.to_bits();
    let inexact = error != 0.0 && sum.is_finite();
    let up = (error > 0.0) == (sum > 0.0);
    let odd = if up { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let bits = if inexact && bits & 1 == 0 { odd } else { bits };
    f64::from_bits(bits) as f32
}

/// Functions of one operand. The approximate ones are computed in double precision and rounded
/// once, well within the bounds of the PTX manual.
pub(crate) fn unary(op: Unary, a: f32) -> f32 {
    let wide = f64::from(a);
    match op {
        Unary::Sqrt => a.sqrt(),
        Unary::Rcp => 1.0 / a,
        Unary::Rsqrt if a == 0.0 => f32::INFINITY.copysign(a),
        Unary::Rsqrt => (1.0 / wide.sqrt()) as f32,
        Unary::Ex2 => wide.exp2() as f32,
        Unary::Lg2 => wide.log2() as f32,
        Unary::Sin => sine(turns(a)),
        Unary::Cos => sine(turns(a) + 0.25),
        Unary::Tanh => wide.tanh() as f32,
        _ => a,
    }
}

/// `a` radians as Hopper's `sin.approx` and `cos.approx` see them: a number of turns, rounded to f32. So the f32 nearest
/// to pi is half a turn, and its sine is 0.
fn turns(a: f32) -> f64 {
    // Fixed point, of at most 25 bits: the sine of 1.1e-7 is 0.
    let turns = f64::from(a * (0.5 * std::f32::consts::FRAC_1_PI));
    (turns * 2f64.powi(25)).trunc() / 2f64.powi(25)
}

/// The sine of so many turns; of whole and half ones exactly 0.
fn sine(turns: f64) -> f32 {
    if turns != 0.0 && (2.0 * turns).fract() == 0.0 { 0.0 } else { (turns * std::f64::consts::TAU).sin() as f32 }
}

/// As [`unary`], in double precision.
pub(crate) fn unary64(op: Unary, a: f64) -> f64 {
    match op {
        Unary::Sqrt => a.sqrt(),
        Unary::Rcp => 1.0 / a,
        Unary::Rsqrt => 1.0 / a.sqrt(),
        _ => a,
    }
}

/// `min` and `max`: a NaN gives way to a number, and −0 is below +0.
pub(crate) fn min_max(op: Binary, a: f32, b: f32) -> u32 {
    let strict = matches!(op, Binary::MinNan | Binary::MaxNan);
    if a.is_nan() || b.is_nan() {
        return match (a.is_nan(), b.is_nan()) {
            _ if strict => NAN32,
            (true, true) => NAN32,
            (true, false) => b.to_bits(),
            _ => a.to_bits(),
        };
    }
    let less = matches!(op, Binary::Min | Binary::MinNan);
    let a_first = a.total_cmp(&b).is_le();
    if a_first == less { a.to_bits() } else { b.to_bits() }
}

/// Comparison of two numbers; `unordered` forms are true for NaN.
pub(crate) fn compare<T: PartialOrd>(cmp: Cmp, a: T, b: T) -> bool {
    let order = a.partial_cmp(&b);
    let Some(order) = order else {
        return !matches!(cmp, Cmp::Eq | Cmp::Ne | Cmp::Lt | Cmp::Le | Cmp::Gt | Cmp::Ge | Cmp::Num);
    };
    match cmp {
        Cmp::Eq | Cmp::EqU => order.is_eq(),
        Cmp::Ne | Cmp::NeU => order.is_ne(),
        Cmp::Lt | Cmp::LtU => order.is_lt(),
        Cmp::Le | Cmp::LeU => order.is_le(),
        Cmp::Gt | Cmp::GtU => order.is_gt(),
        Cmp::Ge | Cmp::GeU => order.is_ge(),
        Cmp::Num => true,
        Cmp::Nan => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fma_rounds_once(a: u32, b: u32, c: u32, near in -60_i32..60) {
            let (a, b) = (f32::from_bits(a), f32::from_bits(b));
            // Addends of every size relative to the product, where double rounding would show.
            let related = (f64::from(a) * f64::from(b) * f64::from(near).exp2()) as f32;
            for c in [f32::from_bits(c), related, -related] {
                prop_assert_eq!(canonical(fma(a, b, c)), canonical(a.mul_add(b, c)));
            }
        }
    }

    #[test]
    fn fma_at_the_edges() {
        let cases = [
            (f32::MAX, 2.0, f32::NEG_INFINITY),
            (f32::INFINITY, 0.0, 1.0),
            (1.0 + f32::EPSILON, 1.0 + f32::EPSILON, f32::from_bits(1)),
            (f32::from_bits(1), 0.5, f32::from_bits(1)),
            (-0.0, 1.0, 0.0),
            (f32::MAX, f32::MAX, -f32::MAX),
        ];
        for (a, b, c) in cases {
            assert_eq!(canonical(fma(a, b, c)), canonical(a.mul_add(b, c)), "{a} {b} {c}");
        }
    }

    #[test]
    fn minimum_prefers_numbers_and_knows_signed_zeros() {
        let nan = f32::NAN;
        assert_eq!(min_max(Binary::Min, nan, 2.0), 2.0_f32.to_bits());
        assert_eq!(min_max(Binary::Max, 2.0, nan), 2.0_f32.to_bits());
        assert_eq!(min_max(Binary::Max, nan, nan), NAN32);
        assert_eq!(min_max(Binary::MaxNan, nan, 2.0), NAN32);
        assert_eq!(min_max(Binary::Min, 0.0, -0.0), (-0.0_f32).to_bits());
        assert_eq!(min_max(Binary::Max, -0.0, 0.0), 0);
    }

    #[test]
    fn comparisons_with_nan() {
        assert!(!compare(Cmp::Ne, f32::NAN, 1.0));
        assert!(compare(Cmp::NeU, f32::NAN, 1.0) && compare(Cmp::Nan, f32::NAN, 1.0));
        assert!(compare(Cmp::Num, 1.0, 1.0) && !compare(Cmp::Num, f32::NAN, 1.0));
    }
}
