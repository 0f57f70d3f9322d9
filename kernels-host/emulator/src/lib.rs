//! Executes PTX on the CPU: see the modules.
#![warn(missing_docs)]
#![forbid(unsafe_code)]
pub mod formats;
pub mod tensor;
