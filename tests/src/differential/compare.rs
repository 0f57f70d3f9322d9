//! How two outputs differ, and by how much they may.
use kernels_host::DType;
use kernels_host::case::Output;

/// What is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    /// No difference.
    Exact,
    /// Of floating-point elements [`UNITS`] units in the last place, at the larger of the element and the root mean
    /// square of its tensor: an approximate function that is off by 2^-22 turns a rounding of its result or of an
    /// intermediate one to 16 bits around, and sums carry that to elements that cancel. Besides, so much in absolute
    /// terms ([`kernels_host::case::Case::absolute_error`]). Integers are equal.
    Approximate(f64),
}

/// Units in the last place that approximate results may differ by; of f32, which nothing rounds to 16 bits, many.
const UNITS: f64 = 2.0;
const UNITS_F32: f64 = 256.0;

/// How one output differs.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    pub elements: usize,
    /// Elements with another pattern. NaNs are alike.
    pub unequal: usize,
    /// Elements that are NaN on both, which says little.
    pub nans: usize,
    /// The most, in units of the element's own last place.
    pub ulps: u64,
    /// The most.
    pub absolute: f64,
    /// An element beyond the bound.
    pub fault: Option<String>,
}

impl Difference {
    pub(super) fn new(found: &Output, expected: &Output, bound: Bound) -> Self {
        let (name, dtype) = (found.name, found.dtype);
        let (left, right) = (codes(found), codes(expected));
        let mut difference =
            Difference { elements: left.len(), unequal: 0, nans: 0, ulps: 0, absolute: 0.0, fault: None };
        let scale = root_mean_square(dtype, &right);
        for (index, (&x, &y)) in left.iter().zip(&right).enumerate() {
            let (a, b) = (value(dtype, x), value(dtype, y));
            difference.nans += usize::from(a.is_nan() && b.is_nan());
            if x == y || (a.is_nan() && b.is_nan()) {
                continue;
            }
            let distance = (a - b).abs();
            difference.unequal += 1;
            difference.ulps = difference.ulps.max(ordered(dtype, x).abs_diff(ordered(dtype, y)));
            difference.absolute = difference.absolute.max(distance);
            let unit = 2.0 * f64::from(dtype.epsilon()) * a.abs().max(b.abs()).max(scale);
            let allowed = match (bound, dtype) {
                (Bound::Exact, _) | (_, DType::U32 | DType::U8) => 0.0,
                (Bound::Approximate(absolute), DType::F32) => absolute + UNITS_F32 * unit,
                (Bound::Approximate(absolute), _) => absolute + UNITS * unit,
            };
            let within = distance <= allowed;
            if !within && difference.fault.is_none() {
                difference.fault = Some(format!("{name}[{index}] is {a} ({x:#x}), on the GPU {b} ({y:#x})"));
            }
        }
        if left.len() != right.len() {
            difference.fault = Some(format!("{name} has {} elements, on the GPU {}", left.len(), right.len()));
        }
        difference
    }
}

/// The elements' patterns.
fn codes(output: &Output) -> Vec<u32> {
    let code = |bytes: &[u8]| bytes.iter().rev().fold(0, |code, &byte| code << 8 | u32::from(byte));
    output.bytes.chunks(output.dtype.size()).map(code).collect()
}

fn value(dtype: DType, code: u32) -> f64 {
    match dtype {
        DType::Bf16 | DType::F16 => f64::from(dtype.decode(code as u16)),
        DType::F32 => f64::from(f32::from_bits(code)),
        DType::U32 | DType::U8 => f64::from(code),
    }
}

/// Patterns as integers in the order of the numbers.
fn ordered(dtype: DType, code: u32) -> i64 {
    let sign = match dtype {
        DType::Bf16 | DType::F16 => 1 << 15,
        DType::F32 => 1 << 31,
        DType::U32 | DType::U8 => return i64::from(code),
    };
    let magnitude = i64::from(code & (sign - 1));
    if code & sign == 0 { magnitude } else { -magnitude }
}

/// Of the finite elements.
fn root_mean_square(dtype: DType, codes: &[u32]) -> f64 {
    let finite = codes.iter().map(|&code| value(dtype, code)).filter(|x| x.is_finite());
    let (sum, count) = finite.fold((0.0, 0usize), |(sum, count), x| (sum + x * x, count + 1));
    (sum / count.max(1) as f64).sqrt()
}

/// That a difference is seen, and that what is allowed is.
pub(super) fn differences_are_seen() -> Result<(), String> {
    let output = |values: &[u16]| Output {
        name: "out",
        dtype: DType::Bf16,
        bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let (a, b) = (output(&[0x3f80, 0x7fff, 0x4000]), output(&[0x3f80, 0xffff, 0x4001]));
    let cases = [
        ("one bit, exactly", &b, Bound::Exact, false),
        ("one bit", &b, Bound::Approximate(0.0), true),
        ("NaN against a number", &output(&[0x3f80, 0, 0x4000]), Bound::Approximate(9.0), false),
        ("sixteen units", &output(&[0x3f90, 0x7fff, 0x4000]), Bound::Approximate(0.0), false),
        ("sixteen units, an eighth", &output(&[0x3f90, 0x7fff, 0x4000]), Bound::Approximate(0.125), true),
        ("nothing", &a, Bound::Exact, true),
    ];
    for (what, other, bound, allowed) in cases {
        let difference = Difference::new(&a, other, bound);
        if difference.fault.is_none() != allowed {
            return Err(format!("{what}: {difference:?}"));
        }
    }
    match ordered(DType::F16, 0x8001).abs_diff(ordered(DType::F16, 1)) {
        2 => Ok(()),
        distance => Err(format!("the sign counts as distance: {distance}")),
    }
}
