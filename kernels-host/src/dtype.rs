use std::fmt;

/// Element types of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// Unsigned 32-bit integers (token ids, page numbers, positions).
    U32,
    /// Raw bytes.
    U8,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::Bf16 | DType::F16 => 2,
            DType::F32 | DType::U32 => 4,
            DType::U8 => 1,
        }
    }

    /// Whether it is one of the two 16-bit floating-point types that the kernels compute on.
    pub const fn is_half(self) -> bool {
        matches!(self, DType::Bf16 | DType::F16)
    }

    /// The 16-bit format's bits to f32.
    pub fn decode(self, bits: u16) -> f32 {
        match self {
            DType::F16 => half::f16::from_bits(bits).to_f32(),
            _ => half::bf16::from_bits(bits).to_f32(),
        }
    }

    /// f32 to the 16-bit format's bits, to nearest even.
    pub fn encode(self, x: f32) -> u16 {
        match self {
            DType::F16 => half::f16::from_f32(x).to_bits(),
            _ => half::bf16::from_f32(x).to_bits(),
        }
    }

    /// Relative rounding error of one conversion to this type (half a unit in the last place).
    pub const fn epsilon(self) -> f32 {
        match self {
            DType::Bf16 => 1.0 / 256.0,
            DType::F16 => 1.0 / 2048.0,
            _ => 1.0 / 16777216.0,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::F32 => "f32",
            DType::U32 => "u32",
            DType::U8 => "u8",
        })
    }
}
