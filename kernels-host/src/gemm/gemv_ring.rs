//! Launcher and cases of `kernels-gpu/src/gemm/gemv_ring.rs`.
use super::{Gemm, Path, Shape, cases, entry_index};
use crate::case::{Case, Kernel};
use crate::{Error, Launch, Stream, Target, View};
use kernels_gpu::gemm::gemv_ring as gpu;
use kernels_gpu::prim::DevicePtr;

/// Half of a multiprocessor's shared memory: the rest is for the kernel before and the one after.
const HALF_SHARED: usize = 113 << 10;
/// Shared memory that a block can have.
const ALL_SHARED: usize = 227 << 10;
/// Stages that keep copies in flight while one is being read.
const FEWEST_STAGES: u32 = 3;

/// How the weights are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fetch {
    /// Columns of a stage: a power of two from 256.
    pub columns: u32,
    /// Blocks per multiprocessor, 1 or 2.
    pub blocks: u32,
    /// KiB per block that are fetched into L2 beyond the ring before the predecessor ends.
    pub ahead: u32,
}

impl Fetch {
    /// What is fastest where nothing was measured.
    const DEFAULT: Fetch = Fetch { columns: 512, blocks: 1, ahead: 96 };

    /// Those worth measuring.
    pub fn all() -> impl Iterator<Item = Fetch> {
        let ahead = |columns, blocks| [0, 96].map(|ahead| Fetch { columns, blocks, ahead });
        [256, 512, 1024].into_iter().flat_map(move |columns| [1, 2].into_iter().flat_map(move |b| ahead(columns, b)))
    }

    /// Stages of a warp's ring within half of the shared memory, or in all where that is too few; 0 where even those are.
    fn stages(self, shape: &Shape) -> u32 {
        let fit = |budget: usize| {
            let stage = gpu::shared_bytes(0, 0, self.columns, 1) - gpu::shared_bytes(0, 0, self.columns, 0);
            let beside = gpu::shared_bytes(shape.m, shape.k, self.columns, 0);
            ((budget.saturating_sub(beside) / stage) as u32).min(gpu::MAX_STAGES)
        };
        [HALF_SHARED, ALL_SHARED].into_iter().map(fit).find(|&stages| stages >= FEWEST_STAGES).unwrap_or(0)
    }

    /// Blocks of the grid: as few as give no warp more pairs of rows than all that fit would.
    fn grid(self, shape: &Shape, multiprocessors: usize) -> usize {
        let warps = gpu::WARPS as usize;
        let pairs = shape.n.div_ceil(2);
        let rounds = pairs.div_ceil((multiprocessors * self.blocks as usize).max(1) * warps);
        pairs.div_ceil(rounds.max(1) * warps)
    }
}

/// Whether the kernel can do it: bulk copies are Hopper's, and the rows of a must leave room for the rings.
pub(super) fn supports(shape: &Shape, fetch: Option<Fetch>, target: Target) -> bool {
    let stages = fetch.unwrap_or(Fetch::DEFAULT).stages(shape);
    target == Target::Sm90a && (1..=gpu::MAX_ROWS).contains(&shape.m) && shape.k > 0 && stages > 0
}

/// Whether it can normalise rows of a on their way.
pub(super) fn normalises(shape: &Shape) -> bool {
    shape.k <= gpu::MAX_NORM_WIDTH
}

/// Queues the kernel; `gemm` has been checked to have `shape`, which is not empty and supported. `norm`: the weights,
/// [1, k], and epsilon of an RMSNorm of a.
pub(super) fn launch(
    gemm: &Gemm<'_>,
    shape: &Shape,
    fetch: Option<Fetch>,
    norm: Option<(View<'_>, f32)>,
    stream: &Stream,
) -> Result<(), Error> {
    let fetch = fetch.unwrap_or(Fetch::DEFAULT);
    let stages = fetch.stages(shape);
    let entries = match shape.m {
        1 => [gpu::gemv_ring1_bf16, gpu::gemv_ring1_f16],
        2 => [gpu::gemv_ring2_bf16, gpu::gemv_ring2_f16],
        _ => [gpu::gemv_ring4_bf16, gpu::gemv_ring4_f16],
    };
    let args = gpu::GemvRing {
        a: gemm.a.ptr(),
        w: gemm.w.ptr(),
        bias: gemm.bias.map_or(DevicePtr::default(), |bias| bias.ptr()),
        out: gemm.out.ptr(),
        m: shape.m as u32,
        n: shape.n as u32,
        k: shape.k as u32,
        a_stride: gemm.a.stride() as u32,
        w_stride: gemm.w.stride() as u32,
        out_stride: gemm.out.stride() as u32,
        activation: gemm.activation.code(),
        accumulate: u32::from(gemm.accumulate),
        kind: entry_index(gemm) as u32 / 2,
        columns: fetch.columns,
        stages,
        ahead: (fetch.ahead << 10) / (gpu::WARPS * 4 * fetch.columns),
        norm: norm.map_or(DevicePtr::default(), |(weight, _)| weight.ptr()),
        eps: norm.map_or(0.0, |(_, eps)| eps),
    };
    let shared = gpu::shared_bytes(shape.m, shape.k, fetch.columns, stages) as u32;
    let launch = Launch::grid(fetch.grid(shape, stream.device().multiprocessors())).shared(shared).dependent();
    // SAFETY: the kernel reads and writes below m, n and k of views that were checked to have them, whose rows are
    // 16-byte aligned and a multiple of 16 bytes long, as bulk copies need.
    unsafe { stream.launch(entries[entry_index(gemm) % 2], launch, &args) }
}

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "gemm/gemv_ring",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let path = Some(Path::GemvRing(None));
            let mut pinned: Vec<Box<dyn Case>> = cases::real(path, &[1, 2, 4]);
            pinned.extend(cases::head(path, &[1]));
            pinned.extend(cases::awkward(path, &[1, 2, 3, 4]));
            pinned.extend(cases::normed(path, &[1, 2, 3, 4]));
            for fetch in Fetch::all() {
                pinned.extend(cases::awkward(Some(Path::GemvRing(Some(fetch))), &[1]));
            }
            pinned
        },
        #[cfg(feature = "proptest")]
        random: || cases::random(Some(Path::GemvRing(None)), gpu::MAX_ROWS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llamas_products_give_every_warp_the_same_number_of_rows() {
        for (n, k) in [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)] {
            for m in [1, 2, 4] {
                let shape = Shape { m, n, k };
                let blocks = Fetch::DEFAULT.grid(&shape, 132);
                assert_eq!((blocks, n % (2 * blocks * gpu::WARPS as usize)), (128, 0), "{shape:?}");
            }
        }
    }

    #[test]
    fn rings_fit_beside_another_kernels() {
        for fetch in Fetch::all() {
            let stages = fetch.stages(&Shape { m: 1, n: 4096, k: 4096 });
            let bytes = gpu::shared_bytes(1, 4096, fetch.columns, stages);
            assert!(bytes <= HALF_SHARED && stages >= FEWEST_STAGES, "{fetch:?}: {stages} stages, {bytes} bytes");
        }
        let wide = Shape { m: 4, n: 8, k: 14336 };
        let stages = Fetch::DEFAULT.stages(&wide);
        assert!(gpu::shared_bytes(4, 14336, Fetch::DEFAULT.columns, stages) <= ALL_SHARED && stages >= FEWEST_STAGES);
        assert!(!supports(&Shape { k: 28672, ..wide }, None, Target::Sm90a));
    }
}
