//! Launcher and cases of `kernels-gpu/src/gemm/gemv.rs`.
use super::{Gemm, Path, Shape, cases, entry_index};
use crate::case::Kernel;
use crate::{Error, Launch, Stream};
use kernels_gpu::gemm::gemv as gpu;

/// Shared memory that leaves room for two blocks on a GPU with 227 KiB, and exists on every GPU.
pub(super) const MOST_SHARED: usize = 96 << 10;

/// Whether the kernel can do it: a's rows must fit in shared memory.
pub(super) fn supports(shape: &Shape) -> bool {
    shape.m <= gpu::MAX_ROWS && gpu::shared_bytes(shape.m, shape.k) <= MOST_SHARED
}

/// Queues the kernel; `gemm` has been checked to have `shape`.
pub(super) fn launch(gemm: &Gemm<'_>, shape: &Shape, stream: &Stream) -> Result<(), Error> {
    let entries = match shape.m {
        1 => [
            gpu::gemv1_bf16,
            gpu::gemv1_f16,
            gpu::gemv1_gated_bf16,
            gpu::gemv1_gated_f16,
            gpu::gemv1_f32_bf16,
            gpu::gemv1_f32_f16,
        ],
        2 => [
            gpu::gemv2_bf16,
            gpu::gemv2_f16,
            gpu::gemv2_gated_bf16,
            gpu::gemv2_gated_f16,
            gpu::gemv2_f32_bf16,
            gpu::gemv2_f32_f16,
        ],
        _ => [
            gpu::gemv4_bf16,
            gpu::gemv4_f16,
            gpu::gemv4_gated_bf16,
            gpu::gemv4_gated_f16,
            gpu::gemv4_f32_bf16,
            gpu::gemv4_f32_f16,
        ],
    };
    let entry = entries[entry_index(gemm)];
    let blocks = shape.n.div_ceil(gpu::WEIGHT_ROWS);
    let launch = Launch::grid(blocks).shared(gpu::shared_bytes(shape.m, shape.k) as u32).dependent();
    let args = super::args!(gpu::Gemv, gemm, shape);
    // SAFETY: the kernel reads and writes below m, n and k of views that were checked to have them.
    unsafe { stream.launch(entry, launch, &args) }
}

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "gemm/gemv",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases = cases::real(Some(Path::Gemv), &[1]);
            cases.extend(cases::awkward(Some(Path::Gemv), &[1, 2, 3, 4]));
            cases
        },
        #[cfg(feature = "proptest")]
        random: || cases::random(Some(Path::Gemv), gpu::MAX_ROWS),
    }
}
