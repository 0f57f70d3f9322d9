//! The arithmetic of sampling in fixed point: the same bits on host and device.
//!
//! A token's weight is 2^t in units of 2^-44 of the most probable token's, an integer, with
//! t = (logit − largest) · log2(e) / temperature. Integer sums do not depend on their order, so masses, thresholds
//! and draws are exact whatever the threads and the batch. Only exactly rounded f32 operations lead to a
//! weight (no fused ones, no `ex2.approx`), hence host and device agree bit for bit.

/// Weight of the most probable token. A row of 2^18 tokens sums to at most 2^62.
pub const ONE: u64 = 1 << 44;
/// Key of −∞: tokens at or below it are never sampled.
pub const KEY_OF_NEG_INFINITY: u32 = 0x007f_ffff;

/// Orders logits as integers; −0 equals 0, NaN comes below everything.
#[inline(always)]
pub fn key(logit: f32) -> u32 {
    if logit.is_nan() {
        return 0;
    }
    // Adding zero turns −0 into 0 and changes nothing else.
    let bits = (logit + 0.0).to_bits();
    bits ^ (((bits as i32) >> 31) as u32 | 0x8000_0000)
}

/// The logit that has a key (other than NaN's).
#[inline(always)]
pub fn logit(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key ^ 0x8000_0000 } else { !key })
}

/// log2(e) / temperature. Above zero, so that −∞ times it stays −∞.
#[inline(always)]
pub fn scale(temperature: f32) -> f32 {
    let scale = core::f32::consts::LOG2_E / temperature;
    if scale > f32::MIN_POSITIVE { scale } else { f32::MIN_POSITIVE }
}

/// Weight of a token; `largest` is the largest logit of the row, not −∞. Relative error at most
/// 6e-6 (three roundings of t, |t| ≤ 45), plus one unit; zero below 2^-45. NaN weighs nothing.
#[inline(always)]
pub fn weight(logit: f32, largest: f32, scale: f32) -> u64 {
    if logit == largest {
        // Also where both are infinite.
        return ONE;
    }
    let t = (logit - largest) * scale;
    if t > -45.0 { exp2(t) } else { 0 }
}

/// 2^t · [`ONE`] for −45 < t ≤ 0.
#[inline(always)]
fn exp2(t: f32) -> u64 {
    // 1.5 · 2^23: adding it leaves t rounded to an integer n in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln(2)^k / k!: Taylor to degree 6 is within 1.2e-7 for |f| ≤ 1/2.
    const C: [f32; 7] =
        [1.0, core::f32::consts::LN_2, 0.240_226_5, 0.055_504_11, 0.009_618_129, 0.001_333_355_8, 0.000_154_035_3];
    let rounded = t + ROUND;
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let f = t - (rounded - ROUND);
    let mut p = C[6];
    let mut k = 6;
    while k > 0 {
        k -= 1;
        p = p * f + C[k];
    }
    // p is in [0.7, 1.42), so the exponent is at most 0 (n = 0 has f ≤ 0) and at least −46.
    let bits = p.to_bits();
    let exponent = (bits >> 23) as i32 - 127 + n;
    let mantissa = (bits & 0x007f_ffff) | 0x0080_0000;
    // mantissa · 2^(exponent − 23 + 44), truncated.
    ((mantissa as u64) << 22) >> ((1 - exponent) as u32 & 63)
}

/// The least weight that min-p keeps; 1 (anything that can be sampled) where it is off.
#[inline(always)]
pub fn min_weight(min_p: f32) -> u64 {
    if min_p >= 1.0 {
        ONE
    } else if min_p > 0.0 {
        let weight = (min_p * ONE as f32) as u64;
        if weight > 1 { weight } else { 1 }
    } else {
        1
    }
}

/// Mass that the top-p set must reach: ⌊`top_p` · total⌋, at least 1. `top_p` below 1, in units of 2^-32.
#[inline(always)]
pub fn top_p_mass(top_p: f32, total: u64) -> u64 {
    let fraction = if top_p > 0.0 { (top_p * 4_294_967_296.0) as u32 } else { 0 };
    let mass = multiply_high(total, (fraction as u64) << 32);
    if mass > 1 { mass } else { 1 }
}

/// How many tokens of `weight` it takes to reach the mass `missing`.
#[inline(always)]
pub fn tokens_to_reach(missing: u64, weight: u64) -> u32 {
    missing.div_ceil(if weight > 1 { weight } else { 1 }) as u32
}

/// A number below `total`, from 64 random bits: ⌊random · total / 2^64⌋.
#[inline(always)]
pub fn draw(random: u64, total: u64) -> u64 {
    multiply_high(random, total)
}

/// Upper half of the 128-bit product.
#[inline(always)]
fn multiply_high(a: u64, b: u64) -> u64 {
    ((a as u128 * b as u128) >> 64) as u64
}

/// 64 random bits for the token at `position` of the sequence that `seed` belongs to.
#[inline(always)]
pub fn random(seed: [u32; 2], position: u32) -> u64 {
    random_stream(seed, position, 0)
}

/// As [`random`], of an independent stream.
#[inline(always)]
pub fn random_stream(seed: [u32; 2], position: u32, stream: u32) -> u64 {
    use crate::tile::philox::{ROUNDS, philox4x32};
    let [lo, hi, ..] = philox4x32::<ROUNDS>([position, stream, 0, 0], seed);
    lo as u64 | (hi as u64) << 32
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn keys_order_logits_and_invert() {
        let logits = [f32::NEG_INFINITY, f32::MIN, -1.5, -1e-40, 0.0, 1e-40, 0.25, 3.0, f32::MAX, f32::INFINITY];
        for pair in logits.windows(2) {
            assert!(key(pair[0]) < key(pair[1]), "{pair:?}");
        }
        for x in logits {
            assert_eq!(logit(key(x)), x);
        }
        assert_eq!(key(-0.0), key(0.0));
        assert_eq!(key(f32::NEG_INFINITY), KEY_OF_NEG_INFINITY);
        assert!(key(f32::NAN) < KEY_OF_NEG_INFINITY && key(-f32::NAN) < KEY_OF_NEG_INFINITY);
    }

    #[test]
    fn weights_are_exponentials() {
        for temperature in [1e-4f32, 0.3, 1.0, 7.5] {
            for step in 0..4000 {
                let logit = -(step as f32) * 0.0078 * temperature;
                let exact = (f64::from(logit) / f64::from(temperature)).exp() * ONE as f64;
                let found = weight(logit, 0.0, scale(temperature)) as f64;
                assert!((found - exact).abs() <= exact * 6e-6 + 2.0, "{logit} / {temperature}: {found} for {exact}");
            }
        }
    }

    #[test]
    fn weights_of_the_extremes() {
        let inf = f32::INFINITY;
        assert_eq!(weight(inf, inf, scale(1.0)), ONE);
        assert_eq!(weight(3.0, inf, scale(1.0)), 0);
        assert_eq!(weight(-inf, 3.0, scale(f32::INFINITY)), 0);
        assert_eq!(weight(f32::NAN, 3.0, scale(1.0)), 0);
        assert_eq!(weight(2.999, 3.0, scale(1e-45)), 0);
        assert_eq!(weight(f32::MIN, f32::MAX, scale(1.0)), 0);
        assert!(weight(2.0, 3.0, scale(1e30)) > ONE / 100 * 99);
        assert_eq!(weight(-45.1, 0.0, 1.0), 0);
        assert!(weight(-43.9, 0.0, 1.0) == 1);
    }

    #[test]
    fn masses_and_draws() {
        assert_eq!(top_p_mass(0.5, 1000), 500);
        assert_eq!(top_p_mass(0.0, 1000), 1);
        assert_eq!(top_p_mass(-1.0, 1000), 1);
        assert_eq!(min_weight(0.5), ONE / 2);
        assert_eq!((min_weight(0.0), min_weight(2.0), min_weight(f32::NAN), min_weight(1e-30)), (1, ONE, 1, 1));
        assert_eq!((draw(0, 10), draw(!0, 10), draw(1 << 63, 10)), (0, 9, 5));
        assert_eq!((tokens_to_reach(10, 5), tokens_to_reach(11, 5), tokens_to_reach(1, 5)), (2, 3, 1));
    }
}
