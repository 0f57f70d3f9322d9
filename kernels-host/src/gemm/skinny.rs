//! Launcher and cases of `kernels-gpu/src/gemm/skinny.rs`.
use super::{Gemm, Path, Shape, cases, entry_index};
use crate::case::Kernel;
use crate::{Error, Launch, Stream};
use kernels_gpu::gemm::skinny as gpu;

/// Most rows of a.
pub(super) const MAX_ROWS: usize = 64;

/// Whether the kernel can do it.
pub(super) fn supports(shape: &Shape) -> bool {
    shape.m <= MAX_ROWS
}

/// Queues the kernel; `gemm` has been checked to have `shape`.
pub(super) fn launch(gemm: &Gemm<'_>, shape: &Shape, stream: &Stream) -> Result<(), Error> {
    let entries = match shape.m {
        0..=16 => [
            gpu::skinny16_bf16,
            gpu::skinny16_f16,
            gpu::skinny16_gated_bf16,
            gpu::skinny16_gated_f16,
            gpu::skinny16_f32_bf16,
            gpu::skinny16_f32_f16,
        ],
        17..=32 => [
            gpu::skinny32_bf16,
            gpu::skinny32_f16,
            gpu::skinny32_gated_bf16,
            gpu::skinny32_gated_f16,
            gpu::skinny32_f32_bf16,
            gpu::skinny32_f32_f16,
        ],
        _ => [
            gpu::skinny64_bf16,
            gpu::skinny64_f16,
            gpu::skinny64_gated_bf16,
            gpu::skinny64_gated_f16,
            gpu::skinny64_f32_bf16,
            gpu::skinny64_f32_f16,
        ],
    };
    let entry = entries[entry_index(gemm)];
    let blocks = shape.n.div_ceil(gpu::weight_rows(shape.m));
    let launch = Launch::grid(blocks).shared(gpu::shared_bytes(shape.m)).dependent();
    let args = super::args!(gpu::Skinny, gemm, shape);
    // SAFETY: the kernel reads and writes below m, n and k of views that were checked to have them.
    unsafe { stream.launch(entry, launch, &args) }
}

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "gemm/skinny",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases = cases::real(Some(Path::Skinny), &[16, 32, 64]);
            cases.extend(cases::awkward(Some(Path::Skinny), &[1, 7, 8, 9, 16, 17, 32, 33, 64]));
            cases
        },
        #[cfg(feature = "proptest")]
        random: || cases::random(Some(Path::Skinny), MAX_ROWS),
    }
}
