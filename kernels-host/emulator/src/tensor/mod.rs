//! The tensor and copy hardware as plain functions: no interpreter, no memory of their own.
//!
//! Who calls hands in registers (`[u32; 32]`, one value per lane), addresses and a closure that reads shared
//! memory, and gets back values or a list of what to copy. So each can be held against the hardware, and
//! tested, by itself.
//!
//! - [`element`]: types of matrix elements. [`accumulate`]: how products are added up.
//! - [`fragment`]: `mma.sync`. [`ldmatrix`]: `ldmatrix`, `stmatrix`. [`wgmma`]: matrix descriptors, `wgmma.mma_async`.
//! - [`swizzle`]: the permutation of shared memory that TMA and `wgmma` share.
//! - [`reduce`]: elements reduced into memory.
//! - [`tensor_map`] and [`tma`]: tensor maps and what a copy through one moves. [`mbarrier`]: the barriers that
//!   count it.
//!
//! # What is known of the hardware, and what is assumed
//!
//! Layouts, descriptors, swizzles, shapes and checks are the PTX and driver manuals'. These are not documented; each is
//! said again where it is implemented:
//! - sums of matrix instructions: two models, [`accumulate::Accumulate`], the second as others measured it;
//! - a descriptor's base offset is subtracted from the line number: [`wgmma::Descriptor::base_offset`];
//! - the NaN with which TMA fills: [`tensor_map::Fill::Nan`];
//! - boxes with rows narrower than their swizzle: [`tma::copy_plan`].
//!
//! Not here: f16 accumulators, sparse operands, `.b1`, sub-byte types, im2col and interleaved maps.
pub mod accumulate;
mod descriptor;
pub mod element;
pub mod fragment;
mod fused;
pub mod ldmatrix;
pub mod mbarrier;
pub mod reduce;
pub mod swizzle;
pub mod tensor_map;
pub mod tma;
pub mod wgmma;

/// A register of a warp: one value per lane.
pub type Register = [u32; 32];

use element::Element;

/// A matrix instruction that the hardware does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// No such shape for these types.
    #[error("{instruction} has no shape m{m}n{n}k{k} for {a} and {b}: see the table of shapes in the PTX manual")]
    Shape {
        /// `mma.sync` or `wgmma`.
        instruction: &'static str,
        /// Rows of a.
        m: usize,
        /// Columns of b.
        n: usize,
        /// Columns of a.
        k: usize,
        /// Type of a's elements.
        a: Element,
        /// Type of b's elements.
        b: Element,
    },
    /// A fragment with too few or too many registers.
    #[error("operand {operand} has {found} registers where the instruction's shape takes {expected}")]
    Registers {
        /// Which operand: a, b, c or d.
        operand: char,
        /// What the shape asks for.
        expected: usize,
        /// What was handed in.
        found: usize,
    },
    /// A transposed operand of other than 16-bit elements.
    #[error("operand {operand} of {element} cannot be MN-major: only 16-bit types can, so lay it out K-major")]
    Transposed {
        /// Which operand: a or b.
        operand: char,
        /// Its elements.
        element: Element,
    },
}

/// Checks a fragment's number of registers.
fn check_registers(operand: char, expected: usize, found: usize) -> Result<(), MatrixError> {
    if expected == found { Ok(()) } else { Err(MatrixError::Registers { operand, expected, found }) }
}
