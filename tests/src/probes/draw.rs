//! Inputs of the probes: all special patterns, then seeded random ones that meet each other's exponents.
use super::golden;
use kernels_host::case::Rng;

/// f32 patterns where something happens.
pub(super) const F32: [u32; 48] = [
    0x0000_0000,
    0x8000_0000,
    0x0000_0001,
    0x8000_0001,
    0x007f_ffff,
    0x807f_ffff,
    0x0080_0000,
    0x8080_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x3f80_0001,
    0x3f7f_ffff,
    0x3f00_0000,
    0xbf00_0000,
    0x3fc0_0000,
    0xbfc0_0000,
    0x4000_0000,
    0x4020_0000,
    0x4060_0000,
    0xc020_0000,
    0x4049_0fdb,
    0x477f_e000,
    0x477f_f000,
    0x4780_0000,
    0x43e0_0000,
    0x43e8_0000,
    0x4700_0000,
    0x4b00_0000,
    0x4b80_0000,
    0x4f00_0000,
    0xcf00_0000,
    0x4f80_0000,
    0x5f00_0000,
    0xdf00_0000,
    0x5f80_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0000,
    0x7f80_0001,
    0xff80_0001,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fc1_2345,
    0x3380_0000,
    0x3300_0000,
];

/// A generator seeded by a probe's name.
pub(super) fn rng(name: &str) -> Rng {
    Rng::new(golden::hash(name.as_bytes()))
}

/// The bytes of numbers.
pub(super) fn bytes<const N: usize, T>(values: &[T], to_bytes: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(to_bytes).collect()
}

/// The bytes of 32-bit words.
pub(super) fn words(values: &[u32]) -> Vec<u8> {
    bytes(values, |v| v.to_le_bytes())
}

/// A random f32 pattern: any bits, or an exponent near one.
fn random_f32(rng: &mut Rng) -> u32 {
    let bits = rng.bits() as u32;
    match rng.below(4) {
        0 => bits,
        // Within 2^±16: conversions and sums round there.
        1 | 2 => (bits & 0x807f_ffff) | ((111 + rng.below(33) as u32) << 23),
        // Few significant bits: ties.
        _ => (bits & 0x8078_0000) | ((120 + rng.below(15) as u32) << 23),
    }
}

/// `n` f32 patterns, the special ones first.
pub(super) fn f32s(rng: &mut Rng, n: usize) -> Vec<u32> {
    (0..n).map(|i| F32.get(i).copied().unwrap_or_else(|| random_f32(rng))).collect()
}

/// `arity` arrays of `n` f32 patterns: combinations of special ones, then random ones of related exponents.
pub(super) fn f32_tuples(rng: &mut Rng, arity: usize, n: usize) -> Vec<Vec<u32>> {
    let mut tuples = vec![Vec::with_capacity(n); arity];
    for i in 0..n {
        let first = random_f32(rng);
        for (at, column) in tuples.iter_mut().enumerate() {
            let special = F32[(i / F32.len().pow(at as u32)) % F32.len()];
            // A third of random combinations, for three operands, whose cube of specials is too large.
            let value = match i {
                _ if arity < 3 && i < F32.len().pow(arity as u32) => special,
                _ if arity == 3 && i < n / 3 => F32[rng.below(F32.len())],
                _ if at == 0 => first,
                _ if rng.below(2) == 0 => related(first, rng),
                _ => random_f32(rng),
            };
            column.push(value);
        }
    }
    tuples
}

/// A pattern whose exponent is at most 26 from `pattern`'s.
fn related(pattern: u32, rng: &mut Rng) -> u32 {
    let exponent = ((pattern >> 23) & 0xff) as i32 + rng.below(53) as i32 - 26;
    (rng.bits() as u32 & 0x807f_ffff) | ((exponent.clamp(0, 254) as u32) << 23)
}

/// All patterns of 16 bits.
pub(super) fn all16() -> Vec<u8> {
    (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()
}

/// 64-bit integers where something happens, then random ones of every length.
pub(super) fn integers(rng: &mut Rng, n: usize) -> Vec<u64> {
    const SPECIAL: [u64; 24] = [
        0,
        1,
        2,
        3,
        31,
        32,
        33,
        63,
        64,
        65,
        127,
        128,
        255,
        256,
        0x7fff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x7fff_ffff_ffff_ffff,
        0x8000_0000_0000_0000,
        u64::MAX,
        u64::MAX - 1,
    ];
    let random = |rng: &mut Rng| {
        let value = rng.bits() >> rng.below(64);
        if rng.below(2) == 0 { value } else { value.wrapping_neg() }
    };
    (0..n)
        .map(|i| match SPECIAL.get(i) {
            Some(&special) => special,
            None if rng.below(8) == 0 => SPECIAL[rng.below(SPECIAL.len())],
            None => random(rng),
        })
        .collect()
}

/// The lower `size` bytes of each integer.
pub(super) fn cut(values: &[u64], size: usize) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes().into_iter().take(size)).collect()
}

/// How the elements of a matrix are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Spread {
    /// Small integers: every sum is exact, so that only the layout matters.
    Exact,
    /// About normal: how sums are rounded.
    Normal,
    /// Exponents far apart: what is cut off while adding up.
    Wide,
    /// Any pattern: NaNs, infinities, subnormal numbers, cancellation.
    Any,
}

/// `len` bytes of matrix elements of PTX type `ty`.
pub(super) fn elements(rng: &mut Rng, ty: &str, spread: Spread, len: usize) -> Vec<u8> {
    use ptx_emulator::formats::{BF16, E4M3, E5M2, F16, Narrowing};
    let (format, size) = match ty {
        "f16" => (Some(F16), 2),
        "bf16" => (Some(BF16), 2),
        "e4m3" => (Some(E4M3), 1),
        "e5m2" => (Some(E5M2), 1),
        "f32" | "tf32" | "s32" => (None, 4),
        _ => (None, 1),
    };
    let number = |rng: &mut Rng| match spread {
        Spread::Exact => rng.below(9) as f32 - 4.0,
        Spread::Normal => rng.normal(),
        Spread::Wide => rng.normal() * ((rng.below(25) as i32 - 12) as f32).exp2(),
        Spread::Any => f32::from_bits(F32[rng.below(F32.len())]),
    };
    (0..len / size)
        .flat_map(|_| {
            let any = spread == Spread::Any && rng.below(4) > 0;
            let code = match (format, ty) {
                (Some(format), _) if !any => format.from_f32(number(rng), Narrowing::RN_SATFINITE),
                (None, "f32" | "tf32") if !any => number(rng).to_bits(),
                // Of random bytes, what lies beside each other seldom cancels.
                _ => rng.bits() as u32,
            };
            code.to_le_bytes().into_iter().take(size)
        })
        .collect()
}
