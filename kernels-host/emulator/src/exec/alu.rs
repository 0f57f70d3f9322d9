//! Arithmetic, logic, comparisons and moves: no lane sees another.

use super::float::{canonical, canonical64, compare, flush, fma, min_max, saturate, unary, unary64};
use super::warp::{Env, Warp};
use super::{Lanes, half, lanes, map, map2, map3};
use crate::instruction::{Binary, BoolOp, FloatFlags, Op, Operand, PredSource, Reg, Setp, Ternary, Type, Unary};

/// Executes `op` for the lanes in `mask`; false if it is not an operation of this module.
pub(super) fn execute(warp: &mut Warp, env: &Env<'_>, op: &Op, mask: u32) -> bool {
    match op {
        Op::Unary { op, ty, flags, dst, a } => one(warp, env, (*op, *ty, *flags), *dst, *a, mask),
        Op::Binary { op, ty, flags, dst, a, b } => {
            two(warp, env, (*op, *ty, *flags), *dst, [*a, *b], mask);
        }
        Op::Ternary { op, ty, flags, dst, args } => {
            three(warp, env, (*op, *ty, *flags), *dst, *args, mask);
        }
        Op::Half(half) => half::execute(warp, env, half, mask),
        Op::Bfi { ty, dst, a, b, start, length } => {
            let (start, length) = (warp.get32(*start, env), warp.get32(*length, env));
            let (a, b) = (warp.get64(*a, env), warp.get64(*b, env));
            let values: Lanes<u64> = std::array::from_fn(|i| insert(a[i], b[i], start[i], length[i], ty.bits()));
            warp.set64(*dst, mask, &values);
        }
        Op::Setp(setp) => comparison(warp, env, setp, mask),
        Op::Selp { ty, dst, a, b, pred } => {
            let first = warp.guard(*pred);
            copy(warp, env, *ty, *dst, *a, mask & first);
            copy(warp, env, *ty, *dst, *b, mask & !first);
        }
        Op::PredBinary { op, dst, a, b } => {
            let values = join(*op, warp.guard(*a), warp.guard(*b));
            warp.set_pred(*dst, mask, values);
        }
        Op::PredMov { dst, a } => {
            let values = match a {
                PredSource::Reg(guard) => warp.guard(*guard),
                PredSource::Const(value) => 0_u32.wrapping_sub(u32::from(*value)),
            };
            warp.set_pred(*dst, mask, values);
        }
        Op::Mov { ty, dst, a } => copy(warp, env, *ty, *dst, *a, mask),
        Op::Pack { ty, dst, parts } => {
            let bits = ty.bits() / parts.len() as u32;
            let part = Type::B(bits as u8);
            let mut values = [0_u64; 32];
            for (at, operand) in parts.iter().enumerate() {
                let piece = warp.get(*operand, part, env);
                values = map2(&values, &piece, |v, p| v | u64::from(p) << (at as u32 * bits));
            }
            warp.set64(*dst, mask, &values);
        }
        Op::Unpack { ty, parts, a } => {
            let bits = ty.bits() / parts.len() as u32;
            let values = warp.get64(*a, env);
            for (at, part) in parts.iter().enumerate() {
                let Some(part) = part else { continue };
                let keep = u64::MAX >> (64 - bits);
                warp.set64(*part, mask, &map(&values, |v| v >> (at as u32 * bits) & keep));
            }
        }
        _ => return false,
    }
    true
}

fn copy(warp: &mut Warp, env: &Env<'_>, ty: Type, dst: Reg, a: Operand, mask: u32) {
    if ty.bits() == 64 {
        let values = warp.get64(a, env);
        warp.set64(dst, mask, &values);
    } else {
        let values = warp.get32(a, env);
        warp.set32(dst, mask, &values);
    }
}

fn join(op: BoolOp, a: u32, b: u32) -> u32 {
    match op {
        BoolOp::And => a & b,
        BoolOp::Or => a | b,
        BoolOp::Xor => a ^ b,
    }
}

/// `.ftz` of `a · b + c`, which was rounded to `bits`: Hopper flushes what is subnormal before it is rounded, so also
/// what rounds up to the least normal number.
fn flush_product(a: f32, b: f32, c: f32, bits: u32) -> u32 {
    const LEAST: u32 = 0x0080_0000;
    if bits & 0x7fff_ffff != LEAST {
        return bits;
    }
    // Rounded to f64: as much as Hopper sees of a far smaller product.
    let below = (f64::from(a) * f64::from(b) + f64::from(c)).abs() < f64::from(f32::MIN_POSITIVE);
    if below { bits & 0x8000_0000 } else { bits }
}

/// Applies `.ftz` and `.sat` around a single-precision result.
fn finish(bits: u32, flags: FloatFlags) -> u32 {
    let bits = if flags.ftz { flush(bits) } else { bits };
    if flags.sat { saturate(bits) } else { bits }
}

fn floats(warp: &Warp, env: &Env<'_>, operand: Operand, ftz: bool) -> Lanes<f32> {
    let bits = warp.get32(operand, env);
    map(&bits, |bits| f32::from_bits(if ftz { flush(bits) } else { bits }))
}

fn doubles(warp: &Warp, env: &Env<'_>, operand: Operand) -> Lanes<f64> {
    map(&warp.get64(operand, env), f64::from_bits)
}

type Form<T> = (T, Type, FloatFlags);

fn one(warp: &mut Warp, env: &Env<'_>, form: Form<Unary>, dst: Reg, a: Operand, mask: u32) {
    let (op, ty, flags) = form;
    if ty == Type::F32 {
        let values = match op {
            // The manual leaves the payload of a NaN open; Hopper makes it canonical, its sign as well.
            Unary::Abs => map(&warp.get32(a, env), |v| finish(canonical(f32::from_bits(v & 0x7fff_ffff)), flags)),
            Unary::Neg => map(&warp.get32(a, env), |v| finish(canonical(f32::from_bits(v ^ 0x8000_0000)), flags)),
            _ => {
                let a = floats(warp, env, a, flags.ftz);
                let mut out = [0; 32];
                for lane in lanes(mask) {
                    out[lane] = finish(canonical(unary(op, a[lane])), flags);
                }
                out
            }
        };
        warp.set32(dst, mask, &values);
        return;
    }
    if ty == Type::F64 {
        let a = doubles(warp, env, a);
        let values = match op {
            Unary::Abs => map(&a, |v| v.abs().to_bits()),
            Unary::Neg => map(&a, |v| (-v).to_bits()),
            _ => map(&a, |v| canonical64(unary64(op, v))),
        };
        warp.set64(dst, mask, &values);
        return;
    }
    if ty.bits() == 64 {
        let a = warp.get64(a, env);
        let values = match op {
            Unary::Abs => map(&a, |v| (v as i64).unsigned_abs()),
            Unary::Neg => map(&a, u64::wrapping_neg),
            Unary::Popc => map(&a, |v| u64::from(v.count_ones())),
            Unary::Clz => map(&a, |v| u64::from(v.leading_zeros())),
            Unary::Brev => map(&a, u64::reverse_bits),
            _ => map(&a, |v| !v),
        };
        warp.set64(dst, mask, &values);
        return;
    }
    let a = warp.get(a, ty, env);
    let values = match op {
        Unary::Abs => map(&a, |v| (v as i32).unsigned_abs()),
        Unary::Neg => map(&a, u32::wrapping_neg),
        Unary::Popc => map(&a, u32::count_ones),
        Unary::Clz => map(&a, u32::leading_zeros),
        Unary::Brev => map(&a, u32::reverse_bits),
        _ => map(&a, |v: u32| !v),
    };
    warp.set32(dst, mask, &values);
}

fn two(warp: &mut Warp, env: &Env<'_>, form: Form<Binary>, dst: Reg, args: [Operand; 2], mask: u32) {
    let (op, ty, flags) = form;
    let [a, b] = args;
    if ty == Type::F32 {
        let (a, b) = (floats(warp, env, a, flags.ftz), floats(warp, env, b, flags.ftz));
        let values = match op {
            Binary::Mul if flags.ftz => map2(&a, &b, |a, b| flush_product(a, b, 0.0, canonical(a * b))),
            _ => float_binary(op, &a, &b),
        };
        warp.set32(dst, mask, &map(&values, |bits| finish(bits, flags)));
        return;
    }
    if ty == Type::F64 {
        let (a, b) = (doubles(warp, env, a), doubles(warp, env, b));
        let values = map2(&a, &b, |a, b| {
            canonical64(match op {
                Binary::Add => a + b,
                Binary::Sub => a - b,
                Binary::Mul => a * b,
                Binary::Div => a / b,
                Binary::Min => a.min(b),
                Binary::Max => a.max(b),
                _ => b.copysign(a),
            })
        });
        warp.set64(dst, mask, &values);
        return;
    }
    if ty.bits() == 64 {
        let a = warp.get64(a, env);
        let values = if matches!(op, Binary::Shl | Binary::Shr) {
            map2(&a, &warp.get32(b, env), |a, b| shift64(op, ty, a, b))
        } else {
            let b = warp.get64(b, env);
            integer_binary64(op, ty, &a, &b)
        };
        warp.set64(dst, mask, &values);
        return;
    }
    let a = warp.get(a, ty, env);
    if op == Binary::MulWide {
        let b = warp.get(b, ty, env);
        let values = map2(&a, &b, |a, b| wide_product(ty, a, b));
        warp.set64(dst, mask, &values);
        return;
    }
    let shift = matches!(op, Binary::Shl | Binary::Shr);
    let b = if shift { warp.get32(b, env) } else { warp.get(b, ty, env) };
    let values = integer_binary(op, ty, &a, &b);
    warp.set32(dst, mask, &values);
}

fn float_binary(op: Binary, a: &Lanes<f32>, b: &Lanes<f32>) -> Lanes<u32> {
    match op {
        Binary::Add => map2(a, b, |a, b| canonical(a + b)),
        Binary::Sub => map2(a, b, |a, b| canonical(a - b)),
        Binary::Mul => map2(a, b, |a, b| canonical(a * b)),
        Binary::Div => map2(a, b, |a, b| canonical(a / b)),
        Binary::CopySign => map2(a, b, |a, b| b.copysign(a).to_bits()),
        _ => map2(a, b, |a, b| min_max(op, a, b)),
    }
}

fn wide_product(ty: Type, a: u32, b: u32) -> u64 {
    if ty.is_signed() { (i64::from(a as i32) * i64::from(b as i32)) as u64 } else { u64::from(a) * u64::from(b) }
}

/// Shift amounts beyond the width act as the width.
fn shift64(op: Binary, ty: Type, a: u64, b: u32) -> u64 {
    match op {
        Binary::Shl => a.checked_shl(b).unwrap_or(0),
        _ if ty.is_signed() => ((a as i64) >> b.min(63)) as u64,
        _ => a.checked_shr(b).unwrap_or(0),
    }
}

fn integer_binary(op: Binary, ty: Type, a: &Lanes<u32>, b: &Lanes<u32>) -> Lanes<u32> {
    let signed = ty.is_signed();
    match op {
        Binary::Add => map2(a, b, u32::wrapping_add),
        Binary::Sub => map2(a, b, u32::wrapping_sub),
        Binary::Mul => map2(a, b, u32::wrapping_mul),
        Binary::MulHi => map2(a, b, |a, b| (wide_product(ty, a, b) >> ty.bits()) as u32),
        // Division by zero gives all ones, as the hardware's sequence does.
        Binary::Div if signed => map2(a, b, |a, b| match b {
            0 => u32::MAX,
            b => (a as i32).wrapping_div(b as i32) as u32,
        }),
        Binary::Div => map2(a, b, |a, b| a.checked_div(b).unwrap_or(u32::MAX)),
        Binary::Rem if signed => map2(a, b, |a, b| match b {
            0 => a,
            b => (a as i32).wrapping_rem(b as i32) as u32,
        }),
        Binary::Rem => map2(a, b, |a, b| a.checked_rem(b).unwrap_or(a)),
        Binary::Min if signed => map2(a, b, |a, b| (a as i32).min(b as i32) as u32),
        Binary::Max if signed => map2(a, b, |a, b| (a as i32).max(b as i32) as u32),
        Binary::Min => map2(a, b, |a: u32, b| a.min(b)),
        Binary::Max => map2(a, b, |a: u32, b| a.max(b)),
        Binary::And => map2(a, b, |a, b| a & b),
        Binary::Or => map2(a, b, |a, b| a | b),
        Binary::Xor => map2(a, b, |a, b| a ^ b),
        Binary::Shl => map2(a, b, |a: u32, b| a.checked_shl(b).unwrap_or(0)),
        Binary::Shr if signed => map2(a, b, |a, b| ((a as i32) >> b.min(31)) as u32),
        _ => map2(a, b, |a: u32, b| a.checked_shr(b).unwrap_or(0)),
    }
}

fn integer_binary64(op: Binary, ty: Type, a: &Lanes<u64>, b: &Lanes<u64>) -> Lanes<u64> {
    let signed = ty.is_signed();
    match op {
        Binary::Add => map2(a, b, u64::wrapping_add),
        Binary::Sub => map2(a, b, u64::wrapping_sub),
        Binary::Mul => map2(a, b, u64::wrapping_mul),
        Binary::MulHi if signed => map2(a, b, |a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
        Binary::MulHi => map2(a, b, |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        Binary::Div if signed => map2(a, b, |a, b| match b {
            0 => u64::MAX,
            b => (a as i64).wrapping_div(b as i64) as u64,
        }),
        Binary::Div => map2(a, b, |a, b| a.checked_div(b).unwrap_or(u64::MAX)),
        Binary::Rem if signed => map2(a, b, |a, b| match b {
            0 => a,
            b => (a as i64).wrapping_rem(b as i64) as u64,
        }),
        Binary::Rem => map2(a, b, |a, b| a.checked_rem(b).unwrap_or(a)),
        Binary::Min if signed => map2(a, b, |a, b| (a as i64).min(b as i64) as u64),
        Binary::Max if signed => map2(a, b, |a, b| (a as i64).max(b as i64) as u64),
        Binary::Min => map2(a, b, |a: u64, b| a.min(b)),
        Binary::Max => map2(a, b, |a: u64, b| a.max(b)),
        Binary::And => map2(a, b, |a, b| a & b),
        Binary::Or => map2(a, b, |a, b| a | b),
        _ => map2(a, b, |a, b| a ^ b),
    }
}

fn three(warp: &mut Warp, env: &Env<'_>, form: Form<Ternary>, dst: Reg, args: [Operand; 3], mask: u32) {
    let (op, ty, flags) = form;
    let [a, b, c] = args;
    if ty == Type::F32 {
        let [a, b, c] = args.map(|operand| floats(warp, env, operand, flags.ftz));
        let sums = map3(&a, &b, &c, |a, b, c| canonical(fma(a, b, c)));
        let values = match flags.ftz {
            true => std::array::from_fn(|i| finish(flush_product(a[i], b[i], c[i], sums[i]), flags)),
            false => map(&sums, |bits| finish(bits, flags)),
        };
        warp.set32(dst, mask, &values);
        return;
    }
    if ty == Type::F64 {
        let [a, b, c] = args.map(|operand| doubles(warp, env, operand));
        let values = map3(&a, &b, &c, |a, b, c| canonical64(a.mul_add(b, c)));
        warp.set64(dst, mask, &values);
        return;
    }
    match op {
        Ternary::MadWide => {
            let (a, b) = (warp.get(a, ty, env), warp.get(b, ty, env));
            let c = warp.get64(c, env);
            let values = map3(&a, &b, &c, |a, b, c| wide_product(ty, a, b).wrapping_add(c));
            warp.set64(dst, mask, &values);
        }
        Ternary::Bfe => {
            let a = warp.get64(a, env);
            let (start, length) = (warp.get32(b, env), warp.get32(c, env));
            let values = map3(&a, &start, &length, |a, start, length| extract(ty, a, start, length));
            warp.set64(dst, mask, &values);
        }
        Ternary::Mad | Ternary::MadHi if ty.bits() == 64 => {
            let [a, b, c] = args.map(|operand| warp.get64(operand, env));
            let half = if op == Ternary::Mad { Binary::Mul } else { Binary::MulHi };
            let product = integer_binary64(half, ty, &a, &b);
            warp.set64(dst, mask, &map2(&product, &c, u64::wrapping_add));
        }
        Ternary::Lop3(table) => {
            let [a, b, c] = args.map(|operand| warp.get32(operand, env));
            warp.set32(dst, mask, &map3(&a, &b, &c, |a, b, c| truth(table, a, b, c)));
        }
        _ => {
            let [a, b, c] = args.map(|operand| warp.get(operand, ty, env));
            let values = map3(&a, &b, &c, |a, b, c| word_ternary(op, ty, a, b, c));
            warp.set32(dst, mask, &values);
        }
    }
}

fn word_ternary(op: Ternary, ty: Type, a: u32, b: u32, c: u32) -> u32 {
    let both = u64::from(b) << 32 | u64::from(a);
    let amount = |wrap: bool| if wrap { c & 31 } else { c.min(32) };
    match op {
        Ternary::Mad => a.wrapping_mul(b).wrapping_add(c),
        Ternary::MadHi => ((wide_product(ty, a, b) >> ty.bits()) as u32).wrapping_add(c),
        Ternary::ShfLeft(wrap) => ((both << amount(wrap)) >> 32) as u32,
        Ternary::ShfRight(wrap) => (both >> amount(wrap)) as u32,
        Ternary::Dp4a(signed_a, signed_b) => (0..4).fold(c, |sum, at| {
            let byte = |word: u32, signed| match (word >> (8 * at)) as u8 {
                byte if signed => i32::from(byte as i8),
                byte => i32::from(byte),
            };
            sum.wrapping_add((byte(a, signed_a) * byte(b, signed_b)) as u32)
        }),
        Ternary::PrmtMode(selectors) => permute(both, selectors[c as usize & 3].into()),
        _ => permute(both, c),
    }
}

/// Each selector picks one of eight bytes; its top bit replicates the byte's sign.
fn permute(bytes: u64, selectors: u32) -> u32 {
    (0..4).fold(0, |word, at| {
        let selector = selectors >> (at * 4) & 0xf;
        let byte = (bytes >> ((selector & 7) * 8)) as u8;
        let byte = if selector & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        word | u32::from(byte) << (at * 8)
    })
}

fn truth(table: u8, a: u32, b: u32, c: u32) -> u32 {
    (0..8).filter(|row| table >> row & 1 != 0).fold(0, |word, row| {
        let pick = |value: u32, bit: u32| if row & bit != 0 { value } else { !value };
        word | (pick(a, 4) & pick(b, 2) & pick(c, 1))
    })
}

/// Position and length of a bit field: of 32-bit ones eight bits count, of 64-bit ones all do.
fn field(start: u32, length: u32, bits: u32) -> (u32, u32) {
    if bits == 64 { (start.min(255), length.min(255)) } else { (start & 0xff, length & 0xff) }
}

fn extract(ty: Type, a: u64, start: u32, length: u32) -> u64 {
    let bits = ty.bits();
    let (start, length) = field(start, length, bits);
    let a = if bits == 32 && ty.is_signed() { a as u32 as i32 as i64 as u64 } else { a };
    if length == 0 {
        return 0;
    }
    let sign_at = (start + length - 1).min(bits - 1);
    let field = a.checked_shr(start).unwrap_or(0);
    let keep = u64::MAX >> (64 - length.min(64));
    let negative = ty.is_signed() && a >> sign_at & 1 != 0;
    let have = bits.saturating_sub(start).min(length);
    let value = field & keep & if have == 0 { 0 } else { u64::MAX >> (64 - have) };
    let fill = if have >= 64 { 0 } else { u64::MAX << have };
    if negative { value | fill } else { value }
}

fn insert(a: u64, b: u64, start: u32, length: u32, bits: u32) -> u64 {
    let (start, length) = field(start, length, bits);
    if length == 0 || start >= bits {
        return b;
    }
    let keep = (u64::MAX >> (64 - length.min(64))) << start;
    (b & !keep) | (a << start & keep)
}

fn comparison(warp: &mut Warp, env: &Env<'_>, setp: &Setp, mask: u32) {
    let Setp { cmp, ty, ftz, join: joined, dst, inverse, a, b } = *setp;
    let values = if ty == Type::F32 {
        let (a, b) = (floats(warp, env, a, ftz), floats(warp, env, b, ftz));
        bits(&map2(&a, &b, |a, b| compare(cmp, a, b)))
    } else if ty == Type::F64 {
        let (a, b) = (doubles(warp, env, a), doubles(warp, env, b));
        bits(&map2(&a, &b, |a, b| compare(cmp, a, b)))
    } else if ty.bits() == 64 {
        let (a, b) = (warp.get64(a, env), warp.get64(b, env));
        match ty.is_signed() {
            true => bits(&map2(&a, &b, |a, b| compare(cmp, a as i64, b as i64))),
            false => bits(&map2(&a, &b, |a, b| compare(cmp, a, b))),
        }
    } else {
        let (a, b) = (warp.get(a, ty, env), warp.get(b, ty, env));
        match ty.is_signed() {
            true => bits(&map2(&a, &b, |a, b| compare(cmp, a as i32, b as i32))),
            false => bits(&map2(&a, &b, |a, b| compare(cmp, a, b))),
        }
    };
    let combine = |values| match joined {
        Some((op, guard)) => join(op, values, warp.guard(guard)),
        None => values,
    };
    let (yes, no) = (combine(values), combine(!values));
    if let Some(dst) = dst {
        warp.set_pred(dst, mask, yes);
    }
    if let Some(inverse) = inverse {
        warp.set_pred(inverse, mask, no);
    }
}

fn bits(values: &Lanes<bool>) -> u32 {
    values.iter().enumerate().fold(0, |mask, (lane, value)| mask | u32::from(*value) << lane)
}
