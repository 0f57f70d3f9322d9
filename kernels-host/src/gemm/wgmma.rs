//! Launcher and cases of `kernels-gpu/src/gemm/wgmma.rs`.
use super::stream::Room;
use super::{Gemm, Path, Shape, cases, entry_index};
use crate::case::{Case, Kernel};
use crate::{Error, Launch, Stream, Target};
use kernels_gpu::gemm::wgmma as gpu;
use kernels_gpu::prim::{DevicePtr, Entry};

/// How a product is cut: tiles of 128 rows by `cols` columns, `share` of them one above the other or `split` parts of
/// the K of one a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Columns: one of [`Tile::WIDTHS`].
    pub cols: u32,
    /// Bands of 64 rows that a warpgroup multiplies: 1, cooperative, or 2, ping-pong.
    pub bands: u32,
    /// Blocks that share weights, 1 or 2: two fetch half of them each.
    pub share: u32,
    /// Blocks that share a tile's K: 1, 2 or 4; 1 where `share` or `bands` is not.
    pub split: u32,
}

impl Tile {
    /// The widths that there are, and those of ping-pong.
    pub const WIDTHS: [u32; 9] = [256, 224, 192, 160, 128, 96, 80, 64, 48];
    const PINGPONG: [u32; 5] = [160, 144, 128, 112, 96];
    /// Narrow and alone: what every GPU with the kernel can do.
    const SIMPLE: Tile = Tile { cols: 128, bands: 1, share: 1, split: 1 };

    /// Every tile.
    pub fn all() -> impl Iterator<Item = Tile> {
        let cut = |bands, clusters: &'static [(u32, u32)]| {
            move |cols| clusters.iter().map(move |&(share, split)| Tile { cols, bands, share, split })
        };
        let cooperative = Tile::WIDTHS.into_iter().flat_map(cut(1, &[(2, 1), (1, 1), (1, 2), (1, 4)]));
        cooperative.chain(Tile::PINGPONG.into_iter().flat_map(cut(2, &[(2, 1), (1, 1)])))
    }

    /// Blocks of a cluster.
    fn cluster(self) -> u32 {
        self.share * self.split
    }

    /// Clusters' worth of tiles.
    fn count(self, shape: &Shape) -> usize {
        shape.m.div_ceil((gpu::TILE_M * self.share) as usize) * shape.n.div_ceil(self.cols as usize)
    }

    /// Whether the kernel can do it there: where K is split, a cluster has one tile, and a block one step.
    pub(super) fn fits(self, shape: &Shape, room: Room) -> bool {
        let steps = shape.k.div_ceil(gpu::TILE_K as usize);
        self.split == 1
            || self.share == 1
                && self.bands == 1
                && self.split <= gpu::MAX_SPLIT
                && self.split as usize <= steps
                && self.count(shape) <= room.clusters(self.cluster())
    }

    /// Cycles of a product: the waves of tiles, each limited by the tensor cores (a column of a step takes 4 cycles) or
    /// by the boxes from L2 (46 bytes a cycle and multiprocessor), and ended by an epilogue of about 900, which ping-pong
    /// hides but for the last; where K is split by the cluster's meeting and the sums from the other blocks' shared memory,
    /// 32 bytes a cycle.
    fn time(self, shape: &Shape, room: Room) -> usize {
        let waves = self.count(shape).div_ceil(room.clusters(self.cluster()));
        let rows = (gpu::TILE_M + self.cols / self.share) as usize;
        let step = (4 * self.cols as usize * 100 / 93).max(rows * 128 / 46);
        let steps = shape.k.div_ceil(gpu::TILE_K as usize).div_ceil(self.split as usize);
        let meeting = if self.split > 1 { 1500 + (gpu::TILE_M * self.cols * 4 / 32) as usize } else { 0 };
        let epilogue = 900 * if self.bands == 1 { waves } else { 1 };
        waves * (steps * step + meeting) + epilogue
    }

    /// The tile whose waves end first, of those that split K into at most `most_split` parts.
    pub(super) fn fitting(shape: &Shape, most_split: u32, room: Room) -> Tile {
        let fitting = Tile::all().filter(|tile| tile.split <= most_split && tile.fits(shape, room));
        fitting.min_by_key(|tile| tile.time(shape, room)).unwrap_or(Tile::SIMPLE)
    }

    /// The entries for bf16 and f16.
    fn entries(self) -> [Entry<gpu::GemmWgmma>; 2] {
        match (self.cols, self.bands) {
            (96, 2) => [gpu::gemm_wgmma_pingpong_n96_bf16, gpu::gemm_wgmma_pingpong_n96_f16],
            (112, _) => [gpu::gemm_wgmma_pingpong_n112_bf16, gpu::gemm_wgmma_pingpong_n112_f16],
            (128, 2) => [gpu::gemm_wgmma_pingpong_n128_bf16, gpu::gemm_wgmma_pingpong_n128_f16],
            (144, _) => [gpu::gemm_wgmma_pingpong_n144_bf16, gpu::gemm_wgmma_pingpong_n144_f16],
            (160, 2) => [gpu::gemm_wgmma_pingpong_n160_bf16, gpu::gemm_wgmma_pingpong_n160_f16],
            (48, _) => [gpu::gemm_wgmma_n48_bf16, gpu::gemm_wgmma_n48_f16],
            (64, _) => [gpu::gemm_wgmma_n64_bf16, gpu::gemm_wgmma_n64_f16],
            (80, _) => [gpu::gemm_wgmma_n80_bf16, gpu::gemm_wgmma_n80_f16],
            (96, _) => [gpu::gemm_wgmma_n96_bf16, gpu::gemm_wgmma_n96_f16],
            (128, _) => [gpu::gemm_wgmma_n128_bf16, gpu::gemm_wgmma_n128_f16],
            (160, _) => [gpu::gemm_wgmma_n160_bf16, gpu::gemm_wgmma_n160_f16],
            (192, _) => [gpu::gemm_wgmma_n192_bf16, gpu::gemm_wgmma_n192_f16],
            (224, _) => [gpu::gemm_wgmma_n224_bf16, gpu::gemm_wgmma_n224_f16],
            _ => [gpu::gemm_wgmma_n256_bf16, gpu::gemm_wgmma_n256_f16],
        }
    }
}

/// Whether the kernel can do it: TMA and `wgmma` are Hopper's, a tensor map of nothing is an error, and tiles are
/// counted in 32 bits.
pub(super) fn supports(shape: &Shape, target: Target) -> bool {
    target == Target::Sm90a && shape.k > 0 && Tile::SIMPLE.count(shape) <= i32::MAX as usize
}

/// Queues the kernel; `gemm` has been checked to have `shape`, which is not empty.
pub(super) fn launch(gemm: &Gemm<'_>, shape: &Shape, tile: Option<Tile>, stream: &Stream) -> Result<(), Error> {
    let room = Room::of(stream)?;
    let tile = match tile {
        // A forced tile that the shape or the GPU cannot have: its width at least.
        Some(tile) if !tile.fits(shape, room) => Tile { split: 1, ..tile },
        Some(tile) => tile,
        None => Tile::fitting(shape, if stream.is_batch_invariant() { 1 } else { gpu::MAX_SPLIT }, room),
    };
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
        split: tile.split,
    };
    let blocks = tile.count(shape).min(room.clusters(tile.cluster())) * tile.cluster() as usize;
    let entry = tile.entries()[entry_index(gemm) % 2];
    let launch = Launch::grid(blocks).shared(gpu::shared_bytes(tile.cols)).cluster(tile.cluster());
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
            let wide = Some(Path::Wgmma(Some(Tile { cols: 256, bands: 1, share: 2, split: 1 })));
            let mut pinned: Vec<Box<dyn Case>> = cases::real(wide, &[2048]);
            pinned.extend(cases::square(wide, &[4096, 8192]));
            for tile in Tile::all() {
                let path = Some(Path::Wgmma(Some(tile)));
                pinned.extend(cases::tiled(path));
                pinned.push(cases::long(path));
                // Small products take one tile of any width.
                if matches!((tile.cols, tile.cluster(), tile.split), (256 | 144, 2, 1) | (160, 1, 1) | (192, 4, 4)) {
                    pinned.extend(cases::awkward(path, &[1, 100]));
                }
            }
            pinned
        },
        #[cfg(feature = "proptest")]
        random: || {
            use proptest::prelude::*;
            let tiles: Vec<_> = Tile::all().map(|tile| cases::random(Some(Path::Wgmma(Some(tile))), 300)).collect();
            proptest::strategy::Union::new(tiles).boxed()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{Room, Shape, Tile, gpu};

    #[test]
    fn the_tile_that_fills_its_waves_is_picked() {
        let pick = |m, n, k| {
            let tile = Tile::fitting(&Shape { m, n, k }, gpu::MAX_SPLIT, Room::H200);
            (tile.cols, tile.bands, tile.split)
        };
        // 1024 tiles of 128 columns, whose epilogues ping-pong hides.
        assert_eq!(pick(4096, 4096, 4096), (128, 2, 1));
        // 128 tiles of 192 columns in one wave; 96 of 256 would leave 36 multiprocessors without.
        assert_eq!(pick(512, 6144, 4096), (192, 1, 1));
        // 128 tiles of 160 columns in one wave; 80 of 256 in one.
        assert_eq!(pick(1024, 2560, 8192), (160, 1, 1));
        // 64 tiles of 160 columns, by two blocks each; alone they would leave 68 multiprocessors without.
        assert_eq!(pick(512, 2560, 8192), (160, 1, 2));
        // 32 tiles of 256 columns or of 128, by four blocks each.
        assert_eq!(pick(256, 4096, 4096), (256, 1, 4));
        assert_eq!(pick(128, 4096, 14336), (128, 1, 4));
    }
}
