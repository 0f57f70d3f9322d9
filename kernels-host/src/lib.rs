//! Loads and launches Wootz's kernels.
//!
//! A launcher is a struct of named [`View`]s with a `launch(&Stream)` method: safe, checked by name, and
//! the same for every device. On a [`Device::cpu`] stream it runs the kernel's reference, on a GPU
//! it launches the PTX that [`ptx`] embeds.
//!
//! Each kernel is one file here and one with the same path in `kernels-gpu`: launcher, naive f32
//! reference and the cases that tests and benches iterate ([`case`], [`kernels`]).

pub mod act;
pub mod attention;
mod buffer;
pub mod case;
mod check;
pub mod cublaslt;
mod device;
mod dtype;
pub mod embed;
mod error;
pub mod fill;
pub mod gemm;
mod host;
pub mod norm;
pub mod ptx;
pub mod rope;
pub mod sample;

pub use buffer::{Buffer, View, ViewMut};
pub use check::Check;
pub use device::{Device, Emulation, Event, Graph, Launch, Launches, Pinned, Program, Stream, TiledMap};
pub use dtype::DType;
pub use error::Error;
pub use kernels_gpu::tile::kv;
pub use ptx::Target;
pub use ptx_emulator::tensor::{swizzle::Swizzle, tensor_map};
pub use ptx_emulator::{Counters, Report};

/// Every kernel, in the order of the forward pass.
pub fn kernels() -> Vec<case::Kernel> {
    let families = [
        embed::kernels(),
        norm::kernels(),
        rope::kernels(),
        gemm::kernels(),
        attention::kernels(),
        sample::kernels(),
        fill::kernels(),
        act::kernels(),
    ];
    families.into_iter().flatten().collect()
}
