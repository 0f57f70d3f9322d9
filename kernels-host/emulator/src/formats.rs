//! Narrow floating-point formats, converted to and from f32 exactly as `cvt` does.
//!
//! One algorithm serves all formats: a number is an integer times a power of two, and narrowing it is one
//! rounded shift of the integer. Nothing here goes through host floating-point arithmetic, so results do not
//! depend on the machine.
//!
//! NaNs come out canonical, as the hardware makes them: positive, all other bits set (0x7fff for f16 and bf16,
//! 0x7f for the 8-bit formats, 0x7fff_ffff for f32).

/// The f32 that conversions make of any NaN.
pub const NAN: f32 = f32::from_bits(0x7fff_ffff);

/// How a result that has to lose bits is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// `.rn`: to nearest, ties to the even one.
    NearestEven,
    /// `.rna`: to nearest, ties away from zero (tf32).
    NearestAway,
    /// `.rz`: towards zero.
    Zero,
}

/// Modifiers of a `cvt` to a narrow format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Narrowing {
    /// `.rn`, `.rna` or `.rz`.
    pub rounding: Rounding,
    /// `.satfinite`: what is too large, infinities included, becomes the largest finite number. NaN stays NaN.
    pub saturate: bool,
    /// `.relu`: what is negative becomes +0.
    pub relu: bool,
}

impl Narrowing {
    /// `.rn`, what most conversions are.
    pub const RN: Narrowing = Narrowing { rounding: Rounding::NearestEven, saturate: false, relu: false };
    /// `.rz`.
    pub const RZ: Narrowing = Narrowing { rounding: Rounding::Zero, saturate: false, relu: false };
    /// `.rn.satfinite`, the only kind that the 8-bit formats have.
    pub const RN_SATFINITE: Narrowing = Narrowing { rounding: Rounding::NearestEven, saturate: true, relu: false };
}

/// A floating-point format of at most 19 bits. Its numbers are bit patterns in the low bits of a `u32`: sign,
/// exponent, fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    exponent_bits: u32,
    fraction_bits: u32,
    /// Without infinities, and only the all-ones pattern is NaN: the top exponent holds numbers as well.
    finite_only: bool,
}

/// IEEE half precision.
pub const F16: Format = Format::ieee(5, 10);
/// The upper half of an f32.
pub const BF16: Format = Format::ieee(8, 7);
/// The upper 19 bits of an f32. In a register it occupies the upper bits: see [`tf32_from_f32`].
pub const TF32: Format = Format::ieee(8, 10);
/// 8 bits, largest 448, no infinities.
pub const E4M3: Format = Format { exponent_bits: 4, fraction_bits: 3, finite_only: true };
/// 8 bits, largest 57,344, with infinities (which conversions, always saturating, never make).
pub const E5M2: Format = Format::ieee(5, 2);

impl Format {
    const fn ieee(exponent_bits: u32, fraction_bits: u32) -> Format {
        Format { exponent_bits, fraction_bits, finite_only: false }
    }
    /// Bits of a number, the sign included.
    pub const fn bits(self) -> u32 {
        1 + self.exponent_bits + self.fraction_bits
    }
    /// Bits after the binary point of a normal number.
    pub const fn fraction_bits(self) -> u32 {
        self.fraction_bits
    }
    /// Exponent of the smallest normal number, and of all subnormal ones.
    pub const fn min_exponent(self) -> i32 {
        2 - (1 << (self.exponent_bits - 1))
    }
    /// Pattern of NaN, without a sign: all ones in every one of these formats.
    pub const fn nan(self) -> u32 {
        (1 << (self.bits() - 1)) - 1
    }
    /// Pattern of the largest finite number.
    pub const fn max_finite(self) -> u32 {
        if self.finite_only { self.nan() - 1 } else { self.infinity() - 1 }
    }
    /// Pattern of infinity, where there is one.
    const fn infinity(self) -> u32 {
        ((1 << self.exponent_bits) - 1) << self.fraction_bits
    }

    /// The pattern nearest to `x`. In a format without infinities, what is too large becomes NaN unless
    /// `how` saturates.
    #[inline]
    pub fn from_f32(self, x: f32, how: Narrowing) -> u32 {
        if x.is_nan() {
            return self.nan();
        }
        if how.relu && x.is_sign_negative() {
            return 0;
        }
        let sign = (x.to_bits() >> 31) << (self.bits() - 1);
        sign | self.magnitude(x.to_bits() & 0x7fff_ffff, how)
    }

    /// [`Format::from_f32`] of the absolute value whose f32 pattern is `bits`, which is no NaN.
    #[inline]
    fn magnitude(self, bits: u32, how: Narrowing) -> u32 {
        let infinite = bits == f32::INFINITY.to_bits();
        // |x| = significand · 2^(exponent - 23), the exponent no less than f32's smallest, -126.
        let field = bits >> 23;
        let significand = (bits & 0x7f_ffff) | if field == 0 { 0 } else { 1 << 23 };
        let exponent = field.max(1) as i32 - 127;
        let shared = exponent.max(self.min_exponent());
        let drop = (shared - exponent) as u32 + 23 - self.fraction_bits;
        // Biased exponent and fraction in one number: a carry out of the fraction goes where it should, and
        // a normal number's leading bit adds the one by which its exponent field exceeds a subnormal's.
        let code = (((shared - self.min_exponent()) as u32) << self.fraction_bits)
            + shift_rounded(significand, drop, how.rounding);
        if code <= self.max_finite() {
            code
        } else if how.saturate || (how.rounding == Rounding::Zero && !infinite) {
            self.max_finite()
        } else if self.finite_only {
            self.nan()
        } else {
            self.infinity()
        }
    }

    /// The number of pattern `code` (upper bits are ignored); exact. NaNs become [`NAN`].
    #[inline]
    pub fn to_f32(self, code: u32) -> f32 {
        let magnitude = code & self.nan();
        let sign = ((code >> (self.bits() - 1)) & 1) << 31;
        let is_nan = if self.finite_only { magnitude == self.nan() } else { magnitude > self.infinity() };
        if is_nan {
            return NAN;
        }
        if !self.finite_only && magnitude == self.infinity() {
            return f32::from_bits(sign | f32::INFINITY.to_bits());
        }
        // f32's exponent is as wide or wider, so the pattern, moved up, is the number with the wrong bias.
        let moved = f32::from_bits(magnitude << (23 - self.fraction_bits));
        let number = if self.exponent_bits == 8 { moved } else { self.rebias(magnitude) };
        f32::from_bits(sign | number.to_bits())
    }

    /// A finite magnitude of a format whose exponent is narrower than f32's, where all numbers are normal.
    #[inline]
    fn rebias(self, magnitude: u32) -> f32 {
        if magnitude == 0 {
            return 0.0;
        }
        let field = magnitude >> self.fraction_bits;
        let fraction = magnitude & ((1 << self.fraction_bits) - 1);
        let (exponent, fraction) = if field == 0 {
            let up = self.fraction_bits + 1 - (32 - fraction.leading_zeros());
            (self.min_exponent() - up as i32, (fraction << up) & ((1 << self.fraction_bits) - 1))
        } else {
            (self.min_exponent() + field as i32 - 1, fraction)
        };
        f32::from_bits((((exponent + 127) as u32) << 23) | (fraction << (23 - self.fraction_bits)))
    }

    /// `cvt.….{f16x2, bf16x2, e4m3x2, e5m2x2}.f32 d, a, b`: `a` in the upper half of the result, `b` in the lower.
    #[inline]
    pub fn pack2(self, a: f32, b: f32, how: Narrowing) -> u32 {
        (self.from_f32(a, how) << self.bits()) | self.from_f32(b, how)
    }
    /// Undoes [`Format::pack2`]: the upper half's number, then the lower's.
    #[inline]
    pub fn unpack2(self, packed: u32) -> (f32, f32) {
        (self.to_f32(packed >> self.bits()), self.to_f32(packed))
    }
}

/// `value >> drop`, rounded.
#[inline]
fn shift_rounded(value: u32, drop: u32, rounding: Rounding) -> u32 {
    // 24 bits: from 26 on nothing is left, whichever way it is rounded, but 0 under the half.
    let drop = drop.min(26);
    if drop == 0 {
        return value;
    }
    let (kept, half) = (value >> drop, 1 << (drop - 1));
    let rest = value & ((1 << drop) - 1);
    let up = match rounding {
        Rounding::Zero => false,
        Rounding::NearestAway => rest >= half,
        Rounding::NearestEven => rest > half || (rest == half && kept & 1 == 1),
    };
    kept + up as u32
}

/// `cvt.….tf32.f32`: the register's pattern, an f32 whose lower 13 bits are zero.
#[inline]
pub fn tf32_from_f32(x: f32, how: Narrowing) -> u32 {
    TF32.from_f32(x, how) << 13
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Format; 5] = [F16, BF16, TF32, E4M3, E5M2];

    /// Every pattern that is a number, without sign.
    fn magnitudes(format: Format) -> std::ops::RangeInclusive<u32> {
        0..=format.max_finite()
    }

    #[test]
    fn every_pattern_returns() {
        for format in ALL {
            for code in 0..1 << format.bits() {
                let x = format.to_f32(code);
                for how in
                    [Narrowing::RN, Narrowing::RZ, Narrowing { rounding: Rounding::NearestAway, ..Narrowing::RN }]
                {
                    let expected = if x.is_nan() { format.nan() } else { code };
                    assert_eq!(format.from_f32(x, how), expected, "{format:?} {code:#x} = {x}");
                }
            }
        }
    }

    #[test]
    fn patterns_mean_what_the_formats_define() {
        for (format, bias) in [(F16, 15), (BF16, 127), (TF32, 127), (E4M3, 7), (E5M2, 15)] {
            for code in magnitudes(format) {
                let (field, fraction) = (code >> format.fraction_bits, code & ((1 << format.fraction_bits) - 1));
                let fraction = fraction as f64 / (1u32 << format.fraction_bits) as f64;
                let value = match field {
                    0 => fraction * 2f64.powi(1 - bias),
                    _ => (1.0 + fraction) * 2f64.powi(field as i32 - bias),
                };
                assert_eq!(format.to_f32(code) as f64, value, "{format:?} {code:#x}");
                assert_eq!(format.to_f32(code | 1 << (format.bits() - 1)) as f64, -value);
            }
        }
        assert_eq!(F16.to_f32(0x7bff), 65504.0);
        assert_eq!(E4M3.to_f32(0x7e), 448.0);
        assert_eq!(E5M2.to_f32(0x7b), 57344.0);
    }

    /// Between every two neighbours: the midpoint goes to the even one, what is next to it to the nearer one.
    #[test]
    fn halfway_goes_to_even_and_the_rest_to_the_nearest() {
        for format in ALL {
            for code in 0..format.max_finite() {
                let (low, high) = (format.to_f32(code) as f64, format.to_f32(code + 1) as f64);
                let middle = ((low + high) / 2.0) as f32;
                assert_eq!(middle as f64, (low + high) / 2.0, "the midpoint is an f32");
                let (even, odd_up) = (code + (code & 1), code + 1);
                assert_eq!(format.from_f32(middle, Narrowing::RN), even, "{format:?} {code:#x}");
                assert_eq!(format.from_f32(middle.next_up(), Narrowing::RN), odd_up);
                assert_eq!(format.from_f32(middle.next_down(), Narrowing::RN), code);
                let away = Narrowing { rounding: Rounding::NearestAway, ..Narrowing::RN };
                assert_eq!(format.from_f32(middle, away), odd_up);
                assert_eq!(format.from_f32((high as f32).next_down(), Narrowing::RZ), code);
                assert_eq!(format.from_f32(-(high as f32).next_down(), Narrowing::RZ), code | 1 << (format.bits() - 1));
            }
        }
    }

    #[test]
    fn beyond_the_largest() {
        for format in ALL {
            let negative = 1 << (format.bits() - 1);
            assert_eq!(format.from_f32(f32::INFINITY, Narrowing::RN_SATFINITE), format.max_finite());
            assert_eq!(format.from_f32(-f32::MAX, Narrowing::RN_SATFINITE), format.max_finite() | negative);
            assert_eq!(format.from_f32(f32::MAX, Narrowing::RZ), format.max_finite());
            assert_eq!(format.from_f32(f32::NAN, Narrowing::RN_SATFINITE), format.nan());
            assert_eq!(format.from_f32(-f32::NAN, Narrowing::RN), format.nan());
        }
        assert_eq!(F16.from_f32(65519.99, Narrowing::RN), 0x7bff);
        assert_eq!(F16.from_f32(65520.0, Narrowing::RN), 0x7c00);
        assert_eq!(BF16.from_f32(f32::MAX, Narrowing::RN), 0x7f80);
        assert_eq!(BF16.from_f32(f32::NEG_INFINITY, Narrowing::RZ), 0xff80);
        assert_eq!(E4M3.from_f32(464.0, Narrowing::RN), 0x7e, "halfway to what would be 480: 448 is even");
        assert_eq!(E4M3.from_f32(464.1, Narrowing::RN), 0x7f);
    }

    #[test]
    fn the_smallest() {
        assert_eq!(F16.from_f32(2f32.powi(-25), Narrowing::RN), 0, "half of the smallest: to even");
        assert_eq!(F16.from_f32(2f32.powi(-25).next_up(), Narrowing::RN), 1);
        assert_eq!(F16.from_f32(-f32::from_bits(1), Narrowing::RN), 0x8000);
        assert_eq!(E4M3.from_f32(f32::from_bits(1), Narrowing::RN), 0);
        assert_eq!(BF16.from_f32(f32::from_bits(0x8000), Narrowing::RN), 0, "f32's subnormals are not flushed");
        assert_eq!(BF16.from_f32(f32::from_bits(0x8001), Narrowing::RN), 1);
    }

    #[test]
    fn the_first_operand_is_packed_above() {
        assert_eq!(BF16.pack2(1.0, -2.0, Narrowing::RN), 0x3f80_c000);
        assert_eq!(F16.pack2(1.0, -2.0, Narrowing::RN), 0x3c00_c000);
        assert_eq!(E4M3.pack2(448.0, 1.0, Narrowing::RN_SATFINITE), 0x7e38);
        assert_eq!(BF16.unpack2(0x3f80_c000), (1.0, -2.0));
        assert_eq!(tf32_from_f32(1.0, Narrowing::RN), 0x3f80_0000);
        let relu = Narrowing { relu: true, ..Narrowing::RN };
        assert_eq!(BF16.pack2(-1.0, f32::NAN, relu), 0x7fff);
        assert_eq!(BF16.from_f32(-0.0, relu), 0);
    }
}
