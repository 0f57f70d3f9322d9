//! What the four warps of a warpgroup do together.

use super::{Operand, PredSource};
use crate::tensor::wgmma::Wgmma;

/// An instruction that all four warps execute.
#[derive(Clone, Debug)]
pub(crate) enum WarpgroupOp {
    /// `wgmma.fence`.
    Fence,
    /// `wgmma.commit_group`.
    Commit,
    /// `wgmma.wait_group`: at most `pending` of the newest groups are in flight after it.
    Wait { pending: u32 },
    /// `wgmma.mma_async`.
    Multiply(Box<Product>),
    /// `setmaxnreg`: from now on each thread has `count` registers, no more (`dec`) or no less (`inc`) than before.
    SetRegisters { count: u32, increase: bool },
}

/// `wgmma.mma_async`: d = a · b + d.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub form: Wgmma,
    pub d: Vec<TensorRegister>,
    pub a: OperandA,
    /// The descriptor.
    pub b: Operand,
    /// `scale-d`: whether d counts.
    pub keep: PredSource,
}

/// Where a is.
#[derive(Clone, Debug)]
pub(crate) enum OperandA {
    /// In shared memory, as this descriptor says.
    Shared(Operand),
    Registers([TensorRegister; 4]),
}

/// A 32-bit register that matrix instructions work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorRegister {
    /// In the file of 32-bit registers.
    pub index: u32,
    /// Among the registers of the entry that matrix instructions work on.
    pub id: u16,
}

/// The registers of an entry that matrix instructions work on, and who else uses them.
#[derive(Clone, Debug, Default)]
pub(crate) struct TensorRegisters {
    /// Their names, by their ids.
    pub names: Vec<String>,
    /// Those that each instruction uses, itself no matrix instruction; empty for entries without any.
    pub uses: Vec<Box<[TensorUse]>>,
}

/// An instruction's use of a register that matrix instructions work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TensorUse {
    pub id: u16,
    /// It is a destination and no source.
    pub writes: bool,
}
