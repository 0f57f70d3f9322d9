//! Launcher and cases of `kernels-gpu/src/gemm/mma.rs`.
use super::{Gemm, Path, Shape, cases, entry_index};
use crate::case::Kernel;
use crate::{Error, Launch, Stream};
use kernels_gpu::gemm::mma as gpu;

/// Whether the kernel can do it: always, as long as a grid has the blocks.
pub(super) fn supports(shape: &Shape) -> bool {
    blocks(shape) <= i32::MAX as usize
}

fn blocks(shape: &Shape) -> usize {
    shape.m.div_ceil(gpu::TILE as usize) * shape.n.div_ceil(gpu::TILE as usize)
}

/// Queues the kernel; `gemm` has been checked to have `shape`.
pub(super) fn launch(gemm: &Gemm<'_>, shape: &Shape, stream: &Stream) -> Result<(), Error> {
    let entry = [
        gpu::gemm_mma_bf16,
        gpu::gemm_mma_f16,
        gpu::gemm_mma_gated_bf16,
        gpu::gemm_mma_gated_f16,
        gpu::gemm_mma_f32_bf16,
        gpu::gemm_mma_f32_f16,
    ][entry_index(gemm)];
    let launch = Launch::grid(blocks(shape)).shared(gpu::SHARED).dependent();
    let args = super::args!(gpu::Mma, gemm, shape);
    // SAFETY: the kernel reads and writes below m, n and k of views that were checked to have them.
    unsafe { stream.launch(entry, launch, &args) }
}

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "gemm/mma",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases = cases::real(Some(Path::Mma), &[2048]);
            cases.extend(cases::awkward(Some(Path::Mma), &[1, 9, 64, 65, 128, 200, 1100]));
            cases
        },
        #[cfg(feature = "proptest")]
        random: || cases::random(Some(Path::Mma), 300),
    }
}
