//! Types of the elements that matrix instructions multiply.
use crate::formats::{BF16, E4M3, E5M2, F16, Format, TF32};
use std::fmt;

/// The type of an operand's elements, as PTX names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// `.f16`
    F16,
    /// `.bf16`
    Bf16,
    /// `.tf32`: an f32 of which the hardware ignores the lower 13 bits.
    Tf32,
    /// `.e4m3`
    E4m3,
    /// `.e5m2`
    E5m2,
    /// `.s8`
    S8,
    /// `.u8`
    U8,
}

impl Element {
    /// Bytes of an element: 1, 2 or 4.
    pub const fn bytes(self) -> usize {
        match self {
            Element::Tf32 => 4,
            Element::F16 | Element::Bf16 => 2,
            Element::E4m3 | Element::E5m2 | Element::S8 | Element::U8 => 1,
        }
    }
    /// Whether products are integers, summed in s32; else they are summed in f32.
    pub const fn is_integer(self) -> bool {
        matches!(self, Element::S8 | Element::U8)
    }
    /// Whether this is one of the 8-bit floating-point types.
    pub const fn is_fp8(self) -> bool {
        matches!(self, Element::E4m3 | Element::E5m2)
    }
    /// Whether one instruction can multiply elements of these two types: equal ones, s8 and u8, e4m3 and e5m2.
    pub fn multiplies(self, other: Element) -> bool {
        self == other || (self.is_integer() && other.is_integer()) || (self.is_fp8() && other.is_fp8())
    }
    /// The floating-point format; none for integers.
    pub const fn format(self) -> Option<Format> {
        match self {
            Element::F16 => Some(F16),
            Element::Bf16 => Some(BF16),
            Element::Tf32 => Some(TF32),
            Element::E4m3 => Some(E4M3),
            Element::E5m2 => Some(E5M2),
            Element::S8 | Element::U8 => None,
        }
    }
    /// Element `index` of consecutive elements packed in 32 bits, the first in the lowest. A tf32 comes without
    /// the 13 bits that do not count, as its [`Format`] wants it.
    #[inline]
    pub fn extract(self, word: u32, index: usize) -> u32 {
        match self.bytes() {
            1 => (word >> (8 * index)) & 0xff,
            2 => (word >> (16 * index)) & 0xffff,
            _ => word >> 13,
        }
    }
    /// The value of pattern `code`; exact.
    #[inline]
    pub fn value(self, code: u32) -> f32 {
        match (self, self.format()) {
            (_, Some(format)) => format.to_f32(code),
            (Element::S8, None) => code as u8 as i8 as f32,
            (_, None) => code as u8 as f32,
        }
    }
    /// The value of integer pattern `code`.
    #[inline]
    pub fn integer(self, code: u32) -> i32 {
        if self == Element::S8 { code as u8 as i8 as i32 } else { code as u8 as i32 }
    }
}

impl Element {
    /// The name, without a dot.
    pub const fn name(self) -> &'static str {
        match self {
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
            Element::Tf32 => "tf32",
            Element::E4m3 => "e4m3",
            Element::E5m2 => "e5m2",
            Element::S8 => "s8",
            Element::U8 => "u8",
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An operand: rows of `k` elements, the patterns of one after another. A (M rows) and B (N rows, so Bᵀ as
/// mathematics writes it) look the same. Comparing two tells whether memory changed in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Type of the elements.
    pub element: Element,
    /// Elements of a row.
    pub k: usize,
    /// Patterns, row by row.
    pub codes: Vec<u32>,
}

impl Matrix {
    /// A matrix of zeros.
    pub fn zeros(element: Element, rows: usize, k: usize) -> Matrix {
        Matrix { element, k, codes: vec![0; rows * k] }
    }
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.codes.len() / self.k
    }
    /// Flips all signs (`imm-scale-a`, `imm-scale-b` of -1). Floating point only: integers are left as they are.
    pub fn negate(&mut self) {
        if let Some(format) = self.element.format() {
            self.codes.iter_mut().for_each(|code| *code ^= 1 << (format.bits() - 1));
        }
    }
}
