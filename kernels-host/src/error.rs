use crate::{DType, Target};

/// What a device or a launcher can fail with. Every message is one line.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No NVIDIA driver on this machine.
    #[error("no NVIDIA driver was found (libcuda.so.1 does not load): install the driver, or use --device cpu")]
    NoDriver,
    /// The driver is there, the GPU is not.
    #[error("GPU {ordinal} does not exist: the driver shows {count} GPUs; `nvidia-smi -L` lists them")]
    NoDevice {
        /// The number that was asked for.
        ordinal: usize,
        /// GPUs that exist.
        count: usize,
    },
    /// The driver cannot load our PTX.
    #[error("the NVIDIA driver supports CUDA {found}, Wootz needs {needed} or newer: update the driver")]
    DriverTooOld {
        /// The driver's CUDA version.
        found: String,
        /// The oldest that works.
        needed: String,
    },
    /// The GPU is older than our baseline.
    #[error("{name} has compute capability {found}, Wootz needs 8.0 (Ampere) or newer: use --device cpu")]
    GpuTooOld {
        /// The GPU's name.
        name: String,
        /// Its compute capability.
        found: String,
    },
    /// Device memory is exhausted.
    #[error("out of GPU memory: {wanted} bytes were asked for, {free} of {total} are free")]
    OutOfMemory {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes free.
        free: usize,
        /// Bytes in all.
        total: usize,
    },
    /// A driver call failed. Sticky: the context is lost.
    #[error("{call} failed: {name} ({detail})")]
    Cuda {
        /// The driver's function, and what it was for.
        call: String,
        /// The error's name.
        name: String,
        /// The driver's description.
        detail: String,
    },
    /// The driver's compiler rejected an entry.
    #[error("the driver cannot compile kernel {entry}: {log}")]
    Compile {
        /// The PTX entry.
        entry: String,
        /// The last line of the compiler's log.
        log: String,
    },
    /// What the emulator's sanitizer found, or PTX that it does not know.
    #[error("{what} on the emulated {target}, seed {seed}: {fault}")]
    Emulator {
        /// The PTX entry, or what the host did.
        what: String,
        /// The module that the device runs.
        target: Target,
        /// The fault: what happened, and which thread did it at which line of the PTX.
        fault: String,
        /// The device's seed: the same again shows the same fault.
        seed: u64,
    },
    /// No module for this GPU holds the entry.
    #[error("kernel {entry} is not built for {target}")]
    NoEntry {
        /// The PTX entry.
        entry: String,
        /// The target.
        target: String,
    },
    /// A shape that does not fit the others.
    #[error("{kernel}: {argument} has {dim} = {found}, expected {expected}")]
    Shape {
        /// The kernel.
        kernel: &'static str,
        /// The argument.
        argument: &'static str,
        /// The dimension's name.
        dim: &'static str,
        /// Its size.
        found: usize,
        /// What it must be.
        expected: usize,
    },
    /// An element type that does not fit.
    #[error("{kernel}: {argument} is {found}, expected {expected}")]
    Type {
        /// The kernel.
        kernel: &'static str,
        /// The argument.
        argument: &'static str,
        /// Its type.
        found: DType,
        /// What it must be.
        expected: &'static str,
    },
    /// A library that a comparison needs.
    #[error(
        "cuBLASLt was not found ({tried}): install nvidia-cublas for Python, a CUDA toolkit, or pass --cublaslt FILE"
    )]
    NoCublasLt {
        /// Where it was looked for.
        tried: String,
    },
    /// A call of cuBLASLt failed.
    #[error("{call} failed: {status}")]
    CublasLt {
        /// The function, and what it was for.
        call: String,
        /// cuBLAS's name of the error.
        status: String,
    },
    /// Anything else that a kernel cannot do.
    #[error("{kernel}: {what}")]
    Unsupported {
        /// The kernel.
        kernel: &'static str,
        /// What it cannot do, and what it could.
        what: String,
    },
}
