//! Launcher and cases of `kernels-gpu/src/gemm/wgmma.rs`.
use super::{Gemm, Path, Shape, cases, entry_index};
use crate::case::{Case, Kernel};
use crate::{Error, Launch, Stream, Target};
use kernels_gpu::gemm::wgmma as gpu;
use kernels_gpu::prim::{DevicePtr, Entry};

/// A tile of the output: 128 rows by this many columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tile {
    /// 128 columns: less waste at the edges and in the last wave.
    N128,
    /// 256 columns: less traffic from shared memory per product.
    N256,
}

impl Tile {
    fn cols(self) -> u32 {
        match self {
            Tile::N128 => 128,
            Tile::N256 => 256,
        }
    }

    fn stages(self) -> u32 {
        match self {
            Tile::N128 => gpu::STAGES_N128,
            Tile::N256 => gpu::STAGES_N256,
        }
    }

    /// Time of a tile, in hundredths of a wide one's. A narrow one has half the work and less reuse.
    fn time(self) -> usize {
        match self {
            Tile::N128 => 56,
            Tile::N256 => 100,
        }
    }

    fn count(self, shape: &Shape) -> usize {
        shape.m.div_ceil(gpu::TILE_M as usize) * shape.n.div_ceil(self.cols() as usize)
    }

    /// The tile whose waves over `multiprocessors` end first.
    pub(super) fn fitting(shape: &Shape, multiprocessors: usize) -> Tile {
        let waves = |tile: Tile| tile.count(shape).div_ceil(multiprocessors) * tile.time();
        if waves(Tile::N256) <= waves(Tile::N128) { Tile::N256 } else { Tile::N128 }
    }

    fn entries(self) -> [Entry<gpu::GemmWgmma>; 6] {
        match self {
            Tile::N128 => [
                gpu::gemm_wgmma_n128_bf16,
                gpu::gemm_wgmma_n128_f16,
                gpu::gemm_wgmma_gated_n128_bf16,
                gpu::gemm_wgmma_gated_n128_f16,
                gpu::gemm_wgmma_f32_n128_bf16,
                gpu::gemm_wgmma_f32_n128_f16,
            ],
            Tile::N256 => [
                gpu::gemm_wgmma_n256_bf16,
                gpu::gemm_wgmma_n256_f16,
                gpu::gemm_wgmma_gated_n256_bf16,
                gpu::gemm_wgmma_gated_n256_f16,
                gpu::gemm_wgmma_f32_n256_bf16,
                gpu::gemm_wgmma_f32_n256_f16,
            ],
        }
    }
}

/// Whether the kernel can do it: TMA and `wgmma` are Hopper's, a tensor map of nothing is an error, and tiles are
/// counted in 32 bits.
pub(super) fn supports(shape: &Shape, target: Target) -> bool {
    target == Target::Sm90a && shape.k > 0 && Tile::N128.count(shape) <= i32::MAX as usize
}

/// Queues the kernel; `gemm` has been checked to have `shape`, which is not empty.
pub(super) fn launch(gemm: &Gemm<'_>, shape: &Shape, tile: Tile, stream: &Stream) -> Result<(), Error> {
    let args = gpu::GemmWgmma {
        a: stream.tensor_map_2d(&gemm.a, gpu::TILE_M, gpu::TILE_K)?,
        w: stream.tensor_map_2d(&gemm.w, tile.cols(), gpu::TILE_K)?,
        bias: gemm.bias.as_ref().map_or(DevicePtr::default(), |bias| bias.ptr()),
        out: gemm.out.ptr(),
        out_stride: gemm.out.stride() as u32,
        m: shape.m as u32,
        n: shape.n as u32,
        k: shape.k as u32,
        activation: gemm.activation.code(),
        accumulate: u32::from(gemm.accumulate),
    };
    let blocks = tile.count(shape).min(stream.device().multiprocessors());
    let shared = gpu::shared_bytes(tile.cols(), tile.stages());
    let entry = tile.entries()[entry_index(gemm)];
    // SAFETY: TMA stays inside of the views that the maps describe; the epilogue stores to rows below m and
    // columns below out's width, and reads bias below n, as `Gemm::check` bound them. A block has a tile at least.
    unsafe { stream.launch(entry, Launch::grid(blocks).shared(shared).dependent(), &args) }
}

/// Tests and benches that force this kernel, with both tiles.
pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "gemm/wgmma",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let mut pinned: Vec<Box<dyn Case>> = cases::real(Some(Path::Wgmma(Tile::N256)), &[2048]);
            for tile in [Tile::N256, Tile::N128] {
                let path = Some(Path::Wgmma(tile));
                pinned.extend(cases::tiled(path));
                pinned.extend(cases::awkward(path, &[1, 100]));
            }
            pinned
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            let random = |tile| cases::random(Some(Path::Wgmma(tile)), 300);
            prop_oneof![random(Tile::N256), random(Tile::N128)].boxed()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{Shape, Tile};

    #[test]
    fn the_tile_that_fills_its_waves_is_picked() {
        let fitting = |m, n| Tile::fitting(&Shape { m, n, k: 4096 }, 132);
        // 512 wide tiles in 4 waves, against 1024 narrow ones in 8.
        assert_eq!(fitting(4096, 4096), Tile::N256);
        // One wave of either.
        assert_eq!(fitting(128, 4096), Tile::N128);
        // 144 wide tiles need a second wave for 12 of them; 288 narrow ones take 3 of the shorter.
        assert_eq!(fitting(2048, 2304), Tile::N128);
    }
}
