//! Streams: launches, copies, events, graphs.
use super::{Backend, cuda, emulated};
use crate::buffer::{Mem, MemMut};
use crate::{Device, Error, View, ViewMut};
use bytemuck::Pod;
use cudarc::driver::sys;
use kernels_gpu::prim::{Entry, KernelArgs};
use std::marker::PhantomData;

/// A queue of work on a device. On the CPU and on an emulated device everything happens at once.
pub struct Stream {
    device: Device,
    queue: Queue,
    /// Whether launches that ask for it may overlap their predecessor's end.
    overlap: bool,
}

enum Queue {
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
}

impl Launch {
    /// A one-dimensional grid.
    pub fn grid(blocks: usize) -> Self {
        Launch { grid: [blocks as u32, 1, 1], shared: 0, dependent: false, cluster: 1, threads: None }
    }
    /// A three-dimensional grid.
    pub fn grid3(x: usize, y: usize, z: usize) -> Self {
        Launch { grid: [x as u32, y as u32, z as u32], shared: 0, dependent: false, cluster: 1, threads: None }
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
    /// In clusters of `blocks` blocks, of which the grid has a whole number.
    pub fn cluster(self, blocks: u32) -> Self {
        Launch { cluster: blocks, ..self }
    }
}

/// Where a launcher or a buffer of a GPU has come to a stream of the CPU, or the other way round.
const MIXED: &str = "the CPU device has no GPU memory and launches nothing: launchers run references there";

impl Stream {
    pub(super) fn new(device: Device) -> Result<Self, Error> {
        let queue = match device.backend() {
            Backend::Cpu => Queue::Cpu,
            Backend::Cuda(gpu) => Queue::Cuda(cuda::Queue::new(gpu)?),
            Backend::Emulated(device) => Queue::Emulated(emulated::Queue::new(device)),
        };
        Ok(Stream { device, queue, overlap: true })
    }

    /// Without programmatic dependent launch: every launch waits until its predecessor has ended. For measuring
    /// kernels by themselves.
    pub fn without_overlap(self) -> Self {
        Stream { overlap: false, ..self }
    }

    /// The driver's handle, null where the device is no real GPU.
    pub(crate) fn handle(&self) -> sys::CUstream {
        match &self.queue {
            Queue::Cuda(queue) => queue.handle(),
            _ => std::ptr::null_mut(),
        }
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
        })
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
        match (from.mem, into.reborrow().mem, &self.queue) {
            (Mem::Host(from), MemMut::Host(into), _) => {
                into[..bytes].copy_from_slice(&from[..bytes]);
                Ok(())
            }
            (Mem::Device(from, _), MemMut::Device(into, _), Queue::Cuda(queue)) => queue.copy(from.0, into.0, bytes),
            (Mem::Device(from, _), MemMut::Device(into, _), Queue::Emulated(queue)) => {
                queue.copy(from.0, into.0, bytes)
            }
            _ => panic!("a copy between devices"),
        }
    }

    /// Fills a contiguous view with a byte.
    pub fn fill(&self, mut into: ViewMut<'_>, byte: u8) -> Result<(), Error> {
        assert!(into.is_contiguous());
        let len = into.rows() * into.cols() * into.dtype().size();
        match (into.reborrow().mem, &self.queue) {
            (MemMut::Host(host), _) => host[..len].fill(byte),
            (MemMut::Device(..), Queue::Cpu) => panic!("{MIXED}"),
            (MemMut::Device(ptr, _), Queue::Cuda(queue)) => queue.fill(ptr.0, byte, len)?,
            (MemMut::Device(ptr, _), Queue::Emulated(queue)) => queue.fill(ptr.0, byte, len)?,
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

    /// Records what `work` launches and fills into a graph instead of running it. The buffers that `work` borrows stay
    /// borrowed while the graph lives, because it runs on their addresses.
    ///
    /// # Panics
    /// On the CPU device.
    pub fn capture<'a>(&self, work: impl FnOnce(&Stream) -> Result<(), Error> + 'a) -> Result<Graph<'a>, Error> {
        let recorded = match &self.queue {
            Queue::Cpu => panic!("{MIXED}"),
            Queue::Cuda(queue) => Recorded::Cuda(queue.capture(|| work(self))?),
            Queue::Emulated(queue) => Recorded::Emulated(queue.capture(|| work(self))?),
        };
        Ok(Graph { recorded, buffers: PhantomData })
    }
}

/// A recorded sequence of launches over buffers that live at least for `'a`.
pub struct Graph<'a> {
    recorded: Recorded,
    buffers: PhantomData<&'a mut ()>,
}

enum Recorded {
    Cuda(cuda::Graph),
    Emulated(emulated::Graph),
}

impl Graph<'_> {
    /// Queues the whole graph.
    ///
    /// # Panics
    /// If the stream is of another kind of device.
    pub fn launch(&self, stream: &Stream) -> Result<(), Error> {
        match (&self.recorded, &stream.queue) {
            (Recorded::Cuda(graph), Queue::Cuda(queue)) => queue.replay(graph),
            (Recorded::Emulated(graph), Queue::Emulated(queue)) => queue.replay(graph),
            _ => panic!("a graph runs on the kind of device that recorded it"),
        }
    }
}

/// A point in a stream, for timing.
pub struct Event(Moment);

enum Moment {
    Cuda(cuda::Event),
    Emulated(emulated::Event),
}

impl Event {
    /// Records a new event. On an emulated device time is the host's.
    ///
    /// # Panics
    /// On the CPU device.
    pub fn record(stream: &Stream) -> Result<Self, Error> {
        match &stream.queue {
            Queue::Cpu => panic!("{MIXED}"),
            Queue::Cuda(queue) => Ok(Event(Moment::Cuda(queue.record()?))),
            Queue::Emulated(_) => Ok(Event(Moment::Emulated(emulated::Event::now()))),
        }
    }

    /// Milliseconds from `earlier` to this event, once both have happened (waits for it).
    ///
    /// # Panics
    /// If the two are of different kinds of device.
    pub fn elapsed_ms(&self, earlier: &Event) -> Result<f32, Error> {
        match (&self.0, &earlier.0) {
            (Moment::Cuda(event), Moment::Cuda(earlier)) => event.elapsed_ms(earlier),
            (Moment::Emulated(event), Moment::Emulated(earlier)) => Ok(event.elapsed_ms(earlier)),
            _ => panic!("events of different kinds of device"),
        }
    }
}
