//! Launcher and cases of `kernels-gpu/src/gemm/wgmma.rs`.
use super::{Gemm, Path, Shape, cases, entry_index};
use crate::case::{Case, Kernel};
use crate::{Error, Launch, Stream, Target};
use kernels_gpu::gemm::wgmma as gpu;
use kernels_gpu::prim::{DevicePtr, Entry};

/// How a product is cut: tiles of 128 rows by `cols` columns, `share` of them one above the other a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Columns: one of [`Tile::WIDTHS`].
    pub cols: u32,
    /// Blocks of a cluster, 1 or 2: two fetch half of the weights each.
    pub share: u32,
}

impl Tile {
    /// The widths that there are.
    pub const WIDTHS: [u32; 5] = [256, 224, 192, 160, 128];

    /// Every tile.
    pub fn all() -> impl Iterator<Item = Tile> {
        Tile::WIDTHS.into_iter().flat_map(|cols| (1..=gpu::MAX_SHARE).rev().map(move |share| Tile { cols, share }))
    }

    /// Clusters' worth of tiles.
    fn count(self, shape: &Shape) -> usize {
        shape.m.div_ceil((gpu::TILE_M * self.share) as usize) * shape.n.div_ceil(self.cols as usize)
    }

    /// Cycles of a product: the waves of tiles, each limited by the tensor cores (a column of a step takes 4 cycles) or
    /// by the boxes from L2 (46 bytes a cycle and multiprocessor), and ended by an epilogue of about 900.
    fn time(self, shape: &Shape, multiprocessors: usize) -> usize {
        let waves = self.count(shape).div_ceil((multiprocessors / self.share as usize).max(1));
        let rows = (gpu::TILE_M + self.cols / self.share) as usize;
        let step = (4 * self.cols as usize * 100 / 93).max(rows * 128 / 46);
        waves * (shape.k.div_ceil(gpu::TILE_K as usize) * step + 900)
    }

    /// The tile whose waves over `multiprocessors` end first.
    pub(super) fn fitting(shape: &Shape, multiprocessors: usize) -> Tile {
        let best = Tile::all().min_by_key(|tile| tile.time(shape, multiprocessors));
        best.unwrap_or(Tile { cols: 128, share: 1 })
    }

    /// The entries for bf16 and f16.
    fn entries(self) -> [Entry<gpu::GemmWgmma>; 2] {
        match self.cols {
            128 => [gpu::gemm_wgmma_n128_bf16, gpu::gemm_wgmma_n128_f16],
            160 => [gpu::gemm_wgmma_n160_bf16, gpu::gemm_wgmma_n160_f16],
            192 => [gpu::gemm_wgmma_n192_bf16, gpu::gemm_wgmma_n192_f16],
            224 => [gpu::gemm_wgmma_n224_bf16, gpu::gemm_wgmma_n224_f16],
            _ => [gpu::gemm_wgmma_n256_bf16, gpu::gemm_wgmma_n256_f16],
        }
    }
}

/// Whether the kernel can do it: TMA and `wgmma` are Hopper's, a tensor map of nothing is an error, and tiles are
/// counted in 32 bits.
pub(super) fn supports(shape: &Shape, target: Target) -> bool {
    let smallest = Tile { cols: 128, share: 1 };
    target == Target::Sm90a && shape.k > 0 && smallest.count(shape) <= i32::MAX as usize
}

/// Queues the kernel; `gemm` has been checked to have `shape`, which is not empty.
pub(super) fn launch(gemm: &Gemm<'_>, shape: &Shape, tile: Tile, stream: &Stream) -> Result<(), Error> {
    let args = gpu::GemmWgmma {
        a: stream.tensor_map_2d(&gemm.a, gpu::TILE_M, gpu::TILE_K)?,
        w: stream.tensor_map_2d(&gemm.w, tile.cols / tile.share, gpu::TILE_K)?,
        bias: gemm.bias.as_ref().map_or(DevicePtr::default(), |bias| bias.ptr()),
        out: gemm.out.ptr(),
        out_stride: gemm.out.stride() as u32,
        m: shape.m as u32,
        n: shape.n as u32,
        k: shape.k as u32,
        kind: entry_index(gemm) as u32 / 2,
        activation: gemm.activation.code(),
        accumulate: u32::from(gemm.accumulate),
        share: tile.share,
    };
    let clusters = tile.count(shape).min((stream.device().multiprocessors() / tile.share as usize).max(1));
    let entry = tile.entries()[entry_index(gemm) % 2];
    let launch = Launch::grid(clusters * tile.share as usize).shared(gpu::shared_bytes(tile.cols)).cluster(tile.share);
    // SAFETY: TMA stays inside of the views that the maps describe; the epilogue stores to rows below m and
    // columns below out's width, and reads bias below n, as `Gemm::check` bound them. A block has a tile at least.
    unsafe { stream.launch(entry, launch.dependent(), &args) }
}

/// Tests and benches that force this kernel, with every tile.
pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "gemm/wgmma",
        entries: gpu::ENTRIES.to_vec(),
        pinned: || {
            let wide = Some(Path::Wgmma(Tile { cols: 256, share: 2 }));
            let mut pinned: Vec<Box<dyn Case>> = cases::real(wide, &[2048]);
            pinned.extend(cases::square(wide, &[4096, 8192]));
            for tile in Tile::all() {
                let path = Some(Path::Wgmma(tile));
                pinned.extend(cases::tiled(path));
                // Small products take one tile of any width.
                if matches!((tile.cols, tile.share), (256, 2) | (160, 1)) {
                    pinned.extend(cases::awkward(path, &[1, 100]));
                }
            }
            pinned
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            let tiles: Vec<_> = Tile::all().map(|tile| cases::random(Some(Path::Wgmma(tile)), 300)).collect();
            proptest::strategy::Union::new(tiles).boxed()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{Shape, Tile};

    #[test]
    fn the_tile_that_fills_its_waves_is_picked() {
        let cols = |m, n, k| Tile::fitting(&Shape { m, n, k }, 132).cols;
        // 512 wide tiles in 4 waves.
        assert_eq!(cols(4096, 4096, 4096), 256);
        // 128 tiles of 192 columns in one wave; 96 of 256 would leave 36 multiprocessors without.
        assert_eq!(cols(512, 6144, 4096), 192);
        // 128 tiles of 160 columns in one wave; 80 of 256 in one.
        assert_eq!(cols(1024, 2560, 8192), 160);
        // One wave of anything: the narrowest ends first.
        assert_eq!(cols(128, 4096, 4096), 128);
    }
}
