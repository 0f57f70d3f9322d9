//! Devices, streams and launches.
mod gpu;
mod program;
mod stream;
mod tensor_map;

pub use program::{Program, TiledMap};
pub use stream::{Event, Graph, Launch, Stream};

pub(crate) use gpu::DeviceMemory;

use crate::{Error, Target};
use gpu::Gpu;
use std::sync::Arc;

/// Where buffers live and kernels run. Cheap to clone.
#[derive(Clone)]
pub struct Device(Backend);

#[derive(Clone)]
enum Backend {
    Cpu,
    Cuda(Arc<Gpu>),
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

    pub(crate) fn gpu(&self) -> Option<&Arc<Gpu>> {
        match &self.0 {
            Backend::Cpu => None,
            Backend::Cuda(gpu) => Some(gpu),
        }
    }

    /// Whether kernels run as references on the host.
    pub fn is_cpu(&self) -> bool {
        self.gpu().is_none()
    }

    /// The device's name for people, such as "NVIDIA H200" or "CPU".
    pub fn name(&self) -> &str {
        self.gpu().map_or("CPU", |gpu| gpu.name())
    }

    /// The module that launches use; `None` on the CPU.
    pub fn target(&self) -> Option<Target> {
        self.gpu().map(|gpu| gpu.target())
    }

    /// Compute capability (major, minor); `None` on the CPU.
    pub fn compute_capability(&self) -> Option<(i32, i32)> {
        self.gpu().map(|gpu| gpu.compute_capability())
    }

    /// Streaming multiprocessors; on the CPU, threads.
    pub fn multiprocessors(&self) -> usize {
        self.gpu().map_or_else(rayon::current_num_threads, |gpu| gpu.multiprocessors())
    }

    /// Free and total bytes of GPU memory; `None` on the CPU.
    pub fn memory(&self) -> Result<Option<(usize, usize)>, Error> {
        self.gpu().map(|gpu| gpu.memory()).transpose()
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

/// Zeroed host memory of at least `bytes`, 16-byte aligned as kernels expect.
pub(crate) fn host_words(bytes: usize) -> Vec<u128> {
    vec![0; bytes.div_ceil(16)]
}
