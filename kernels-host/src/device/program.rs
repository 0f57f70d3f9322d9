//! PTX that Wootz did not compile, run once: how the emulator is held against a GPU.
use super::Backend;
use super::gpu::{Allocation, check};
use crate::{Device, Error};
use cudarc::driver::sys;
use std::ffi::{CString, c_void};

/// One launch of an entry whose parameters are addresses of buffers, then tensor maps.
#[derive(Clone, Debug)]
pub struct Program<'a> {
    /// The PTX of a whole module.
    pub ptx: &'a str,
    /// The entry to launch.
    pub entry: &'a str,
    /// Blocks along x.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a cluster; 1 for none.
    pub cluster: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Maps of the buffers, the last parameters.
    pub maps: &'a [TiledMap],
}

/// The parameters of `cuTensorMapEncodeTiled` (interleave: none) for one of a program's buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TiledMap {
    /// Which buffer holds the tensor, from its first byte.
    pub buffer: usize,
    /// `CUtensorMapDataType`'s number.
    pub data_type: u32,
    /// Elements along each dimension, the contiguous one first.
    pub dims: Vec<u64>,
    /// Bytes between elements of dimensions 1 on.
    pub strides: Vec<u64>,
    /// Elements that a box covers along each dimension.
    pub box_dims: Vec<u32>,
    /// Steps between elements copied.
    pub element_strides: Vec<u32>,
    /// `CUtensorMapSwizzle`'s number: 0 none, 1, 2, 3 of 32, 64, 128 bytes.
    pub swizzle: u32,
    /// Whether elements outside become NaN instead of zero.
    pub nan_fill: bool,
}

impl Device {
    /// Copies `buffers` to the GPU, launches the program on them, waits, and copies them back.
    ///
    /// A program that writes elsewhere spoils device memory of this process, never the host's.
    ///
    /// # Errors
    /// PTX that the driver rejects, a map that it rejects, a launch that fails or faults (then the context is lost).
    ///
    /// # Panics
    /// On other devices than GPUs, and where a map names a buffer that there is not.
    pub fn run_program(&self, program: &Program<'_>, buffers: &mut [Vec<u8>]) -> Result<(), Error> {
        let Backend::Cuda(gpu) = self.backend() else { panic!("programs run on GPUs") };
        gpu.enter()?;
        let module = Module::load(program.ptx, program.entry)?;
        let memory: Vec<Allocation> = buffers.iter().map(|b| gpu.alloc(b.len())).collect::<Result<_, _>>()?;
        for (memory, buffer) in memory.iter().zip(&*buffers) {
            // SAFETY: both sides have the buffer's length.
            let result = unsafe { sys::cuMemcpyHtoD_v2(memory.ptr().0, buffer.as_ptr().cast(), buffer.len()) };
            check(result, "cuMemcpyHtoD")?;
        }
        let maps: Vec<sys::CUtensorMap> =
            program.maps.iter().map(|map| encode(map, memory[map.buffer].ptr().0)).collect::<Result<_, _>>()?;
        module.launch(program, &memory, &maps)?;
        // SAFETY: waits for the context's work.
        check(unsafe { sys::cuCtxSynchronize() }, &format!("running {}", program.entry))?;
        for (memory, buffer) in memory.iter().zip(buffers) {
            // SAFETY: both sides have the buffer's length.
            let result = unsafe { sys::cuMemcpyDtoH_v2(buffer.as_mut_ptr().cast(), memory.ptr().0, buffer.len()) };
            check(result, "cuMemcpyDtoH")?;
        }
        Ok(())
    }
}

/// A loaded module and one of its entries; unloaded on drop.
struct Module {
    module: sys::CUmodule,
    function: sys::CUfunction,
}

impl Module {
    fn load(ptx: &str, entry: &str) -> Result<Self, Error> {
        let refuse = |log: String| Error::Compile { entry: entry.into(), log };
        let image = CString::new(ptx).map_err(|_| refuse("the PTX holds a NUL".into()))?;
        let name = CString::new(entry).map_err(|_| refuse("the name holds a NUL".into()))?;
        let mut log = vec![0u8; 8192];
        let mut options =
            [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the image ends with NUL; the two options and values describe `log`, which outlives the call.
        let result = unsafe {
            sys::cuModuleLoadDataEx(&mut module, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        if let Err(error) = check(result, &format!("cuModuleLoadDataEx of {entry}")) {
            let text = String::from_utf8_lossy(&log);
            let line = text.lines().map(|line| line.trim_matches('\0').trim()).find(|line| !line.is_empty());
            return Err(line.map_or(error, |line| refuse(line.to_owned())));
        }
        let mut module = Module { module, function };
        // SAFETY: the module was loaded just now; the name ends with NUL.
        let result = unsafe { sys::cuModuleGetFunction(&mut function, module.module, name.as_ptr()) };
        module.function = function;
        check(result, &format!("cuModuleGetFunction of {entry}")).map(|()| module)
    }

    fn launch(&self, program: &Program<'_>, memory: &[Allocation], maps: &[sys::CUtensorMap]) -> Result<(), Error> {
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_SHARED;
        let call = format!("launching {}", program.entry);
        // SAFETY: the handle is this module's.
        check(unsafe { sys::cuFuncSetAttribute(self.function, MAX_SHARED, program.shared as i32) }, &call)?;
        let addresses: Vec<u64> = memory.iter().map(|memory| memory.ptr().0).collect();
        let of_addresses = addresses.iter().map(|address| std::ptr::from_ref(address).cast_mut().cast::<c_void>());
        let of_maps = maps.iter().map(|map| std::ptr::from_ref(map).cast_mut().cast::<c_void>());
        let mut params: Vec<*mut c_void> = of_addresses.chain(of_maps).collect();
        let cluster = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: program.cluster, y: 1, z: 1 };
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { clusterDim: cluster },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: program.blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: program.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: program.shared,
            hStream: std::ptr::null_mut(),
            attrs: &mut attribute,
            numAttrs: u32::from(program.cluster > 1),
        };
        // SAFETY: one pointer per parameter, each to a value that outlives the call; the driver checks their number and
        // copies them. What the program does, it does to device memory.
        let result =
            unsafe { sys::cuLaunchKernelEx(&config, self.function, params.as_mut_ptr(), std::ptr::null_mut()) };
        check(result, &call)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded by `load`, unloaded once; nothing runs from it any more, or the context is lost.
        let _ = unsafe { sys::cuModuleUnload(self.module) };
    }
}

fn encode(map: &TiledMap, address: u64) -> Result<sys::CUtensorMap, Error> {
    use sys::CUtensorMapDataType as T;
    const TYPES: [T; 10] = [
        T::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        T::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        T::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        T::CU_TENSOR_MAP_DATA_TYPE_INT32,
        T::CU_TENSOR_MAP_DATA_TYPE_UINT64,
        T::CU_TENSOR_MAP_DATA_TYPE_INT64,
        T::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        T::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        T::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
        T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    ];
    use sys::CUtensorMapSwizzle as S;
    const SWIZZLES: [S; 4] = [
        S::CU_TENSOR_MAP_SWIZZLE_NONE,
        S::CU_TENSOR_MAP_SWIZZLE_32B,
        S::CU_TENSOR_MAP_SWIZZLE_64B,
        S::CU_TENSOR_MAP_SWIZZLE_128B,
    ];
    use sys::CUtensorMapFloatOOBfill as F;
    let fill = match map.nan_fill {
        true => F::CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA,
        false => F::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    };
    let rank = map.dims.len();
    assert!(map.strides.len() + 1 == rank && map.box_dims.len() == rank && map.element_strides.len() == rank);
    // Rank 1 has no strides, but the driver wants a pointer all the same.
    let strides = if rank == 1 { &[16][..] } else { &map.strides };
    let mut out = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: `out` is aligned as its type demands; the arrays have the rank's elements (strides one less) and live
    // through the call. The address is only stored.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut out,
            TYPES[map.data_type as usize],
            rank as u32,
            address as *mut _,
            map.dims.as_ptr(),
            strides.as_ptr(),
            map.box_dims.as_ptr(),
            map.element_strides.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            SWIZZLES[map.swizzle as usize],
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            fill,
        )
    };
    check(result, &format!("cuTensorMapEncodeTiled of {map:?}")).map(|()| out)
}
