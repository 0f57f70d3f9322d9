//! Arithmetic of f16, bf16 and pairs of them.

use super::{Operand, Reg, Type};

/// One instruction; operands that it does not have are zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Half {
    pub op: HalfOp,
    /// `F16`, `BF16` or a pair of them.
    pub ty: Type,
    pub ftz: bool,
    /// To [0, 1], NaN to +0.
    pub sat: bool,
    /// What is negative becomes +0, NaN stays.
    pub relu: bool,
    pub dst: Reg,
    pub args: [Operand; 3],
}

/// What it computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HalfOp {
    Add,
    Sub,
    Mul,
    Fma,
    Min,
    Max,
    /// `.NaN`: a NaN wins.
    MinNan,
    MaxNan,
    Neg,
    Abs,
}
