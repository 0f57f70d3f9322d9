//! What a copy through a tensor map moves: `cp.async.bulk.tensor` and `cp.reduce.async.bulk.tensor`, tiled mode.
//!
//! [`copy_plan`] lists the pieces of a box with their shared and global addresses. A load writes all of them,
//! filling those outside of the tensor, and then counts [`TensorMap::box_bytes`] on its barrier; a store or a
//! reduction skips the ones outside.
use super::swizzle::Swizzle;
use super::tensor_map::{Fill, MAX_RANK, TensorMap};

/// What the shared address of a box must be a multiple of.
pub const SHARED_ALIGNMENT: u32 = 128;
/// Bytes of a chunk, the unit of swizzles: no piece crosses one's end.
const CHUNK: u32 = 16;
/// Greatest shared address: what matrix descriptors can express, more than any multiprocessor has.
const SHARED_END: u64 = 1 << 18;

/// A copy that the hardware would not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// Too few or too many coordinates.
    #[error("the copy has {found} coordinates, its tensor map rank {rank}")]
    Coordinates {
        /// How many the instruction gives.
        found: usize,
        /// How many the map wants.
        rank: usize,
    },
    /// A shared address of a box off its alignment.
    #[error("shared address {0:#x} of the box is not a multiple of 128")]
    Misaligned(u32),
    /// A box that begins within 16 bytes of a row.
    #[error(
        "coordinate {coordinate} of dimension 0, in elements of {bytes} bytes: the box must begin at a multiple of 16 \
         bytes of its row (an illegal instruction on Hopper)"
    )]
    Unaligned {
        /// The coordinate.
        coordinate: i32,
        /// Bytes of an element.
        bytes: u32,
    },
    /// A store or a reduction that begins before the tensor.
    #[error(
        "coordinate {coordinate} of dimension {axis}: a store may reach over the tensor's end, but not begin before it \
         (an illegal instruction on Hopper)"
    )]
    Negative {
        /// The coordinate.
        coordinate: i32,
        /// Its dimension.
        axis: usize,
    },
    /// A plain bulk copy off its alignment.
    #[error(
        "bulk copy of {bytes} bytes between shared address {shared:#x} and {other:#x}: all must be multiples of 16"
    )]
    Bulk {
        /// The shared address.
        shared: u32,
        /// The address on the other side: global, or shared of another block.
        other: u64,
        /// The size.
        bytes: u32,
    },
    /// A box that ends beyond any block's shared memory.
    #[error("the box of {bytes} bytes at shared address {shared:#x} does not fit into shared memory")]
    TooLarge {
        /// Where it was to go.
        shared: u32,
        /// What it takes there.
        bytes: u64,
    },
}

/// Consecutive bytes of a box, at most 16, that have the same fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Shared address of the first byte.
    pub shared: u32,
    /// How many; a multiple of an element's.
    pub bytes: u32,
    /// Global address of the first byte; none outside of the tensor.
    pub global: Option<u64>,
}

/// Checks a plain bulk copy (`cp.async.bulk`, no tensor map): addresses and size are multiples of 16.
pub fn check_bulk(shared: u32, other: u64, bytes: u32) -> Result<(), CopyError> {
    if shared.is_multiple_of(16) && other.is_multiple_of(16) && bytes.is_multiple_of(16) {
        Ok(())
    } else {
        Err(CopyError::Bulk { shared, other, bytes })
    }
}

/// A box's pieces, in the order of the elements: dimension 0 first.
///
/// Rows lie one after the other, under a swizzle one [`Swizzle::width`] apart even where they are narrower. (So
/// the programming guide, which asks for memory "to accommodate the full swizzle width"; the barrier counts without
/// the gaps.) The swizzle permutes absolute shared addresses, so a tile looks as `wgmma` wants it only at multiples of
/// [`Swizzle::period`].
pub fn copy_plan(map: &TensorMap, coordinates: &[i32], shared: u32) -> Result<CopyPlan, CopyError> {
    if coordinates.len() != map.rank {
        return Err(CopyError::Coordinates { found: coordinates.len(), rank: map.rank });
    }
    if !shared.is_multiple_of(SHARED_ALIGNMENT) {
        return Err(CopyError::Misaligned(shared));
    }
    let bytes = map.data_type.bytes();
    if (coordinates[0] as i64 * bytes as i64) % i64::from(CHUNK) != 0 {
        return Err(CopyError::Unaligned { coordinate: coordinates[0], bytes });
    }
    let rows = (1..map.rank).map(|axis| map.box_elements(axis) as u64).product::<u64>();
    let pitch = if map.swizzle == Swizzle::None { map.row_bytes() } else { map.swizzle.width() };
    if shared as u64 + rows * pitch as u64 > SHARED_END {
        return Err(CopyError::TooLarge { shared, bytes: rows * pitch as u64 });
    }
    let rows = rows as u32;
    let mut first = [0; MAX_RANK];
    first[..map.rank].copy_from_slice(coordinates);
    let mut plan = CopyPlan { map: *map, first, shared, pitch, rows, row: 0, byte: 0, start: None };
    plan.start = plan.row_start();
    Ok(plan)
}

/// As [`copy_plan`], of a store or a reduction: it cannot begin before the tensor, and ends at a multiple of 16 bytes of a
/// row. Where the tensor's row ends within 16 bytes, what follows there is overwritten: so an H200 does it.
pub fn store_plan(map: &TensorMap, coordinates: &[i32], shared: u32) -> Result<CopyPlan, CopyError> {
    if let Some(axis) = coordinates.iter().position(|&coordinate| coordinate < 0) {
        return Err(CopyError::Negative { coordinate: coordinates[axis], axis });
    }
    let per_chunk = u64::from(CHUNK / map.data_type.bytes());
    let mut map = *map;
    map.dims[0] = map.dims[0].next_multiple_of(per_chunk);
    copy_plan(&map, coordinates, shared)
}

/// See [`copy_plan`].
#[derive(Clone, Debug)]
pub struct CopyPlan {
    map: TensorMap,
    first: [i32; MAX_RANK],
    shared: u32,
    /// Bytes between rows in shared memory.
    pitch: u32,
    rows: u32,
    /// The row and the byte of it that come next.
    row: u32,
    byte: u32,
    /// Global address of coordinate 0 of dimension 0 in this row; none where all of the row lies outside.
    start: Option<u64>,
}

impl CopyPlan {
    fn row_start(&self) -> Option<u64> {
        let (mut rest, mut address) = (self.row, self.map.address);
        for axis in 1..self.map.rank {
            let index = rest % self.map.box_elements(axis);
            rest /= self.map.box_elements(axis);
            let coordinate = self.first[axis] as i64 + (index * self.map.steps[axis]) as i64;
            if coordinate < 0 || coordinate as u64 >= self.map.dims[axis] {
                return None;
            }
            address = address.wrapping_add((coordinate as u64).wrapping_mul(self.map.strides[axis]));
        }
        Some(address)
    }
}

impl Iterator for CopyPlan {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.byte == self.map.row_bytes() {
            self.row += 1;
            self.byte = 0;
            self.start = if self.row < self.rows { self.row_start() } else { None };
        }
        if self.row >= self.rows {
            return None;
        }
        let size = self.map.data_type.bytes();
        let column = self.first[0] as i64 + (self.byte / size) as i64;
        let left = (CHUNK - self.byte % CHUNK) / size;
        // Elements up to the next edge of the tensor along dimension 0, which may be in mid-chunk.
        let (inside, edge) = match column {
            ..0 => (false, -column),
            _ if (column as u64) < self.map.dims[0] => (true, self.map.dims[0] as i64 - column),
            _ => (false, i64::MAX),
        };
        let bytes = (left as i64).min(edge) as u32 * size;
        let global = self.start.filter(|_| inside).map(|start| start.wrapping_add(column as u64 * size as u64));
        let shared = self.map.swizzle.apply(self.shared + self.row * self.pitch + self.byte);
        self.byte += bytes;
        Some(Piece { shared, bytes, global })
    }
}

impl TensorMap {
    /// What a load writes to a piece outside of the tensor: as many bytes as `bytes` has, whole elements.
    pub fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        if self.fill == Fill::Nan {
            // 0x7ff7 in every 16 bits, whatever the type: a NaN of each, as an H200 has it.
            bytes.chunks_mut(2).for_each(|half| half.copy_from_slice(&0x7ff7u16.to_le_bytes()[..half.len()]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tensor_map::{DataType, Tiled};
    use super::*;
    use proptest::prelude::*;

    const BASE: u64 = 0x10_0000;

    fn matrix(rows: u64, columns: u64, stride: u64, box_dims: [u32; 2], swizzle: Swizzle) -> TensorMap {
        TensorMap::new(&Tiled {
            data_type: DataType::Bf16,
            address: BASE,
            dims: &[columns, rows],
            strides: &[stride],
            box_dims: &box_dims,
            element_strides: &[1, 1],
            swizzle,
            fill: Fill::Zero,
        })
        .unwrap()
    }

    /// The box of a GEMM's edge, element by element, as kernels-gpu/src/tile/kv.rs words the swizzle.
    #[test]
    fn a_box_over_the_edge_of_a_matrix() {
        let map = matrix(100, 203, 416, [64, 128], Swizzle::B128);
        let shared = 0x4000;
        let mut seen = vec![false; 128 * 128];
        for piece in copy_plan(&map, &[192, 64], shared).unwrap() {
            let offset = piece.shared - shared;
            let (row, chunk) = (offset / 128, (offset / 16 % 8) ^ ((offset / 128) & 7));
            let column = chunk * 8 + offset % 16 / 2;
            for i in 0..piece.bytes {
                assert!(!std::mem::replace(&mut seen[(offset + i) as usize], true));
            }
            let inside = row + 64 < 100 && column + 192 < 203;
            let global = BASE + (row as u64 + 64) * 416 + (column as u64 + 192) * 2;
            assert_eq!(piece.global, inside.then_some(global), "row {row}, column {column}");
        }
        assert!(seen.into_iter().all(|seen| seen));
        assert_eq!(map.box_bytes(), 128 * 128);
    }

    #[test]
    fn rows_narrower_than_the_swizzle_keep_its_pitch() {
        let map = matrix(8, 16, 32, [16, 8], Swizzle::B128);
        let pieces: Vec<Piece> = copy_plan(&map, &[0, 0], 0).unwrap().collect();
        assert_eq!(pieces[2], Piece { shared: 128 + 16, bytes: 16, global: Some(BASE + 32) });
        assert_eq!(map.box_bytes(), 256);
    }

    #[test]
    fn stores_end_at_multiples_of_16_bytes_and_begin_inside() {
        // 18 elements of a row: its third chunk has two.
        let map = matrix(8, 18, 48, [24, 8], Swizzle::None);
        let written: u32 = store_plan(&map, &[0, 7], 0).unwrap().filter(|p| p.global.is_some()).map(|p| p.bytes).sum();
        assert_eq!(written, 48);
        let read: u32 = copy_plan(&map, &[0, 7], 0).unwrap().filter(|p| p.global.is_some()).map(|p| p.bytes).sum();
        assert_eq!(read, 36);
        assert_eq!(store_plan(&map, &[0, -1], 0).unwrap_err(), CopyError::Negative { coordinate: -1, axis: 1 });
    }

    #[test]
    fn copies_that_cannot_be_are_errors() {
        let map = matrix(8, 16, 32, [16, 8], Swizzle::None);
        assert_eq!(copy_plan(&map, &[0], 0).unwrap_err(), CopyError::Coordinates { found: 1, rank: 2 });
        assert_eq!(copy_plan(&map, &[0, 0], 64).unwrap_err(), CopyError::Misaligned(64));
        assert!(matches!(copy_plan(&map, &[0, 0], u32::MAX - 127), Err(CopyError::TooLarge { .. })));
        assert_eq!(check_bulk(16, 32, 48), Ok(()));
        assert_eq!(check_bulk(16, 32, 8), Err(CopyError::Bulk { shared: 16, other: 32, bytes: 8 }));
        let map = TensorMap::new(&Tiled {
            data_type: DataType::F64,
            address: 0,
            dims: &[9; 5],
            strides: &[80, 720, 6480, 58320],
            box_dims: &[256; 5],
            element_strides: &[1; 5],
            swizzle: Swizzle::None,
            fill: Fill::Zero,
        })
        .unwrap();
        assert!(matches!(copy_plan(&map, &[0; 5], 0), Err(CopyError::TooLarge { .. })));
    }

    #[test]
    fn fills_are_whole_elements() {
        let mut bytes = [1; 8];
        matrix(8, 16, 32, [16, 8], Swizzle::None).fill(&mut bytes);
        assert_eq!(bytes, [0; 8]);
        let map = TensorMap { fill: Fill::Nan, ..matrix(8, 16, 32, [16, 8], Swizzle::None) };
        map.fill(&mut bytes);
        assert_eq!(bytes, [0xf7, 0x7f, 0xf7, 0x7f, 0xf7, 0x7f, 0xf7, 0x7f]);
        assert!(crate::formats::BF16.to_f32(0x7ff7).is_nan());
    }

    fn any_type() -> impl Strategy<Value = DataType> {
        prop::sample::select(vec![DataType::U8, DataType::F16, DataType::F32, DataType::F64])
    }
    fn any_swizzle() -> impl Strategy<Value = Swizzle> {
        prop::sample::select(vec![Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128])
    }

    proptest! {
        /// Against the definition: one element at a time, over five loops' worth of indices.
        #[test]
        fn plans_move_the_elements_of_the_definition(
            data_type in any_type(),
            swizzle in any_swizzle(),
            rank in 1usize..=5,
            chunks in 1u32..=8,
            dims in prop::collection::vec(1u64..40, 5),
            boxes in prop::collection::vec(1u32..6, 4),
            steps in prop::collection::vec(1u32..4, 5),
            at in prop::collection::vec(-6i32..45, 5),
        ) {
            let size = data_type.bytes();
            let row_bytes = (chunks * 16).min(if swizzle == Swizzle::None { 128 } else { swizzle.width() });
            let box_dims: Vec<u32> = [row_bytes / size].into_iter().chain(boxes).take(rank).collect();
            let mut strides = vec![(dims[0] * size as u64).next_multiple_of(16)];
            (1..4).for_each(|axis| strides.push(strides[axis - 1] * dims[axis]));
            let map = TensorMap::new(&Tiled {
                data_type, address: BASE, dims: &dims[..rank], strides: &strides[..rank - 1],
                box_dims: &box_dims, element_strides: &steps[..rank], swizzle, fill: Fill::Zero,
            }).unwrap();
            let mut elements = Vec::new();
            // Boxes begin at multiples of 16 bytes of a row.
            let unit = (16 / size) as i32;
            let mut at = at;
            at[0] = at[0].div_euclid(unit) * unit;
            let error = CopyError::Unaligned { coordinate: at[0] + 1, bytes: size };
            prop_assert_eq!(copy_plan(&map, &[&[at[0] + 1], &at[1..rank]].concat(), 1024).err(), Some(error));
            for piece in copy_plan(&map, &at[..rank], 1024).unwrap() {
                prop_assert!(piece.bytes > 0 && piece.bytes % size == 0 && piece.shared % 16 + piece.bytes <= 16);
                for byte in (0..piece.bytes).step_by(size as usize) {
                    elements.push((piece.shared + byte, piece.global.map(|global| global + byte as u64)));
                }
            }
            let step = |axis: usize| if axis == 0 { 1 } else { steps[axis] };
            let counts: Vec<u32> = (0..rank).map(|axis| box_dims[axis].div_ceil(step(axis))).collect();
            let total: u32 = counts.iter().product();
            prop_assert_eq!(map.box_bytes(), total * size);
            prop_assert_eq!(elements.len(), total as usize);
            let pitch = if swizzle == Swizzle::None { row_bytes } else { swizzle.width() };
            for (n, &(shared, global)) in elements.iter().enumerate() {
                let (mut rest, mut address, mut inside) = (n as u32, BASE, true);
                for axis in 0..rank {
                    let coordinate = at[axis] as i64 + (rest % counts[axis] * step(axis)) as i64;
                    rest /= counts[axis];
                    inside &= (0..dims[axis] as i64).contains(&coordinate);
                    let stride = if axis == 0 { size as u64 } else { strides[axis - 1] };
                    address = address.wrapping_add((coordinate as u64).wrapping_mul(stride));
                }
                prop_assert_eq!(global, inside.then_some(address));
                let (row, column) = (n as u32 / counts[0], n as u32 % counts[0]);
                prop_assert_eq!(shared, swizzle.apply(1024 + row * pitch + column * size));
            }
        }
    }
}
