//! Devices, streams and launches.
mod cuda;
mod emulated;
mod event;
mod gpu;
pub(crate) mod graph;
mod pinned;
mod program;
mod stream;
mod tensor_map;
mod watch;

pub use emulated::{Emulation, Launches};
pub use event::Event;
pub use graph::Graph;
pub use pinned::Pinned;
pub use program::{Program, TiledMap};
pub use stream::{Launch, Stream};

use crate::{DType, Error, Target};
use emulated::Emulated;
use gpu::Gpu;
use kernels_gpu::prim::DevicePtr;
use rayon::prelude::*;
use std::sync::Arc;

/// Where a launcher or a buffer of a GPU has come to a stream of the CPU, or the other way round.
const MIXED: &str = "the CPU device has no GPU memory and launches nothing: launchers run references there";

/// Where buffers live and kernels run. Cheap to clone.
#[derive(Clone)]
pub struct Device(Backend);

#[derive(Clone)]
enum Backend {
    Cpu,
    Cuda(Arc<Gpu>),
    Emulated(Arc<Emulated>),
}

impl Device {
    /// The CPU: launchers run the kernels' references.
    pub fn cpu() -> Self {
        Device(Backend::Cpu)
    }

    /// GPU number `ordinal`, with the newest module that it can run.
    pub fn cuda(ordinal: usize) -> Result<Self, Error> {
        Self::cuda_with_target(ordinal, None)
    }

    /// As [`Device::cuda`], with the module forced to `target`: newer GPUs run `sm_80` too.
    pub fn cuda_with_target(ordinal: usize, target: Option<Target>) -> Result<Self, Error> {
        Ok(Device(Backend::Cuda(Arc::new(Gpu::open(ordinal, target)?))))
    }

    /// Number of GPUs; 0 without a driver.
    pub fn cuda_count() -> usize {
        gpu::count().unwrap_or(0)
    }

    /// The driver's CUDA version, such as "13.0".
    pub fn driver_version() -> Result<String, Error> {
        gpu::driver_version()
    }

    /// A GPU emulated on the host: launches execute the PTX of `target` under the sanitizer of `ptx_emulator`, which
    /// `seed` schedules. Devices are independent of each other: their launches may run at the same time.
    pub fn emulated(target: Target, seed: u64) -> Self {
        Device(Backend::Emulated(Arc::new(Emulated::new(target, seed))))
    }

    fn backend(&self) -> &Backend {
        &self.0
    }

    /// Whether kernels run as references on the host.
    pub fn is_cpu(&self) -> bool {
        matches!(self.0, Backend::Cpu)
    }

    /// What an emulated device has executed so far; `None` of the others.
    pub fn emulation(&self) -> Option<Emulation> {
        match &self.0 {
            Backend::Emulated(device) => Some(device.emulation()),
            Backend::Cpu | Backend::Cuda(_) => None,
        }
    }

    /// The device's name for people, such as "NVIDIA H200", "emulated GPU" or "CPU".
    pub fn name(&self) -> &str {
        match &self.0 {
            Backend::Cpu => "CPU",
            Backend::Cuda(gpu) => gpu.name(),
            Backend::Emulated(_) => "emulated GPU",
        }
    }

    /// The module that launches use; `None` on the CPU.
    pub fn target(&self) -> Option<Target> {
        match &self.0 {
            Backend::Cpu => None,
            Backend::Cuda(gpu) => Some(gpu.target()),
            Backend::Emulated(device) => Some(device.target()),
        }
    }

    /// Compute capability (major, minor); `None` on the CPU.
    pub fn compute_capability(&self) -> Option<(i32, i32)> {
        match &self.0 {
            Backend::Cpu => None,
            Backend::Cuda(gpu) => Some(gpu.compute_capability()),
            Backend::Emulated(device) => Some(device.compute_capability()),
        }
    }

    /// Streaming multiprocessors, of an emulated device an H200's; on the CPU, threads.
    pub fn multiprocessors(&self) -> usize {
        match &self.0 {
            Backend::Cpu => rayon::current_num_threads(),
            Backend::Cuda(gpu) => gpu.multiprocessors(),
            Backend::Emulated(device) => device.multiprocessors(),
        }
    }

    /// Free and total bytes of GPU memory; `None` on the CPU.
    pub fn memory(&self) -> Result<Option<(usize, usize)>, Error> {
        match &self.0 {
            Backend::Cpu => Ok(None),
            Backend::Cuda(gpu) => gpu.memory().map(Some),
            Backend::Emulated(device) => Ok(Some(device.memory())),
        }
    }

    /// Uninitialised memory for `len` elements; `None` on the CPU.
    pub(crate) fn alloc(&self, dtype: DType, len: usize) -> Result<Option<DeviceMemory>, Error> {
        let bytes = len * dtype.size();
        Ok(match &self.0 {
            Backend::Cpu => None,
            Backend::Cuda(gpu) => Some(DeviceMemory::Cuda(gpu.alloc(bytes)?)),
            Backend::Emulated(device) => {
                Some(DeviceMemory::Emulated(device.alloc(&format!("a buffer of {len} {dtype}"), bytes)?))
            }
        })
    }

    /// Loads entries, with the dynamic shared memory that they are launched with, in parallel.
    fn load(&self, entries: &[(&'static str, u32)]) -> Result<(), Error> {
        entries.par_iter().try_for_each(|&(entry, shared)| match &self.0 {
            Backend::Cpu => Ok(()),
            Backend::Cuda(gpu) => gpu.function(entry, shared, 0).map(drop),
            Backend::Emulated(device) => device.load(entry),
        })
    }

    /// A new stream.
    pub fn stream(&self) -> Result<Stream, Error> {
        Stream::new(self.clone())
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name())?;
        self.target().map_or(Ok(()), |target| write!(f, " ({target})"))
    }
}

/// An allocation on a GPU, freed on drop.
pub(crate) enum DeviceMemory {
    Cuda(gpu::Allocation),
    Emulated(emulated::Allocation),
}

impl DeviceMemory {
    pub fn ptr(&self) -> DevicePtr {
        match self {
            DeviceMemory::Cuda(memory) => memory.ptr(),
            DeviceMemory::Emulated(memory) => memory.ptr(),
        }
    }
}

/// Zeroed host memory of at least `bytes`, 16-byte aligned as kernels expect.
pub(crate) fn host_words(bytes: usize) -> Vec<u128> {
    vec![0; bytes.div_ceil(16)]
}
