//! Arithmetic of f16, bf16 and pairs of them.

use super::map3;
use super::warp::{Env, Warp};
use crate::formats::{BF16, F16, Format, Narrowing};
use crate::instruction::{Half, HalfOp, Type};

/// Executes `half` for the lanes in `mask`.
pub(super) fn execute(warp: &mut Warp, env: &Env<'_>, half: &Half, mask: u32) {
    let format = if matches!(half.ty, Type::F16 | Type::F16x2) { F16 } else { BF16 };
    let [a, b, c] = half.args.map(|operand| warp.get32(operand, env));
    let one = |a, b, c| compute(format, half, [a & 0xffff, b & 0xffff, c & 0xffff]);
    let values = match half.ty {
        Type::F16x2 | Type::BF16x2 => {
            map3(&a, &b, &c, |a: u32, b: u32, c: u32| one(a, b, c) | one(a >> 16, b >> 16, c >> 16) << 16)
        }
        _ => map3(&a, &b, &c, one),
    };
    warp.set32(half.dst, mask, &values);
}

/// `a + b` as the atomics add: subnormal numbers are kept.
pub(super) fn add(format: Format, a: u32, b: u32) -> u32 {
    fused(format, a, format.from_f32(1.0, Narrowing::RN), b)
}

fn compute(format: Format, half: &Half, args: [u32; 3]) -> u32 {
    let sign = 1 << (format.bits() - 1);
    let [a, b, c] = if half.ftz { args.map(|x| flush(format, x)) } else { args };
    let one = format.from_f32(1.0, Narrowing::RN);
    let result = match half.op {
        HalfOp::Add => fused(format, a, one, b),
        HalfOp::Sub => fused(format, b, one | sign, a),
        // With −0 the sign of a product of zero is the product's.
        HalfOp::Mul => fused(format, a, b, sign),
        HalfOp::Fma => fused(format, a, b, c),
        HalfOp::Min | HalfOp::Max | HalfOp::MinNan | HalfOp::MaxNan => min_max(format, half.op, a, b),
        HalfOp::Neg | HalfOp::Abs if format.to_f32(a).is_nan() => format.nan(),
        HalfOp::Neg => a ^ sign,
        HalfOp::Abs => a & !sign,
    };
    let result = if half.ftz { flush(format, result) } else { result };
    // As of f32, what is subnormal before it is rounded is flushed; that of a sum is exact.
    let least = 1 << format.fraction_bits();
    let product = f64::from(format.to_f32(a)) * f64::from(format.to_f32(b));
    let flushed = half.ftz && half.op == HalfOp::Mul && result & (sign - 1) == least;
    let result = if flushed && product.abs() < f64::from(format.to_f32(least)) { result & sign } else { result };
    let nan = format.to_f32(result).is_nan();
    match half {
        Half { sat: true, .. } if nan || result & sign != 0 => 0,
        Half { sat: true, .. } => result.min(one),
        Half { relu: true, .. } if !nan && result & sign != 0 => 0,
        _ => result,
    }
}

/// A subnormal number to a zero of its sign.
fn flush(format: Format, x: u32) -> u32 {
    let sign = 1 << (format.bits() - 1);
    if x & (sign - 1) < 1 << format.fraction_bits() { x & sign } else { x }
}

/// `a · b + c`, rounded once to nearest even.
///
/// The product is exact in f64. Its sum with c and that sum's f32 are rounded to odd, which leaves the last rounding
/// as if it were the only one (Boldo and Melquiond 2008): each step keeps at least two bits more than the next.
fn fused(format: Format, a: u32, b: u32, c: u32) -> u32 {
    let product = f64::from(format.to_f32(a)) * f64::from(format.to_f32(b));
    let addend = f64::from(format.to_f32(c));
    let sum = product + addend;
    if !sum.is_finite() || sum == 0.0 {
        return format.from_f32(sum as f32, Narrowing::RN);
    }
    let back = sum - product;
    let error = (product - (sum - back)) + (addend - back);
    let sum = match () {
        () if error == 0.0 || sum.to_bits() & 1 == 1 => sum,
        () if (error > 0.0) == (sum > 0.0) => f64::from_bits(sum.to_bits() + 1),
        () => f64::from_bits(sum.to_bits() - 1),
    };
    let nearest = sum as f32;
    let toward_zero =
        if f64::from(nearest).abs() > sum.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest };
    let inexact = u32::from(f64::from(toward_zero) != sum);
    format.from_f32(f32::from_bits(toward_zero.to_bits() | inexact), Narrowing::RN)
}

/// A NaN gives way to a number, or wins in the `.NaN` forms; −0 is below +0.
fn min_max(format: Format, op: HalfOp, a: u32, b: u32) -> u32 {
    let (x, y) = (format.to_f32(a), format.to_f32(b));
    match (x.is_nan(), y.is_nan()) {
        (true, true) => return format.nan(),
        (true, _) | (_, true) if matches!(op, HalfOp::MinNan | HalfOp::MaxNan) => return format.nan(),
        (true, false) => return b,
        (false, true) => return a,
        _ => {}
    }
    let less = matches!(op, HalfOp::Min | HalfOp::MinNan);
    if x.total_cmp(&y).is_le() == less { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_round_once() {
        let f16 = |x: f32| F16.from_f32(x, Narrowing::RN);
        assert_eq!(add(F16, f16(2048.0), f16(1.0)), f16(2048.0), "a tie, to even");
        assert_eq!(add(F16, f16(2050.0), f16(1.0)), f16(2052.0));
        // (1 + 2^-7) · 1.5 lies in the middle between two numbers of bf16, which an addend of 2^-100 decides.
        let bf16 = |x: f32| BF16.from_f32(x, Narrowing::RN);
        let (a, b, tiny) = (bf16(1.0078125), bf16(1.5), bf16((-100f32).exp2()));
        assert_eq!(
            BF16.to_f32(fused(BF16, a, b, 0)),
            1.515625 - 0.0078125 * f32::from(u8::from(bf16(1.5078125) & 1 == 0))
        );
        assert_eq!(BF16.to_f32(fused(BF16, a, b, tiny)), 1.515625);
        assert_eq!(BF16.to_f32(fused(BF16, a, b, tiny | 0x8000)), 1.5078125);
    }

    #[test]
    fn zeros_infinities_and_nans() {
        assert_eq!(add(BF16, 0x8000, 0), 0);
        assert_eq!(add(BF16, 0x8000, 0x8000), 0x8000);
        assert_eq!(add(F16, 0x7c00, 0xfc00), 0x7fff);
        assert_eq!(add(F16, 0x7bff, 0x7bff), 0x7c00);
        assert_eq!(add(BF16, 0x7f7f, 0x7f7f), 0x7f80);
        assert_eq!(min_max(F16, HalfOp::Min, 0x7e00, 0x3c00), 0x3c00);
        assert_eq!(min_max(F16, HalfOp::MinNan, 0x7e00, 0x3c00), 0x7fff);
        assert_eq!(min_max(F16, HalfOp::Max, 0x8000, 0), 0);
    }
}
