//! The fused addition of tensor cores, fast: [`Accumulate::Truncated`](super::accumulate::Accumulate::Truncated).
//!
//! c and the products of a group are cut off below one unit and summed exactly. Of ordinary numbers, a product is exact
//! in f32, and divided by the unit it is cut at the binary point, in vector registers; the sum of such
//! whole numbers is exact in f64. What is not finite or far from 1 takes the definition's
//! way, in f64. Both give the same bits.
use super::element::{Element, Matrix};
use std::sync::LazyLock;

/// Columns of d that are computed side by side, in vector registers.
const LANES: usize = 8;
/// What the hardware takes for the exponent of a zero, and that of the smallest normal f32.
const MIN_EXPONENT: i32 = -126;
/// In place of the exponent of an infinity or NaN: beyond [`ORDINARY`] with any other added to it.
const NOT_FINITE: f32 = 4096.0;
/// Greatest exponents of sums that are computed in f32: no product that counts underflows, and no term or result
/// overflows.
const ORDINARY: std::ops::RangeInclusive<f32> = -60.0..=100.0;

/// How a sum is cut off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Products added at a time.
    pub group: usize,
    /// Bits kept below the binary point of the greatest term.
    pub kept_bits: u32,
    /// Fraction bits of the result.
    pub result_bits: u32,
}

/// The operand a, row by row. Exponents are in f32, whose maximum is one instruction of the baseline of x86.
struct Rows {
    values: Vec<f32>,
    exponents: Vec<f32>,
}

/// The operand b: [`LANES`] of d's columns (the last ones filled up with zeros) and each k one after another.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    k: usize,
    values: Vec<[f32; LANES]>,
    exponents: Vec<[f32; LANES]>,
    /// Whether all of a column is zero, for [`LANES`] at a time.
    zero: Vec<[bool; LANES]>,
}

impl Rows {
    fn new(a: &Matrix) -> Rows {
        let min = min_exponent(a.element);
        let values = values(a);
        let exponents = values.iter().map(|&x| exponent(x, min)).collect();
        Rows { values, exponents }
    }
}

impl Columns {
    pub fn new(b: &Matrix) -> Columns {
        let min = min_exponent(b.element);
        let flat = values(b);
        let blocks = b.rows().div_ceil(LANES);
        let mut columns = Columns {
            k: b.k,
            values: vec![[0.0; LANES]; blocks * b.k],
            exponents: vec![[MIN_EXPONENT as f32; LANES]; blocks * b.k],
            zero: vec![[true; LANES]; blocks],
        };
        for (column, numbers) in flat.chunks(b.k).enumerate() {
            let (block, lane) = (column / LANES, column % LANES);
            for (at, &x) in (block * b.k..).zip(numbers) {
                columns.values[at][lane] = x;
                columns.exponents[at][lane] = exponent(x, min);
            }
            columns.zero[block][lane] = numbers.iter().all(|&x| x == 0.0);
        }
        columns
    }
}

fn min_exponent(element: Element) -> i32 {
    element.format().map_or(MIN_EXPONENT, |format| format.min_exponent())
}

/// Values of all patterns of the 8-bit types.
static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|code| Element::E4m3.value(code as u32)));
static E5M2: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|code| Element::E5m2.value(code as u32)));

/// The elements' values, as [`Element::value`] has them but for the patterns of NaNs.
fn values(matrix: &Matrix) -> Vec<f32> {
    let codes = matrix.codes.iter();
    match matrix.element {
        Element::Bf16 => codes.map(|&code| f32::from_bits(code << 16)).collect(),
        Element::Tf32 => codes.map(|&code| f32::from_bits(code << 13)).collect(),
        Element::F16 => codes.map(|&code| half(code)).collect(),
        Element::E4m3 => codes.map(|&code| E4M3[code as usize & 0xff]).collect(),
        Element::E5m2 => codes.map(|&code| E5M2[code as usize & 0xff]).collect(),
        Element::S8 | Element::U8 => codes.map(|&code| matrix.element.value(code)).collect(),
    }
}

/// An f16: its bits are those of an f32 2^112 times smaller.
#[inline]
fn half(code: u32) -> f32 {
    let (sign, magnitude) = ((code & 0x8000) << 16, (code & 0x7fff) << 13);
    let finite = (f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23)).to_bits();
    f32::from_bits(sign | if magnitude < 0x7c00 << 13 { finite } else { magnitude | 0x7f80_0000 })
}

/// The exponent of `x` as a number of a format whose least is `min`: of a subnormal number, that.
#[inline]
fn exponent(x: f32, min: i32) -> f32 {
    let field = ((x.to_bits() >> 23) & 0xff) as i32;
    let exponent = if x == 0.0 { MIN_EXPONENT } else { (field.max(1) - 127).max(min) };
    if field == 0xff { NOT_FINITE } else { exponent as f32 }
}

/// d = a · bᵀ + d for `d` [a's rows, `n`] of f32 patterns, row by row.
pub(super) fn multiply_add(d: &mut [u32], a: &Matrix, b: &Columns, n: usize, cut: Cut) {
    let (k, a) = (a.k, Rows::new(a));
    let group = cut.group.min(k);
    let rows = a.values.chunks(k).zip(a.exponents.chunks(k));
    for ((values, exponents), d) in rows.zip(d.chunks_mut(n)) {
        let row_zero = values.iter().all(|&x| x == 0.0);
        let blocks = b.values.chunks(b.k).zip(b.exponents.chunks(b.k)).zip(&b.zero);
        for (((column_values, column_exponents), zero), d) in blocks.zip(d.chunks_mut(LANES)) {
            let mut c = [0; LANES];
            c[..d.len()].copy_from_slice(d);
            let zero = zero.map(|zero| zero || row_zero);
            for first in (0..k).step_by(group) {
                let range = first..(first + group).min(k);
                let terms = Terms {
                    x: &values[range.clone()],
                    x_exponents: &exponents[range.clone()],
                    y: &column_values[range.clone()],
                    y_exponents: &column_exponents[range],
                };
                c = terms.fast(c, zero, cut).unwrap_or_else(|| terms.defined(c, cut));
            }
            d.copy_from_slice(&c[..d.len()]);
        }
    }
}

/// Products that are added at a time: of one row's numbers with those of [`LANES`] columns.
struct Terms<'t> {
    x: &'t [f32],
    x_exponents: &'t [f32],
    y: &'t [[f32; LANES]],
    y_exponents: &'t [[f32; LANES]],
}

impl Terms<'_> {
    /// The greatest exponent among c's and the products', which have the sum of their factors'.
    #[inline]
    fn greatest(&self, c: [u32; LANES]) -> [f32; LANES] {
        let mut greatest = c.map(|c| (((c >> 23) & 0xff).max(1) as i32 - 127) as f32);
        for (x, y) in self.x_exponents.iter().zip(self.y_exponents) {
            for l in 0..LANES {
                let exponent = x + y[l];
                greatest[l] = if exponent > greatest[l] { exponent } else { greatest[l] };
            }
        }
        greatest
    }

    /// c + Σ x·y, unless something is not ordinary. `zero`: all products of the column are.
    #[inline]
    fn fast(&self, c: [u32; LANES], zero: [bool; LANES], cut: Cut) -> Option<[u32; LANES]> {
        let mut greatest = self.greatest(c);
        for l in 0..LANES {
            // Nothing to add up: any unit will do.
            if zero[l] && c[l] << 1 == 0 && greatest[l] <= *ORDINARY.end() {
                greatest[l] = 0.0;
            }
        }
        if greatest.iter().any(|greatest| !ORDINARY.contains(greatest)) {
            return None;
        }
        let greatest = greatest.map(|greatest| greatest as i32);
        let kept = cut.kept_bits as i32;
        let scale = greatest.map(|greatest| f32::from_bits(((kept - greatest + 127) as u32) << 23));
        let mut sums: [f64; LANES] = std::array::from_fn(|l| f64::from(whole(f32::from_bits(c[l]) * scale[l])));
        for (x, y) in self.x.iter().zip(self.y) {
            for l in 0..LANES {
                sums[l] += whole_product(x * y[l] * scale[l]);
            }
        }
        let dropped = (1_u64 << (52 - cut.result_bits)) - 1;
        let mut result = [0; LANES];
        for l in 0..LANES {
            let cut = f64::from_bits(sums[l].to_bits() & !dropped);
            result[l] = ((cut * power(greatest[l] - kept)) as f32).to_bits();
        }
        Some(result)
    }

    /// c + Σ x·y by the definition. Terms that are multiples of one unit and fewer than 2^33 of them sum exactly in
    /// f64, and what is not finite follows IEEE rules there.
    #[cold]
    fn defined(&self, c: [u32; LANES], cut: Cut) -> [u32; LANES] {
        let greatest = self.greatest(c).map(|greatest| greatest as i32);
        // What is not finite has no unit, and needs none.
        let units = greatest.map(|greatest| power(greatest.min(512) - cut.kept_bits as i32));
        let mut sums: [f64; LANES] = std::array::from_fn(|l| truncate(f32::from_bits(c[l]) as f64, units[l]));
        for (x, y) in self.x.iter().zip(self.y) {
            for l in 0..LANES {
                sums[l] += truncate(*x as f64 * y[l] as f64, units[l]);
            }
        }
        std::array::from_fn(|l| match sums[l].is_finite() {
            true => put_together(sums[l], cut.result_bits),
            false => canonical(sums[l] as f32),
        })
    }
}

/// `x` towards zero to a whole number, for |x| < 2^27 of at most 22 significant bits, a product's.
///
/// Not `trunc`, which is a call for want of an instruction in the baseline of x86, nor a conversion to integers and back,
/// which saturates in Rust and so does not vectorise. With 2^29 added the last bit of an f64 is 2^-23, so nothing
/// rounds up to the next whole number, and the lower 23 bits are the fraction.
#[inline]
fn whole_product(x: f32) -> f64 {
    let x = f64::from(x);
    let offset = ((1 << 29) as f64).copysign(x);
    f64::from_bits((x + offset).to_bits() & !((1 << 23) - 1)) - offset
}

/// `x` towards zero to a whole number.
#[inline]
fn whole(x: f32) -> f32 {
    // From here on f32 holds whole numbers only.
    const LARGE: f32 = (1 << 23) as f32;
    let magnitude = x.abs();
    let nearest = (magnitude + LARGE) - LARGE;
    let below = if nearest > magnitude { nearest - 1.0 } else { nearest };
    (if magnitude >= LARGE { magnitude } else { below }).copysign(x)
}

/// The pattern of `x`; of NaN the hardware's.
pub(super) fn canonical(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

/// 2^`exponent`, within f64's normal range.
#[inline]
fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// `x` towards zero to a multiple of `unit`, |x| < 2^51 units. Infinities and NaNs stay.
#[inline]
fn truncate(x: f64, unit: f64) -> f64 {
    // Adding and taking away 2^52 units leaves a multiple of one, the nearest.
    let shift = unit * (1u64 << 52) as f64;
    let nearest = (x.abs() + shift) - shift;
    let below = if nearest > x.abs() { nearest - unit } else { nearest };
    below.copysign(x)
}

/// A finite `sum` as an f32 of `fraction_bits`, bits dropped; zero is positive.
#[inline]
fn put_together(sum: f64, fraction_bits: u32) -> u32 {
    if sum == 0.0 {
        return 0;
    }
    let exponent = (((sum.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(MIN_EXPONENT);
    if exponent > 127 {
        return (f32::INFINITY.copysign(sum as f32)).to_bits();
    }
    // A multiple of the result's unit: an f32, exactly.
    let cut = truncate(sum, power(exponent - fraction_bits as i32));
    if cut == 0.0 { 0 } else { (cut as f32).to_bits() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fast_conversions_are_the_formats() {
        for element in [Element::F16, Element::Bf16, Element::E4m3, Element::E5m2, Element::Tf32] {
            let bits = element.format().unwrap().bits();
            let codes: Vec<u32> = (0..1 << bits).collect();
            let found = values(&Matrix { element, k: 1, codes: codes.clone() });
            for (code, found) in codes.into_iter().zip(found) {
                let expected = element.value(code);
                assert!(found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()), "{code:#x}");
            }
        }
    }

    proptest! {
        /// The two ways agree, wherever the fast one answers.
        #[test]
        fn the_fast_way_gives_the_bits_of_the_definition(
            element in prop::sample::select(vec![Element::F16, Element::Bf16, Element::Tf32, Element::E4m3, Element::E5m2]),
            seed in any::<u64>(),
            spread in 0_u32..60,
            zeros in 0_u32..4,
            cut in prop::sample::select(vec![(24, 23), (25, 23), (13, 13)]),
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as u32
            };
            // Numbers of both signs over `spread` binades, and some zeros.
            let mut number = || {
                let x = (1.0 + (next() % 4096) as f32 / 4096.0) * 2f32.powi((next() % (spread + 1)) as i32 - spread as i32 / 2);
                if next() % 4 < zeros { 0.0 } else if next() % 2 == 0 { x } else { -x }
            };
            let format = element.format().unwrap();
            let k = 32 / element.bytes();
            let mut matrix = |rows: usize| {
                let how = crate::formats::Narrowing::RN_SATFINITE;
                let codes = (0..rows * k).map(|_| format.from_f32(number(), how)).collect();
                Matrix { element, k, codes }
            };
            let (a, b) = (matrix(1), matrix(LANES));
            let c: [u32; LANES] = std::array::from_fn(|_| number().to_bits());
            let cut = Cut { group: k, kept_bits: cut.0, result_bits: cut.1 };
            let (rows, columns) = (Rows::new(&a), Columns::new(&b));
            let terms = Terms {
                x: &rows.values, x_exponents: &rows.exponents, y: &columns.values, y_exponents: &columns.exponents,
            };
            if let Some(fast) = terms.fast(c, columns.zero[0], cut) {
                prop_assert_eq!(fast, terms.defined(c, cut));
            } else {
                prop_assert!(spread > 20 || zeros > 0, "numbers about 1 are ordinary");
            }
        }
    }
}
