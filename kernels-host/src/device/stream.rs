//! Streams: launches, copies, events, graphs.
use super::gpu::{Gpu, check};
use crate::buffer::{Mem, MemMut};
use crate::{Device, Error, View, ViewMut};
use bytemuck::Pod;
use cudarc::driver::sys;
use kernels_gpu::prim::{Entry, KernelArgs};
use std::marker::PhantomData;
use std::sync::Arc;

/// A queue of work on a device. On the CPU everything happens at once.
pub struct Stream {
    device: Device,
    handle: sys::CUstream,
}

// SAFETY: a stream handle may be used from any thread; every call makes the context current first.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver serialises calls on one stream.
unsafe impl Sync for Stream {}

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

impl Stream {
    pub(super) fn new(device: Device) -> Result<Self, Error> {
        let mut handle = std::ptr::null_mut();
        if let Some(gpu) = device.gpu() {
            gpu.enter()?;
            // Independent of the legacy default stream.
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: writes the handle.
            check(unsafe { sys::cuStreamCreate(&mut handle, flags) }, "cuStreamCreate")?;
        }
        Ok(Stream { device, handle })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether launches run references on the host.
    pub fn is_cpu(&self) -> bool {
        self.device.is_cpu()
    }

    fn gpu(&self) -> &Arc<Gpu> {
        self.device.gpu().expect("the caller has handled the CPU")
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
        let gpu = self.gpu();
        let function = gpu.function(entry.name, launch.shared)?;
        gpu.enter()?;
        use sys::CUlaunchAttributeID as Id;
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let dependent = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let dependent = attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, dependent);
        let cluster = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: launch.cluster, y: 1, z: 1 };
        let cluster = sys::CUlaunchAttributeValue { clusterDim: cluster };
        let cluster = attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, cluster);
        let mut attributes = [dependent, cluster];
        // The ones that the launch has are next to each other.
        let first = usize::from(!(launch.dependent && function.waits));
        let last = 1 + usize::from(launch.cluster > 1);
        let attributes = &mut attributes[first..last];
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads.unwrap_or(entry.threads),
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: self.handle,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the parameter pointers match the entry's declaration (one macro makes both); the rest is the
        // caller's promise.
        let result = args.with_params(|params| unsafe {
            sys::cuLaunchKernelEx(&config, function.handle, params.as_mut_ptr(), std::ptr::null_mut())
        });
        if result == sys::CUresult::CUDA_SUCCESS { Ok(()) } else { check(result, &format!("launching {}", entry.name)) }
    }

    /// How many clusters of `cluster` blocks of an entry run at once, each block with `shared` bytes of dynamic shared
    /// memory.
    ///
    /// # Panics
    /// On the CPU device.
    pub fn clusters_at_once<A>(&self, entry: Entry<A>, cluster: u32, shared: u32) -> Result<usize, Error> {
        self.gpu().clusters(entry.name, entry.threads, cluster, shared)
    }

    /// Copies host data to the device. `data` may be reused when this returns.
    ///
    /// # Panics
    /// If `into` is not contiguous or has another size.
    pub fn upload<T: Pod>(&self, data: &[T], mut into: ViewMut<'_>) -> Result<(), Error> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        assert!(into.is_contiguous());
        assert_eq!(bytes.len(), into.rows() * into.cols() * into.dtype().size(), "upload size");
        match into.reborrow().mem {
            MemMut::Host(host) => host[..bytes.len()].copy_from_slice(bytes),
            MemMut::Device(ptr, _) => {
                self.gpu().enter()?;
                // SAFETY: the view covers that many bytes of device memory. From pageable memory the call
                // returns after the source was read.
                let result =
                    unsafe { sys::cuMemcpyHtoDAsync_v2(ptr.0, bytes.as_ptr().cast(), bytes.len(), self.handle) };
                check(result, "cuMemcpyHtoDAsync")?;
            }
        }
        Ok(())
    }

    /// Copies device data to the host, after everything queued before.
    ///
    /// # Panics
    /// If `from` is not contiguous or has another size.
    pub fn download<T: Pod>(&self, from: View<'_>, data: &mut [T]) -> Result<(), Error> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        assert!(from.is_contiguous());
        assert_eq!(bytes.len(), from.rows() * from.cols() * from.dtype().size(), "download size");
        match from.mem {
            Mem::Host(host) => bytes.copy_from_slice(&host[..bytes.len()]),
            Mem::Device(ptr, _) => {
                self.gpu().enter()?;
                // SAFETY: the view covers that many bytes; the stream is drained before `data` is used.
                let result =
                    unsafe { sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), ptr.0, bytes.len(), self.handle) };
                check(result, "cuMemcpyDtoHAsync")?;
                self.synchronize()?;
            }
        }
        Ok(())
    }

    /// Fills a contiguous view with a byte.
    pub fn fill(&self, mut into: ViewMut<'_>, byte: u8) -> Result<(), Error> {
        assert!(into.is_contiguous());
        let len = into.rows() * into.cols() * into.dtype().size();
        match into.reborrow().mem {
            MemMut::Host(host) => host[..len].fill(byte),
            MemMut::Device(ptr, _) => {
                self.gpu().enter()?;
                // SAFETY: the view covers that many bytes.
                check(unsafe { sys::cuMemsetD8Async(ptr.0, byte, len, self.handle) }, "cuMemsetD8Async")?;
            }
        }
        Ok(())
    }

    /// Waits for everything queued. An asynchronous fault of an earlier launch shows here.
    pub fn synchronize(&self) -> Result<(), Error> {
        if self.is_cpu() {
            return Ok(());
        }
        self.gpu().enter()?;
        // SAFETY: the handle is this stream's.
        check(unsafe { sys::cuStreamSynchronize(self.handle) }, "cuStreamSynchronize")
    }

    /// Records what `work` launches into a graph instead of running it. The buffers that `work` borrows stay borrowed
    /// while the graph lives, because it runs on their addresses. GPU only.
    pub fn capture<'a>(&self, work: impl FnOnce(&Stream) -> Result<(), Error> + 'a) -> Result<Graph<'a>, Error> {
        let gpu = self.gpu();
        gpu.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the handle is this stream's; the capture is ended below whatever `work` returns.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.handle, mode) }, "cuStreamBeginCapture")?;
        let done = work(self);
        let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: ends the capture begun above.
        let ended = check(unsafe { sys::cuStreamEndCapture(self.handle, &mut graph) }, "cuStreamEndCapture");
        done?;
        ended?;
        // SAFETY: the graph was captured just now; the executable one does not need it afterwards.
        unsafe {
            let result = check(sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0), "cuGraphInstantiate");
            let _ = sys::cuGraphDestroy(graph);
            result?;
        }
        Ok(Graph { exec, gpu: gpu.clone(), buffers: PhantomData })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(gpu) = self.device.gpu()
            && gpu.enter().is_ok()
        {
            // SAFETY: created by `new`, destroyed once; the driver finishes queued work first.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.handle) };
        }
    }
}

/// A recorded sequence of launches over buffers that live at least for `'a`.
pub struct Graph<'a> {
    exec: sys::CUgraphExec,
    gpu: Arc<Gpu>,
    buffers: PhantomData<&'a mut ()>,
}

// SAFETY: as for streams.
unsafe impl Send for Graph<'_> {}

impl Graph<'_> {
    /// Queues the whole graph.
    pub fn launch(&self, stream: &Stream) -> Result<(), Error> {
        self.gpu.enter()?;
        // SAFETY: instantiated by `capture` and not destroyed while self lives.
        check(unsafe { sys::cuGraphLaunch(self.exec, stream.handle) }, "cuGraphLaunch")
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: instantiated by `capture`, destroyed once.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}

/// A point in a stream, for timing.
pub struct Event {
    handle: sys::CUevent,
    gpu: Arc<Gpu>,
}

impl Event {
    /// Records a new event. GPU only.
    ///
    /// # Panics
    /// On the CPU device.
    pub fn record(stream: &Stream) -> Result<Self, Error> {
        let gpu = stream.gpu().clone();
        gpu.enter()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes the handle.
        check(unsafe { sys::cuEventCreate(&mut handle, 0) }, "cuEventCreate")?;
        let event = Event { handle, gpu };
        // SAFETY: both handles are live.
        check(unsafe { sys::cuEventRecord(event.handle, stream.handle) }, "cuEventRecord")?;
        Ok(event)
    }

    /// Milliseconds from `earlier` to this event, once both have happened (waits for it).
    pub fn elapsed_ms(&self, earlier: &Event) -> Result<f32, Error> {
        self.gpu.enter()?;
        let mut ms = 0.0;
        // SAFETY: both handles are live and recorded.
        unsafe {
            check(sys::cuEventSynchronize(self.handle), "cuEventSynchronize")?;
            check(sys::cuEventElapsedTime(&mut ms, earlier.handle, self.handle), "cuEventElapsedTime")?;
        }
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: created by `record`, destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}
