//! Launcher and cases of `kernels-gpu/src/gemm/narrow.rs`.
use super::{Gemm, Path, Shape, cases, entry_index};
use crate::case::Kernel;
use crate::{Error, Launch, Stream};
use kernels_gpu::gemm::narrow as gpu;

/// Whether the kernel can do it.
pub(super) fn supports(shape: &Shape) -> bool {
    (1..=gpu::MAX_ROWS).contains(&shape.m)
}

/// Queues the kernel; `gemm` has been checked to have `shape`.
pub(super) fn launch(gemm: &Gemm<'_>, shape: &Shape, stream: &Stream) -> Result<(), Error> {
    let entries = if shape.m <= 8 {
        [
            gpu::narrow8_bf16,
            gpu::narrow8_f16,
            gpu::narrow8_gated_bf16,
            gpu::narrow8_gated_f16,
            gpu::narrow8_f32_bf16,
            gpu::narrow8_f32_f16,
        ]
    } else {
        [
            gpu::narrow16_bf16,
            gpu::narrow16_f16,
            gpu::narrow16_gated_bf16,
            gpu::narrow16_gated_f16,
            gpu::narrow16_f32_bf16,
            gpu::narrow16_f32_f16,
        ]
    };
    let entry = entries[entry_index(gemm)];
    let blocks = shape.n.div_ceil(gpu::WEIGHT_ROWS);
    // The tokens stay in L1, and 64 KiB of them (m = 8, k = 4096) do not fit beside the shared memory of gemm/stream: the 128
    // products of a decode step with both take 3.93 ms with the most L1, 5.06 as the driver chooses. Four blocks take 16 KiB,
    // or three 21.
    let launch = Launch::grid(blocks).shared(gpu::shared_bytes(shape.m)).dependent().carveout(32 << 10);
    let args = super::args!(gpu::Narrow, gemm, shape);
    // SAFETY: the kernel reads and writes below m, n and k of views that were checked to have them.
    unsafe { stream.launch(entry, launch, &args) }
}

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "gemm/narrow",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut cases = cases::real(Some(Path::Narrow), &[4, 8, 16]);
            cases.extend(cases::awkward(Some(Path::Narrow), &[1, 3, 7, 8, 9, 15, 16]));
            cases
        },
        #[cfg(feature = "proptest")]
        random: || cases::random(Some(Path::Narrow), gpu::MAX_ROWS),
    }
}
