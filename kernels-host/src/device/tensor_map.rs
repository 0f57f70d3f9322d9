//! Tensor maps: what the tensor memory accelerator needs to know of a matrix.
use super::Stream;
use super::gpu::check;
use crate::{DType, Error, View};
use cudarc::driver::sys;
use kernels_gpu::prim::TensorMap;

impl Stream {
    /// Describes a half-precision matrix for copies of boxes of `box_rows` rows (at most 256) and `box_cols`
    /// elements (at most 64: a row of 128 bytes), which arrive in shared memory under the 128-byte swizzle.
    /// Elements of a box outside the matrix arrive as zeros. Fails where the driver refuses: a first element not
    /// 16-byte aligned, a row stride that is no multiple of 8 elements.
    ///
    /// # Panics
    /// On the CPU device, and for other element types.
    pub fn tensor_map_2d(&self, matrix: &View<'_>, box_rows: u32, box_cols: u32) -> Result<TensorMap, Error> {
        let dtype = match matrix.dtype() {
            DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            other => panic!("a tensor map of {other}"),
        };
        // A single row's stride says nothing, and need not be one that the driver accepts.
        let stride = if matrix.rows() > 1 { matrix.stride() } else { matrix.cols().next_multiple_of(8) };
        let dims = [matrix.cols() as u64, matrix.rows() as u64];
        let strides = [(stride * matrix.dtype().size()) as u64];
        let (box_dims, steps) = ([box_cols, box_rows], [1, 1]);
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: `map` is aligned as its type demands; the arrays have the rank's two elements (strides one
        // less) and live through the call. The address is only stored.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                dtype,
                2,
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
            check(result, &format!("cuTensorMapEncodeTiled of {rows} rows of {cols} elements, stride {stride}"))?;
        }
        Ok(TensorMap(map.opaque))
    }
}
