//! Tensor maps: what the tensor memory accelerator needs to know of a tensor.
use super::{Backend, Stream, gpu::check};
use crate::{DType, Error, View};
use cudarc::driver::sys;
use kernels_gpu::prim::TensorMap;
use ptx_emulator::tensor::swizzle::Swizzle;
use ptx_emulator::tensor::tensor_map::{self as emulator, DataType, Fill, Tiled};

/// Elements of K in a 128-byte row of shared memory.
const BLOCK: usize = 64;

impl Stream {
    /// Describes a half-precision matrix for copies of boxes of `box_rows` rows (at most 256) and `box_cols`
    /// elements (at most 64: a row of 128 bytes), which arrive in shared memory under the 128-byte swizzle.
    /// Elements of a box outside the matrix arrive as zeros. Fails where the driver refuses: a first element not
    /// 16-byte aligned, a row stride that is no multiple of 8 elements.
    ///
    /// # Panics
    /// On the CPU device, and for other element types.
    pub fn tensor_map_2d(&self, matrix: &View<'_>, box_rows: u32, box_cols: u32) -> Result<TensorMap, Error> {
        let dims = [matrix.cols() as u64, matrix.rows() as u64];
        self.tensor_map_of(matrix, &dims, &[row_bytes(matrix)], &[box_cols, box_rows])
    }

    /// As [`Stream::tensor_map_2d`], of the matrix as \[cols / 64, rows, 64\], for copies of `box_blocks` times
    /// `box_rows` rows of 64 elements. Columns must be a multiple of 64; else it is \[1, rows, cols\], for
    /// `box_blocks` = 1.
    ///
    /// # Panics
    /// As [`Stream::tensor_map_2d`], and for more blocks of such a matrix.
    pub fn tensor_map_3d(&self, matrix: &View<'_>, box_rows: u32, box_blocks: u32) -> Result<TensorMap, Error> {
        let (cols, rows) = (matrix.cols(), matrix.rows() as u64);
        let dims = if cols.is_multiple_of(BLOCK) {
            [BLOCK as u64, rows, (cols / BLOCK) as u64]
        } else {
            assert_eq!(box_blocks, 1, "blocks of {cols} columns");
            [cols as u64, rows, 1]
        };
        let block_bytes = (BLOCK * matrix.dtype().size()) as u64;
        self.tensor_map_of(matrix, &dims, &[row_bytes(matrix), block_bytes], &[BLOCK as u32, box_rows, box_blocks])
    }

    /// As [`Stream::tensor_map_3d`], of the matrix as \[rows / 8, cols / 64, 8, 64\], for copies of `box_groups` groups of
    /// 8 rows, each `box_blocks` times 64 elements long: what a box holds of a row is read from memory at once. Rows must
    /// be a multiple of 8; else it is \[1, cols / 64, rows, 64\], for boxes of 8 · `box_groups` rows and one block.
    ///
    /// # Panics
    /// As [`Stream::tensor_map_3d`].
    pub fn tensor_map_4d(&self, matrix: &View<'_>, box_groups: u32, box_blocks: u32) -> Result<TensorMap, Error> {
        let (cols, rows) = (matrix.cols(), matrix.rows() as u64);
        let (block, blocks) = if cols.is_multiple_of(BLOCK) { (BLOCK, cols / BLOCK) } else { (cols, 1) };
        let grouped = rows.is_multiple_of(8);
        assert!(box_blocks == 1 || (grouped && block == BLOCK), "blocks of a matrix of {rows} x {cols}");
        let dims = [block as u64, if grouped { 8 } else { rows }, blocks as u64, if grouped { rows / 8 } else { 1 }];
        let (row, block) = (row_bytes(matrix), (BLOCK * matrix.dtype().size()) as u64);
        let box_dims =
            if grouped { [BLOCK as u32, 8, box_blocks, box_groups] } else { [BLOCK as u32, 8 * box_groups, 1, 1] };
        self.tensor_map_of(matrix, &dims, &[row, block, 8 * row], &box_dims)
    }

    /// The map of `matrix` in as many dimensions as `dims` has, innermost first; `strides` in bytes, without the first.
    fn tensor_map_of(
        &self,
        matrix: &View<'_>,
        dims: &[u64],
        strides: &[u64],
        box_dims: &[u32],
    ) -> Result<TensorMap, Error> {
        let data_type = match matrix.dtype() {
            DType::Bf16 => DataType::Bf16,
            DType::F16 => DataType::F16,
            other => panic!("a tensor map of {other}"),
        };
        self.tensor_map(&Tiled {
            data_type,
            address: matrix.ptr().0,
            dims,
            strides,
            box_dims,
            element_strides: &[1; 4][..dims.len()],
            swizzle: Swizzle::B128,
            fill: Fill::Zero,
        })
    }

    /// Describes a tensor by the parameters of `cuTensorMapEncodeTiled`, to which they go on a GPU; an emulated device
    /// refuses what the driver refuses. The address is only stored.
    ///
    /// # Panics
    /// On the CPU device.
    pub fn tensor_map(&self, tiled: &Tiled<'_>) -> Result<TensorMap, Error> {
        match self.device().backend() {
            Backend::Cpu => panic!("the CPU device has no tensor maps"),
            Backend::Cuda(_) => encode(tiled),
            Backend::Emulated(device) => {
                let map = emulator::TensorMap::new(tiled).map_err(|error| device.fault("a tensor map", error))?;
                Ok(TensorMap(bytemuck::cast(map.encode())))
            }
        }
    }
}

fn row_bytes(matrix: &View<'_>) -> u64 {
    // A single row's stride says nothing, and need not be one that the driver accepts.
    let stride = if matrix.rows() > 1 { matrix.stride() } else { matrix.cols().next_multiple_of(8) };
    (stride * matrix.dtype().size()) as u64
}

/// The driver's encoding.
fn encode(tiled: &Tiled<'_>) -> Result<TensorMap, Error> {
    let rank = tiled.dims.len();
    let lens = [tiled.strides.len() + 1, tiled.box_dims.len(), tiled.element_strides.len()];
    assert_eq!(lens, [rank; 3], "a tensor map of rank {rank}: {tiled:?}");
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: `map` is aligned as its type demands; the arrays have the rank's elements (strides one less) and live
    // through the call. The address is only stored.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            driver_type(tiled.data_type),
            rank as u32,
            tiled.address as *mut _,
            tiled.dims.as_ptr(),
            tiled.strides.as_ptr(),
            tiled.box_dims.as_ptr(),
            tiled.element_strides.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver_swizzle(tiled.swizzle),
            promotion(tiled),
            match tiled.fill {
                Fill::Zero => sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                Fill::Nan => sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA,
            },
        )
    };
    if result != sys::CUresult::CUDA_SUCCESS {
        check(result, &format!("cuTensorMapEncodeTiled of {tiled:?}"))?;
    }
    Ok(TensorMap(map.opaque))
}

/// What else to fetch into L2. The neighbour of a box 128 bytes wide is the next one's; where a box takes it itself, asking
/// for it twice cost 3 % of an H200's bandwidth (28,672 x 4096 weights: 55.9 against 54.2 µs).
fn promotion(tiled: &Tiled<'_>) -> sys::CUtensorMapL2promotion {
    if tiled.box_dims.get(2).is_some_and(|&blocks| blocks > 1) {
        sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE
    } else {
        sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B
    }
}

fn driver_type(data_type: DataType) -> sys::CUtensorMapDataType {
    use sys::CUtensorMapDataType as D;
    match data_type {
        DataType::U8 => D::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        DataType::U16 => D::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        DataType::U32 => D::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        DataType::S32 => D::CU_TENSOR_MAP_DATA_TYPE_INT32,
        DataType::U64 => D::CU_TENSOR_MAP_DATA_TYPE_UINT64,
        DataType::S64 => D::CU_TENSOR_MAP_DATA_TYPE_INT64,
        DataType::F16 => D::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DataType::F32 => D::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DataType::F64 => D::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
        DataType::Bf16 => D::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    }
}

fn driver_swizzle(swizzle: Swizzle) -> sys::CUtensorMapSwizzle {
    use sys::CUtensorMapSwizzle as S;
    match swizzle {
        Swizzle::None => S::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => S::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => S::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => S::CU_TENSOR_MAP_SWIZZLE_128B,
    }
}
