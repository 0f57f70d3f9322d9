//! `cvt`.

use super::float::{canonical, canonical64, flush, saturate};
use super::warp::{Env, Warp};
use super::{Lanes, lanes};
use crate::formats::{BF16, E4M3, E5M2, F16, Format, Narrowing, Rounding as Narrow};
use crate::instruction::{Cvt, Rounding, Type};

/// Converts for the lanes in `mask`.
pub(super) fn execute(warp: &mut Warp, env: &Env<'_>, cvt: &Cvt, mask: u32) {
    let a = source(warp, env, cvt, cvt.a);
    let mut values = [0_u64; 32];
    if let (Some(b), Some(format)) = (cvt.b, packed(cvt.to)) {
        let b = source(warp, env, cvt, b);
        for lane in lanes(mask) {
            let (high, low) = (f32::from_bits(a[lane] as u32), f32::from_bits(b[lane] as u32));
            values[lane] = u64::from(format.pack2(high, low, narrowing(cvt)));
        }
    } else {
        for lane in lanes(mask) {
            values[lane] = convert(cvt, a[lane]);
        }
    }
    warp.set64(cvt.dst, mask, &values);
}

fn source(warp: &Warp, env: &Env<'_>, cvt: &Cvt, operand: crate::instruction::Operand) -> Lanes<u64> {
    if cvt.from.bits() == 64 {
        return warp.get64(operand, env);
    }
    let values = warp.get(operand, cvt.from, env);
    match cvt.from {
        Type::S(_) => super::map(&values, |v| v as i32 as i64 as u64),
        Type::F32 if cvt.ftz => super::map(&values, |v| u64::from(flush(v))),
        _ => super::map(&values, u64::from),
    }
}

fn packed(ty: Type) -> Option<Format> {
    match ty {
        Type::F16x2 => Some(F16),
        Type::BF16x2 => Some(BF16),
        Type::E4M3x2 => Some(E4M3),
        Type::E5M2x2 => Some(E5M2),
        _ => None,
    }
}

fn half(ty: Type) -> Option<Format> {
    match ty {
        Type::F16 => Some(F16),
        Type::BF16 => Some(BF16),
        _ => None,
    }
}

fn narrowing(cvt: &Cvt) -> Narrowing {
    let rounding = match cvt.rounding {
        Some(Rounding::Zero) => Narrow::Zero,
        _ => Narrow::NearestEven,
    };
    let saturate = cvt.sat || matches!(cvt.to, Type::E4M3x2 | Type::E5M2x2);
    Narrowing { rounding, saturate, relu: cvt.relu }
}

fn convert(cvt: &Cvt, bits: u64) -> u64 {
    if let (Type::F16x2, Type::E4M3x2 | Type::E5M2x2) = (cvt.to, cvt.from) {
        let format = if cvt.from == Type::E4M3x2 { E4M3 } else { E5M2 };
        let (high, low) = format.unpack2(bits as u32);
        return u64::from(F16.pack2(high, low, narrowing(cvt)));
    }
    if let (Type::F16x2, Some(format)) = (cvt.from, packed(cvt.to)) {
        let (high, low) = F16.unpack2(bits as u32);
        return u64::from(format.pack2(high, low, narrowing(cvt)));
    }
    // A widening of the pattern: NaNs keep their payload.
    if let (Type::BF16, Type::F32, None) = (cvt.from, cvt.to, cvt.rounding)
        && !(cvt.ftz || cvt.sat)
    {
        return bits << 16;
    }
    let float = match cvt.from {
        Type::F32 => f64::from(f32::from_bits(bits as u32)),
        Type::F64 => f64::from_bits(bits),
        Type::F16 | Type::BF16 => match half(cvt.from) {
            Some(format) => f64::from(format.to_f32(bits as u32)),
            None => 0.0,
        },
        _ => return from_integer(cvt, bits),
    };
    if cvt.to.is_integer() {
        return to_integer(cvt, float);
    }
    let float = if cvt.integral { integral(cvt.rounding, float) } else { float };
    to_float(cvt, float)
}

/// A number that is exact in double precision, rounded to the destination's format.
fn to_float(cvt: &Cvt, value: f64) -> u64 {
    if let Some(format) = half(cvt.to) {
        return u64::from(format.from_f32(round32(cvt.rounding, value), narrowing(cvt)));
    }
    if cvt.to == Type::F64 {
        return canonical64(value);
    }
    let bits = canonical(round32(cvt.rounding, value));
    let bits = if cvt.ftz { flush(bits) } else { bits };
    u64::from(if cvt.sat { saturate(bits) } else { bits })
}

/// The single-precision number that `value` rounds to.
fn round32(rounding: Option<Rounding>, value: f64) -> f32 {
    let nearest = value as f32;
    let wide = f64::from(nearest);
    let (too_high, too_low) = (wide > value, wide < value);
    match rounding {
        Some(Rounding::Zero) if value > 0.0 && too_high => nearest.next_down(),
        Some(Rounding::Zero) if value < 0.0 && too_low => nearest.next_up(),
        Some(Rounding::Down) if too_high => nearest.next_down(),
        Some(Rounding::Up) if too_low => nearest.next_up(),
        _ => nearest,
    }
}

fn integral(rounding: Option<Rounding>, value: f64) -> f64 {
    match rounding {
        Some(Rounding::Zero) => value.trunc(),
        Some(Rounding::Down) => value.floor(),
        Some(Rounding::Up) => value.ceil(),
        _ => value.round_ties_even(),
    }
}

/// Out-of-range values go to the nearest end of the range, NaN to zero — or, for 64-bit
/// destinations, to the top bit alone, as the hardware has it.
fn to_integer(cvt: &Cvt, value: f64) -> u64 {
    let bits = cvt.to.bits();
    if value.is_nan() {
        return if bits == 64 { 1 << 63 } else { 0 };
    }
    let value = integral(cvt.rounding, value);
    if cvt.to.is_signed() {
        let end = i64::MAX >> (64 - bits);
        return (value as i64).clamp(-end - 1, end) as u64;
    }
    (value as u64).min(u64::MAX >> (64 - bits))
}

/// Integers to integers (extended or cut, or with `.sat` clamped) and to floats.
fn from_integer(cvt: &Cvt, bits: u64) -> u64 {
    let value = if cvt.from.is_signed() { i128::from(bits as i64) } else { i128::from(bits) };
    match cvt.to {
        Type::F64 => (value as f64).to_bits(),
        Type::F32 => u64::from(integer_to_f32(cvt.rounding, value).to_bits()),
        // Every integer of up to 32 bits is exact in double precision; wider ones overflow the
        // half formats or keep far fewer bits than double rounding could disturb.
        Type::F16 | Type::BF16 => to_float(cvt, value as f64),
        to => {
            let (low, high) = match to {
                Type::S(width) => (-(1_i128 << (width - 1)), (1_i128 << (width - 1)) - 1),
                _ => (0, (1_i128 << to.bits()) - 1),
            };
            let value = if cvt.sat { value.clamp(low, high) } else { value };
            let cut = value as u64 & (u64::MAX >> (64 - to.bits()));
            match to {
                // A wider destination register receives the sign.
                Type::S(width) => ((cut << (64 - width)) as i64 >> (64 - width)) as u64,
                _ => cut,
            }
        }
    }
}

fn integer_to_f32(rounding: Option<Rounding>, value: i128) -> f32 {
    let nearest = value as f32;
    let wide = nearest as i128;
    match rounding {
        Some(Rounding::Zero) if wide.abs() > value.abs() => {
            if value > 0 {
                nearest.next_down()
            } else {
                nearest.next_up()
            }
        }
        Some(Rounding::Down) if wide > value => nearest.next_down(),
        Some(Rounding::Up) if wide < value => nearest.next_up(),
        _ => nearest,
    }
}
