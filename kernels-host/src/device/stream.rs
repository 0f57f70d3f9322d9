//! Streams: launches and copies.
use super::graph::keep;
use super::pinned::Pitched;
use super::watch::Watch;
use super::{Backend, MIXED, cuda, emulated};
use crate::buffer::{Mem, MemMut};
use crate::{Device, Error, View, ViewMut};
use bytemuck::Pod;
use cudarc::driver::sys;
use kernels_gpu::prim::{Entry, KernelArgs};

/// A queue of work on a device. On the CPU and on an emulated device everything happens at once.
pub struct Stream {
    device: Device,
    queue: Queue,
    /// Whether launches that ask for it may overlap their predecessor's end.
    overlap: bool,
    batch_invariant: bool,
    watch: Watch,
}

pub(super) enum Queue {
    Cpu,
    Cuda(cuda::Queue),
    Emulated(emulated::Queue),
}

/// Geometry of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Bytes of dynamic shared memory per block.
    pub shared: u32,
    /// Whether the grid may start before its predecessor in the stream has ended (programmatic dependent
    /// launch); the kernel then calls `grid_dependency_wait` before it touches what others write.
    pub dependent: bool,
    /// Blocks of a cluster, consecutive along x; 1 for none. For entries that do not fix it themselves.
    pub cluster: u32,
    /// Threads per block where it is fewer than the entry declares.
    pub threads: Option<u32>,
    /// Bytes of shared memory that a multiprocessor shall have while it runs the kernel; the rest is L1 cache. 0: the driver
    /// decides, and leaves what the kernel before it had: behind one that fills shared memory 28 KiB of cache.
    pub carveout: u32,
}

impl Launch {
    /// A one-dimensional grid.
    pub fn grid(blocks: usize) -> Self {
        Launch { grid: [blocks as u32, 1, 1], shared: 0, dependent: false, cluster: 1, threads: None, carveout: 0 }
    }
    /// A three-dimensional grid.
    pub fn grid3(x: usize, y: usize, z: usize) -> Self {
        Launch {
            grid: [x as u32, y as u32, z as u32],
            shared: 0,
            dependent: false,
            cluster: 1,
            threads: None,
            carveout: 0,
        }
    }
    /// With dynamic shared memory.
    pub fn shared(self, bytes: u32) -> Self {
        Launch { shared: bytes, ..self }
    }
    /// With programmatic dependent launch.
    pub fn dependent(self) -> Self {
        Launch { dependent: true, ..self }
    }
    /// With fewer threads per block than the entry declares.
    pub fn threads(self, threads: u32) -> Self {
        Launch { threads: Some(threads), ..self }
    }
    /// With `bytes` of shared memory per multiprocessor and as much L1 cache as there is beside it.
    pub fn carveout(self, bytes: u32) -> Self {
        Launch { carveout: bytes, ..self }
    }
    /// In clusters of `blocks` blocks, of which the grid has a whole number.
    pub fn cluster(self, blocks: u32) -> Self {
        Launch { cluster: blocks, ..self }
    }
}

impl Stream {
    pub(super) fn new(device: Device) -> Result<Self, Error> {
        let queue = match device.backend() {
            Backend::Cpu => Queue::Cpu,
            Backend::Cuda(gpu) => Queue::Cuda(cuda::Queue::new(gpu)?),
            Backend::Emulated(device) => Queue::Emulated(emulated::Queue::new(device)),
        };
        Ok(Stream { device, queue, overlap: true, batch_invariant: false, watch: Watch::default() })
    }

    /// Without programmatic dependent launch: every launch waits until its predecessor has ended. For measuring
    /// kernels by themselves.
    pub fn without_overlap(self) -> Self {
        Stream { overlap: false, ..self }
    }

    /// Launchers pick kernels that add up a row's sums in an order which depends on the shapes of weights and heads only:
    /// equal rows give equal bits, whatever else is in the batch.
    pub fn with_batch_invariance(self) -> Self {
        Stream { batch_invariant: true, ..self }
    }

    /// Whether [`Stream::with_batch_invariance`] was called.
    pub fn is_batch_invariant(&self) -> bool {
        self.batch_invariant
    }

    /// The driver's handle, null where the device is no real GPU.
    pub(crate) fn handle(&self) -> sys::CUstream {
        match &self.queue {
            Queue::Cuda(queue) => queue.handle(),
            _ => std::ptr::null_mut(),
        }
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    pub(super) fn is_preparing(&self) -> bool {
        self.watch.is_preparing()
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether launches run references on the host.
    pub fn is_cpu(&self) -> bool {
        self.device.is_cpu()
    }

    /// Launches an entry on a GPU.
    ///
    /// # Safety
    /// The arguments' addresses must be valid for what the entry reads and writes, as its launcher
    /// has checked, until the stream has run it.
    ///
    /// # Panics
    /// On the CPU device: launchers run the reference instead.
    pub unsafe fn launch<A: KernelArgs>(&self, entry: Entry<A>, launch: Launch, args: &A) -> Result<(), Error> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        if self.is_preparing() {
            self.watch.meet(entry.name, launch);
            return Ok(());
        }
        let threads = launch.threads.unwrap_or(entry.threads);
        let launch = Launch { dependent: launch.dependent && self.overlap, ..launch };
        // SAFETY: the parameter pointers match the entry's declaration (one macro makes both); the rest is the
        // caller's promise.
        args.with_params(|params| unsafe {
            match &self.queue {
                Queue::Cpu => panic!("{MIXED}"),
                Queue::Cuda(queue) => queue.launch(entry.name, threads, launch, params),
                Queue::Emulated(queue) => queue.launch(entry.name, threads, launch, params),
            }
        })?;
        if self.watch.is_profiling() { self.watch.time(entry.name, self) } else { Ok(()) }
    }

    /// How many clusters of `cluster` blocks of an entry run at once, each block with `shared` bytes of dynamic shared
    /// memory.
    ///
    /// # Panics
    /// On the CPU device.
    pub fn clusters_at_once<A>(&self, entry: Entry<A>, cluster: u32, shared: u32) -> Result<usize, Error> {
        match self.device.backend() {
            Backend::Cpu => panic!("{MIXED}"),
            Backend::Cuda(gpu) => gpu.clusters(entry.name, entry.threads, cluster, shared),
            Backend::Emulated(device) => Ok(device.clusters(entry.threads, cluster, shared)),
        }
    }

    /// Copies host data to the device. `data` may be reused when this returns.
    ///
    /// # Panics
    /// If `into` is not contiguous or has another size.
    pub fn upload<T: Pod>(&self, data: &[T], mut into: ViewMut<'_>) -> Result<(), Error> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        assert!(into.is_contiguous());
        assert_eq!(bytes.len(), into.rows() * into.cols() * into.dtype().size(), "upload size");
        match (into.reborrow().mem, &self.queue) {
            (MemMut::Host(host), _) => host[..bytes.len()].copy_from_slice(bytes),
            (MemMut::Device(..), Queue::Cpu) => panic!("{MIXED}"),
            (MemMut::Device(ptr, _), Queue::Cuda(queue)) => queue.upload(ptr.0, bytes)?,
            (MemMut::Device(ptr, _), Queue::Emulated(queue)) => queue.upload(ptr.0, bytes)?,
        }
        Ok(())
    }

    /// Copies device data to the host, after everything queued before. Of an emulated device, bytes that nothing has
    /// written are an error.
    ///
    /// # Panics
    /// If `from` is not contiguous or has another size.
    pub fn download<T: Pod>(&self, from: View<'_>, data: &mut [T]) -> Result<(), Error> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        assert!(from.is_contiguous());
        assert_eq!(bytes.len(), from.rows() * from.cols() * from.dtype().size(), "download size");
        match (from.mem, &self.queue) {
            (Mem::Host(host), _) => bytes.copy_from_slice(&host[..bytes.len()]),
            (Mem::Device(..), Queue::Cpu) => panic!("{MIXED}"),
            (Mem::Device(ptr, _), Queue::Cuda(queue)) => queue.download(ptr.0, bytes)?,
            (Mem::Device(ptr, _), Queue::Emulated(queue)) => queue.download(ptr.0, bytes)?,
        }
        Ok(())
    }

    /// Copies one contiguous view to another of the same size on the same device.
    ///
    /// # Panics
    /// If one is not contiguous or their sizes differ.
    pub fn copy(&self, from: View<'_>, mut into: ViewMut<'_>) -> Result<(), Error> {
        assert!(from.is_contiguous() && into.is_contiguous());
        let bytes = from.rows() * from.cols() * from.dtype().size();
        assert_eq!(bytes, into.rows() * into.cols() * into.dtype().size(), "copy size");
        if self.is_preparing() {
            return Ok(());
        }
        match (from.mem, into.reborrow().mem, &self.queue) {
            (Mem::Host(from), MemMut::Host(into), _) => {
                into[..bytes].copy_from_slice(&from[..bytes]);
                Ok(())
            }
            (Mem::Device(from, source), MemMut::Device(into, sink), queue) => {
                keep(source);
                keep(sink);
                match queue {
                    Queue::Cuda(queue) => queue.copy(from.0, into.0, bytes),
                    Queue::Emulated(queue) => queue.copy(from.0, into.0, bytes),
                    Queue::Cpu => panic!("{MIXED}"),
                }
            }
            _ => panic!("a copy between devices"),
        }
    }

    /// Copies, in every row of a matrix, `count` columns from column `from` on to column `to` on.
    ///
    /// # Panics
    /// If there are fewer columns, or the two ranges overlap.
    pub fn copy_columns(&self, matrix: ViewMut<'_>, from: usize, to: usize, count: usize) -> Result<(), Error> {
        assert!(
            from.max(to) + count <= matrix.cols() && from.abs_diff(to) >= count,
            "columns {from} and {to}, {count}"
        );
        let (rows, size) = (matrix.rows(), matrix.dtype().size());
        let (width, pitch) = (count * size, matrix.stride() * size);
        if self.is_preparing() || width == 0 {
            return Ok(());
        }
        match matrix.mem {
            MemMut::Host(host) => {
                for row in 0..rows {
                    let start = row * pitch + from * size;
                    host.copy_within(start..start + width, row * pitch + to * size);
                }
                Ok(())
            }
            MemMut::Device(ptr, memory) => {
                keep(memory);
                let (from, to) = (ptr.0 + (from * size) as u64, ptr.0 + (to * size) as u64);
                match &self.queue {
                    Queue::Cpu => panic!("{MIXED}"),
                    Queue::Cuda(queue) => queue.copy_rows(from, Pitched { address: to, rows, width, pitch }),
                    Queue::Emulated(queue) => (0..rows as u64)
                        .map(|row| row * pitch as u64)
                        .try_for_each(|row| queue.copy(from + row, to + row, width)),
                }
            }
        }
    }

    /// Fills a contiguous view with a byte.
    pub fn fill(&self, mut into: ViewMut<'_>, byte: u8) -> Result<(), Error> {
        assert!(into.is_contiguous());
        let len = into.rows() * into.cols() * into.dtype().size();
        if self.is_preparing() {
            return Ok(());
        }
        match into.reborrow().mem {
            MemMut::Host(host) => host[..len].fill(byte),
            MemMut::Device(ptr, memory) => {
                keep(memory);
                match &self.queue {
                    Queue::Cpu => panic!("{MIXED}"),
                    Queue::Cuda(queue) => queue.fill(ptr.0, byte, len)?,
                    Queue::Emulated(queue) => queue.fill(ptr.0, byte, len)?,
                }
            }
        }
        Ok(())
    }

    /// Waits for everything queued. An asynchronous fault of an earlier launch shows here.
    pub fn synchronize(&self) -> Result<(), Error> {
        match &self.queue {
            Queue::Cpu | Queue::Emulated(_) => Ok(()),
            Queue::Cuda(queue) => queue.synchronize(),
        }
    }
}
