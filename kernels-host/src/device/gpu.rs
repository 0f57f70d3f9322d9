//! One GPU: its primary context, memory and compiled entries. The only callers of the driver are
//! this file, `cuda.rs` and `tensor_map.rs`.
use crate::{Error, Target, ptx};
use cudarc::driver::sys;
use kernels_gpu::prim::DevicePtr;
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

/// PTX 8.1 needs CUDA 12.1.
const OLDEST_DRIVER: i32 = 12010;
/// Bytes of dynamic shared memory that a kernel may use without asking.
const DEFAULT_SHARED: u32 = 48 * 1024;

/// Contexts that were released so far.
static RELEASED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The context that [`Gpu::enter`] made current, and [`RELEASED`] then.
    static CURRENT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Of addresses, which need no more than a good mixing of their bits.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_usize(usize::from(byte)));
    }
    fn write_usize(&mut self, value: usize) {
        self.0 = (self.0 ^ value as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

pub(crate) struct Gpu {
    context: sys::CUcontext,
    device: sys::CUdevice,
    name: String,
    capability: (i32, i32),
    multiprocessors: usize,
    /// Bytes.
    shared_per_multiprocessor: u32,
    target: Target,
    /// By the address and length of the entry's name: hashing the name itself takes as long as the rest of a launch.
    functions: RwLock<HashMap<(usize, usize), Function, BuildHasherDefault<AddressHasher>>>,
    /// Answers of [`Gpu::clusters`].
    clusters: Mutex<HashMap<(&'static str, u32, u32), usize>>,
}

#[derive(Clone, Copy)]
pub(crate) struct Function {
    pub handle: sys::CUfunction,
    /// Whether its module waits for the grids before it (`griddepcontrol.wait`): sm_80 has no such instruction.
    pub waits: bool,
    shared: u32,
    carveout: u32,
}

// SAFETY: driver handles may be used from any thread; every call below makes the context current first.
unsafe impl Send for Gpu {}
// SAFETY: as above; the function table is behind a mutex.
unsafe impl Sync for Gpu {}

/// Turns a driver result into our error; `call` names the function and what it was for.
pub(crate) fn check(result: sys::CUresult, call: &str) -> Result<(), Error> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text = |get: unsafe fn(sys::CUresult, *mut *const std::ffi::c_char) -> sys::CUresult| {
        let mut pointer = std::ptr::null();
        // SAFETY: the driver stores a pointer to a static string, or null for an unknown code.
        unsafe {
            let _ = get(result, &mut pointer);
            if pointer.is_null() {
                format!("{result:?}")
            } else {
                CStr::from_ptr(pointer).to_string_lossy().into_owned()
            }
        }
    };
    Err(Error::Cuda { call: call.to_owned(), name: text(sys::cuGetErrorName), detail: text(sys::cuGetErrorString) })
}

fn init() -> Result<(), Error> {
    // SAFETY: only loads the library; cudarc's other functions panic without it, so this comes first.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver);
    }
    // SAFETY: cuInit takes no pointers and may be called repeatedly.
    check(unsafe { sys::cuInit(0) }, "cuInit")
}

pub(crate) fn count() -> Result<usize, Error> {
    init()?;
    let mut count = 0;
    // SAFETY: writes one int.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "cuDeviceGetCount")?;
    Ok(count as usize)
}

fn raw_driver_version() -> Result<i32, Error> {
    init()?;
    let mut version = 0;
    // SAFETY: writes one int.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, "cuDriverGetVersion")?;
    Ok(version)
}

fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

pub(crate) fn driver_version() -> Result<String, Error> {
    raw_driver_version().map(version_text)
}

fn check_driver(version: i32) -> Result<(), Error> {
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    Err(Error::DriverTooOld { found: version_text(version), needed: version_text(OLDEST_DRIVER) })
}

impl Gpu {
    pub fn open(ordinal: usize, target: Option<Target>) -> Result<Self, Error> {
        check_driver(raw_driver_version()?)?;
        let count = count()?;
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        let (mut device, mut context, mut buffer) = (0, std::ptr::null_mut(), [0; 128]);
        // SAFETY: each call writes to the local it is given; the name is at most 128 bytes with its NUL.
        unsafe {
            check(sys::cuDeviceGet(&mut device, ordinal as i32), "cuDeviceGet")?;
            check(sys::cuDeviceGetName(buffer.as_mut_ptr(), 128, device), "cuDeviceGetName")?;
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device), "cuDevicePrimaryCtxRetain")?;
        }
        // SAFETY: the driver ended the string with a NUL.
        let name = unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned();
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: writes one int.
            check(unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) }, "cuDeviceGetAttribute")
                .map(|()| value)
        };
        use sys::CUdevice_attribute as A;
        let capability = (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < (8, 0) {
            return Err(Error::GpuTooOld { name, found: format!("{}.{}", capability.0, capability.1) });
        }
        // sm_90a code runs on 9.0 only: "a" features are not carried to later architectures.
        let best = if capability == (9, 0) { Target::Sm90a } else { Target::Sm80 };
        let target = target.unwrap_or(best).min(best);
        let multiprocessors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let shared = attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?;
        Ok(Gpu {
            context,
            device,
            name,
            capability,
            multiprocessors,
            shared_per_multiprocessor: shared.max(1) as u32,
            target,
            functions: RwLock::default(),
            clusters: Mutex::default(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn target(&self) -> Target {
        self.target
    }
    pub fn compute_capability(&self) -> (i32, i32) {
        self.capability
    }
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Makes the context current on this thread, as every driver call needs.
    pub fn enter(&self) -> Result<(), Error> {
        // Nobody else in this process changes it, and asking the driver for every launch costs as much as the checks of
        // its shapes.
        let wanted = (self.context.addr(), RELEASED.load(Ordering::Relaxed));
        if CURRENT.get() == wanted {
            return Ok(());
        }
        // SAFETY: the primary context is retained for the life of self.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, "cuCtxSetCurrent")?;
        CURRENT.set(wanted);
        Ok(())
    }

    pub fn memory(&self) -> Result<(usize, usize), Error> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "cuMemGetInfo")?;
        Ok((free, total))
    }

    pub fn alloc(self: &Arc<Self>, bytes: usize) -> Result<Allocation, Error> {
        self.enter()?;
        let mut ptr = 0;
        // SAFETY: writes the address. Zero-sized allocations are an error of the driver's, hence the max.
        let result = unsafe { sys::cuMemAlloc_v2(&mut ptr, bytes.max(16)) };
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = self.memory()?;
            return Err(Error::OutOfMemory { wanted: bytes, free, total });
        }
        check(result, "cuMemAlloc")?;
        Ok(Allocation { ptr: DevicePtr(ptr), gpu: self.clone() })
    }

    /// The compiled entry, loaded on first use, allowed `shared` bytes of dynamic shared memory per block, with
    /// `carveout` of it per multiprocessor where that is not 0 ([`Launch::carveout`](super::Launch::carveout)).
    pub fn function(&self, entry: &'static str, shared: u32, carveout: u32) -> Result<Function, Error> {
        let key = (entry.as_ptr().addr(), entry.len());
        let known = self.functions.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&key).copied();
        match known {
            Some(function) if shared <= function.shared && [0, function.carveout].contains(&carveout) => Ok(function),
            known => self.prepare(entry, shared, carveout, known),
        }
    }

    /// Loads the entry where it is not `known`, allows the shared memory and asks for the carve-out.
    #[cold]
    fn prepare(
        &self,
        entry: &'static str,
        shared: u32,
        carveout: u32,
        known: Option<Function>,
    ) -> Result<Function, Error> {
        // Outside of the lock: several threads load different entries.
        let function = match known {
            Some(function) => function,
            None => self.load(entry)?,
        };
        self.enter()?;
        if shared > function.shared {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_SHARED;
            // SAFETY: the handle was made by `load` and lives as long as the context.
            let result = unsafe { sys::cuFuncSetAttribute(function.handle, MAX_SHARED, shared as i32) };
            check(result, &format!("cuFuncSetAttribute for {shared} bytes of shared memory of {entry}"))?;
        }
        if carveout != 0 && carveout != function.carveout {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as CARVEOUT;
            let percent = (carveout * 100).div_ceil(self.shared_per_multiprocessor).min(100);
            // SAFETY: as above.
            let result = unsafe { sys::cuFuncSetAttribute(function.handle, CARVEOUT, percent as i32) };
            check(result, &format!("cuFuncSetAttribute for the L1 cache of {entry}"))?;
        }
        let carveout = if carveout == 0 { function.carveout } else { carveout };
        let function = Function { shared: function.shared.max(shared), carveout, ..function };
        let mut functions = self.functions.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        functions.insert((entry.as_ptr().addr(), entry.len()), function);
        Ok(function)
    }

    /// How many clusters of `cluster` blocks of the entry, each block of `threads` threads and `shared` bytes of dynamic
    /// shared memory, run at once. Asked of the driver once.
    pub fn clusters(&self, entry: &'static str, threads: u32, cluster: u32, shared: u32) -> Result<usize, Error> {
        let mut known = self.clusters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(&count) = known.get(&(entry, cluster, shared)) {
            return Ok(count);
        }
        let function = self.function(entry, shared, 0)?;
        self.enter()?;
        let value = sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 },
        };
        let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let config = sys::CUlaunchConfig {
            gridDimX: cluster,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: std::ptr::null_mut(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        let mut count = 0;
        // SAFETY: writes one int; the configuration and its one attribute live through the call.
        let result = unsafe { sys::cuOccupancyMaxActiveClusters(&mut count, function.handle, &config) };
        check(result, &format!("cuOccupancyMaxActiveClusters of {entry} in clusters of {cluster}"))?;
        known.insert((entry, cluster, shared), count as usize);
        Ok(count as usize)
    }

    fn load(&self, entry: &str) -> Result<Function, Error> {
        let (target, text) = ptx::newest(self.target, entry)
            .ok_or_else(|| Error::NoEntry { entry: entry.into(), target: self.target.to_string() })?;
        self.enter()?;
        let image = CString::new(text)
            .map_err(|_| Error::Compile { entry: entry.into(), log: "the PTX holds a NUL".into() })?;
        let name =
            CString::new(entry).map_err(|_| Error::NoEntry { entry: entry.into(), target: self.target.to_string() })?;
        let mut log = vec![0u8; 8192];
        let mut options =
            [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the image and the name end with NUL; the two options and values describe `log`, which
        // outlives the call.
        let result = unsafe {
            sys::cuModuleLoadDataEx(&mut module, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        if let Err(error) = check(result, &format!("cuModuleLoadDataEx of {entry}")) {
            let text = String::from_utf8_lossy(&log);
            let mut lines = text.lines().map(|line| line.trim_matches('\0').trim());
            let line = lines.rfind(|line| !line.is_empty()).map(str::to_owned);
            return Err(line.map_or(error, |log| Error::Compile { entry: entry.into(), log }));
        }
        let call = format!("cuModuleGetFunction of {entry}");
        // SAFETY: the module was loaded just now and is never unloaded.
        check(unsafe { sys::cuModuleGetFunction(&mut function, module, name.as_ptr()) }, &call)?;
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NUM_REGS as REGISTERS;
        let mut registers = 0;
        // The driver loads lazily: asking is what brings the code to the GPU now and not at the first launch, which may be
        // part of a capture.
        // SAFETY: writes one int; the handle is live.
        check(unsafe { sys::cuFuncGetAttribute(&mut registers, REGISTERS, function) }, &call)?;
        Ok(Function { handle: function, waits: target == Target::Sm90a, shared: DEFAULT_SHARED, carveout: 0 })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // The driver may give a later context the same address.
        RELEASED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: balances the retain in `open`. Errors at exit have nowhere to go.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// An allocation, freed on drop (the driver waits for work that uses it).
pub(crate) struct Allocation {
    ptr: DevicePtr,
    gpu: Arc<Gpu>,
}

impl Allocation {
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: allocated by `alloc`, freed once.
            let _ = unsafe { sys::cuMemFree_v2(self.ptr.0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_driver_is_refused_by_its_version() {
        assert!(check_driver(12_010).is_ok() && check_driver(13_000).is_ok());
        let message = check_driver(12_000).unwrap_err().to_string();
        assert_eq!(message, "the NVIDIA driver supports CUDA 12.0, Wootz needs 12.1 or newer: update the driver");
    }
}
