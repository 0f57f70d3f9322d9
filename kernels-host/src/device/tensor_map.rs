//! Tensor maps: what the tensor memory accelerator needs to know of a matrix.
use super::Stream;
use super::gpu::check;
use crate::{DType, Error, View};
use cudarc::driver::sys;
use kernels_gpu::prim::TensorMap;

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
        encode(matrix, &dims, &[row_bytes(matrix)], &[box_cols, box_rows])
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
        encode(matrix, &dims, &[row_bytes(matrix), block_bytes], &[BLOCK as u32, box_rows, box_blocks])
    }
}

fn row_bytes(matrix: &View<'_>) -> u64 {
    // A single row's stride says nothing, and need not be one that the driver accepts.
    let stride = if matrix.rows() > 1 { matrix.stride() } else { matrix.cols().next_multiple_of(8) };
    (stride * matrix.dtype().size()) as u64
}

/// The map of `matrix` in as many dimensions as `dims` has, innermost first; `strides` in bytes, without the first.
fn encode(matrix: &View<'_>, dims: &[u64], strides: &[u64], box_dims: &[u32]) -> Result<TensorMap, Error> {
    let dtype = match matrix.dtype() {
        DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        other => panic!("a tensor map of {other}"),
    };
    let steps = [1; 3];
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: `map` is aligned as its type demands; the arrays have the rank's elements (strides one less) and live
    // through the call. The address is only stored.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            dtype,
            dims.len() as u32,
            matrix.ptr().0 as *mut _,
            dims.as_ptr(),
            strides.as_ptr(),
            box_dims.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    if result != sys::CUresult::CUDA_SUCCESS {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        check(result, &format!("cuTensorMapEncodeTiled of {rows} rows of {cols} elements, strides {strides:?} bytes"))?;
    }
    Ok(TensorMap(map.opaque))
}
