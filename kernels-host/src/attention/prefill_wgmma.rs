//! Launch of `kernels-gpu/src/attention/prefill_wgmma.rs`; the launcher and the cases are `prefill`'s.
use super::Geometry;
use super::prefill::{Path, PrefillAttention, pinned};
use crate::case::Kernel;
use crate::{DType, Error, Launch, Stream};
use kernels_gpu::attention::prefill_wgmma as gpu;

/// Packed rows of the longest sequence from which on the kernel pays: below, its blocks of 128 are not full.
pub(super) const FEWEST_ROWS: usize = gpu::ROWS as usize;

/// Queues the kernel; `attention` has been checked and the GPU is a Hopper.
pub(super) fn launch(attention: &PrefillAttention<'_>, geometry: &Geometry, stream: &Stream) -> Result<(), Error> {
    let PrefillAttention { q, kv, query_starts, out, .. } = attention;
    let entry = match (q.dtype(), geometry.head_dim) {
        (DType::F16, 64) => gpu::prefill_attention_wgmma_f16_64,
        (DType::F16, 96) => gpu::prefill_attention_wgmma_f16_96,
        (DType::F16, 128) => gpu::prefill_attention_wgmma_f16_128,
        (DType::F16, _) => gpu::prefill_attention_wgmma_f16_256,
        (_, 64) => gpu::prefill_attention_wgmma_bf16_64,
        (_, 96) => gpu::prefill_attention_wgmma_bf16_96,
        (_, 128) => gpu::prefill_attention_wgmma_bf16_128,
        _ => gpu::prefill_attention_wgmma_bf16_256,
    };
    let (scale_log2, cap_inner) = geometry.device_scale();
    let sequences = kv.block_tables.rows();
    let row_blocks = (attention.max_query * geometry.group()).div_ceil(gpu::ROWS as usize);
    let items = row_blocks * sequences * geometry.kv_heads;
    if items > i32::MAX as usize {
        let what = format!("{items} blocks of rows, more than {}: split the batch", i32::MAX);
        return Err(Error::Unsupported { kernel: "prefill_attention", what });
    }
    let args = gpu::PrefillWgmma {
        q: q.ptr(),
        k: kv.k.ptr(),
        v: kv.v.ptr(),
        block_tables: kv.block_tables.ptr(),
        kv_lens: kv.kv_lens.ptr(),
        query_starts: query_starts.ptr(),
        out: out.ptr(),
        q_stride: q.stride() as u32,
        out_stride: out.stride() as u32,
        table_stride: kv.block_tables.stride() as u32,
        row_blocks: row_blocks as u32,
        sequences: sequences as u32,
        kv_heads: geometry.kv_heads as u32,
        group: geometry.group() as u32,
        scale_log2,
        window: geometry.device_window(),
        cap_inner,
    };
    let blocks = items.min(stream.device().multiprocessors());
    let launch = Launch::grid(blocks).shared(gpu::shared_bytes(geometry.head_dim as u32));
    // SAFETY: as for the other prefill kernel: rows query_starts[s] .. query_starts[s + 1] of q and out and the pages
    // that the tables name for kv_lens[s] tokens, which the launcher's fields ask to lie within the checked views.
    unsafe { stream.launch(entry, launch.dependent(), &args) }
}

/// Tests and benches that force this kernel.
pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "attention/prefill_wgmma",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || pinned(Path::Wgmma),
        #[cfg(feature = "proptest")]
        random: || super::random::prefill(Path::Wgmma),
    }
}
