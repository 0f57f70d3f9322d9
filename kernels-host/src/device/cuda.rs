//! A stream of a GPU, its events and graphs: what the driver does with them.
use super::Launch;
use super::gpu::{Gpu, check};
use super::pinned::Pitched;
use crate::Error;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::Arc;

/// A driver's stream.
pub(super) struct Queue {
    gpu: Arc<Gpu>,
    handle: sys::CUstream,
}

// SAFETY: a stream handle may be used from any thread; every call makes the context current first.
unsafe impl Send for Queue {}
// SAFETY: as above; the driver serialises calls on one stream.
unsafe impl Sync for Queue {}

impl Queue {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Self, Error> {
        gpu.enter()?;
        let mut handle = std::ptr::null_mut();
        // Independent of the legacy default stream.
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes the handle.
        check(unsafe { sys::cuStreamCreate(&mut handle, flags) }, "cuStreamCreate")?;
        Ok(Queue { gpu: gpu.clone(), handle })
    }

    /// The driver's handle.
    pub fn handle(&self) -> sys::CUstream {
        self.handle
    }

    /// Launches `entry` in blocks of `threads` threads.
    ///
    /// # Safety
    /// The pointers are to the entry's parameters, and the addresses among these valid for what the entry does, until
    /// the stream has run it.
    pub unsafe fn launch(
        &self,
        entry: &'static str,
        threads: u32,
        launch: Launch,
        params: &mut [*mut c_void],
    ) -> Result<(), Error> {
        let function = self.gpu.function(entry, launch.shared, launch.carveout)?;
        self.gpu.enter()?;
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
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: self.handle,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the configuration and its attributes live through the call; the rest is the caller's promise.
        let result =
            unsafe { sys::cuLaunchKernelEx(&config, function.handle, params.as_mut_ptr(), std::ptr::null_mut()) };
        if result == sys::CUresult::CUDA_SUCCESS { Ok(()) } else { check(result, &format!("launching {entry}")) }
    }

    /// Queues a copy of the locked bytes from `at` on to device memory, which a view covers.
    pub fn upload_locked(&self, from: &mut Locked, at: usize, to: Pitched) -> Result<(), Error> {
        self.gpu.enter()?;
        from.begin(self)?;
        // SAFETY: the caller has checked that the bytes are there; nobody touches them before the event, which
        // `Locked::bytes` and its drop wait for. The view covers the rows.
        let result = unsafe {
            let source = from.pointer.add(at);
            let one = |row: usize| {
                let sink = to.address + (row * to.pitch) as u64;
                sys::cuMemcpyHtoDAsync_v2(sink, source.add(row * to.width).cast(), to.width, self.handle)
            };
            let all = || sys::cuMemcpy2DAsync_v2(&host_to_device(source, to), self.handle);
            by_rows(to, one, all)
        };
        check(result, "copying from pinned memory")?;
        from.end(self)
    }

    /// Queues a copy of device memory, which a view covers, to the locked bytes from `at` on.
    pub fn download_locked(&self, from: Pitched, to: &mut Locked, at: usize) -> Result<(), Error> {
        self.gpu.enter()?;
        to.begin(self)?;
        // SAFETY: as in `upload_locked`.
        let result = unsafe {
            let sink = to.pointer.add(at);
            let one = |row: usize| {
                let source = from.address + (row * from.pitch) as u64;
                sys::cuMemcpyDtoHAsync_v2(sink.add(row * from.width).cast(), source, from.width, self.handle)
            };
            let all = || sys::cuMemcpy2DAsync_v2(&device_to_host(from, sink), self.handle);
            by_rows(from, one, all)
        };
        check(result, "copying to pinned memory")?;
        to.end(self)
    }

    /// Copies to the device address `to`; a view covers the bytes there.
    pub fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), Error> {
        self.gpu.enter()?;
        // SAFETY: a view covers that many bytes of device memory. From pageable memory the call returns after the
        // source was read.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.handle) };
        check(result, "cuMemcpyHtoDAsync")
    }

    /// Copies from the device address `from`, where a view covers the bytes, and waits.
    pub fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.gpu.enter()?;
        // SAFETY: a view covers that many bytes; the stream is drained before `bytes` are used.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), from, bytes.len(), self.handle) };
        check(result, "cuMemcpyDtoHAsync")?;
        self.synchronize()
    }

    /// Copies `len` bytes from one device address to another; views cover both.
    pub fn copy(&self, from: u64, to: u64, len: usize) -> Result<(), Error> {
        self.gpu.enter()?;
        // SAFETY: views cover that many bytes of device memory at both.
        check(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, len, self.handle) }, "cuMemcpyDtoDAsync")
    }

    /// Copies rows from the device address `from`, as far apart as at `to`; a view covers both.
    pub fn copy_rows(&self, from: u64, to: Pitched) -> Result<(), Error> {
        self.gpu.enter()?;
        let copy = sys::CUDA_MEMCPY2D {
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcDevice: from,
            srcPitch: to.pitch,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstDevice: to.address,
            dstPitch: to.pitch,
            ..no_copy(to)
        };
        // SAFETY: the view covers both, and they do not overlap.
        let result = unsafe {
            let one = |row: usize| {
                let row = (row * to.pitch) as u64;
                sys::cuMemcpyDtoDAsync_v2(to.address + row, from + row, to.width, self.handle)
            };
            by_rows(to, one, || sys::cuMemcpy2DAsync_v2(&copy, self.handle))
        };
        check(result, "cuMemcpy2DAsync between columns")
    }

    /// Fills `len` bytes at the device address `to`, which a view covers.
    pub fn fill(&self, to: u64, byte: u8, len: usize) -> Result<(), Error> {
        self.gpu.enter()?;
        // SAFETY: a view covers that many bytes.
        check(unsafe { sys::cuMemsetD8Async(to, byte, len, self.handle) }, "cuMemsetD8Async")
    }

    pub fn synchronize(&self) -> Result<(), Error> {
        self.gpu.enter()?;
        // SAFETY: the handle is this stream's.
        check(unsafe { sys::cuStreamSynchronize(self.handle) }, "cuStreamSynchronize")
    }

    /// Records what `work` queues.
    pub fn capture<E: From<Error>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        self.gpu.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the handle is this stream's; the capture is ended below whatever `work` returns.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.handle, mode) }, "cuStreamBeginCapture")?;
        let done = work();
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
        let graph = Graph { exec, gpu: self.gpu.clone() };
        // Its device memory now and not at the first launch.
        // SAFETY: both handles are live.
        check(unsafe { sys::cuGraphUpload(graph.exec, self.handle) }, "cuGraphUpload").map_err(E::from)?;
        Ok(graph)
    }

    /// Queues the whole graph.
    pub fn replay(&self, graph: &Graph) -> Result<(), Error> {
        self.gpu.enter()?;
        // SAFETY: instantiated by `capture` and not destroyed while the graph lives.
        check(unsafe { sys::cuGraphLaunch(graph.exec, self.handle) }, "cuGraphLaunch")
    }

    /// Records an event.
    pub fn record(&self) -> Result<Event, Error> {
        self.gpu.enter()?;
        let mut event = Event::new(&self.gpu, true)?;
        self.record_into(&mut event)?;
        Ok(event)
    }

    /// Records an event again.
    pub fn record_into(&self, event: &mut Event) -> Result<(), Error> {
        self.gpu.enter()?;
        // SAFETY: both handles are live.
        check(unsafe { sys::cuEventRecord(event.handle, self.handle) }, "cuEventRecord")
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: created by `new`, destroyed once; the driver finishes queued work first.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.handle) };
        }
    }
}

/// An executable graph.
pub(super) struct Graph {
    exec: sys::CUgraphExec,
    gpu: Arc<Gpu>,
}

// SAFETY: as for streams.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: instantiated by `capture`, destroyed once.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}

/// A recorded event.
pub(super) struct Event {
    handle: sys::CUevent,
    gpu: Arc<Gpu>,
}

// SAFETY: as for streams.
unsafe impl Send for Event {}

impl Event {
    /// An event that is done.
    fn new(gpu: &Arc<Gpu>, timing: bool) -> Result<Self, Error> {
        gpu.enter()?;
        let mut handle = std::ptr::null_mut();
        let flags = if timing { 0 } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 };
        // SAFETY: writes the handle.
        check(unsafe { sys::cuEventCreate(&mut handle, flags) }, "cuEventCreate")?;
        Ok(Event { handle, gpu: gpu.clone() })
    }

    pub fn is_done(&self) -> Result<bool, Error> {
        self.gpu.enter()?;
        // SAFETY: the handle is live.
        match unsafe { sys::cuEventQuery(self.handle) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check(result, "cuEventQuery").map(|()| true),
        }
    }

    pub fn wait(&self) -> Result<(), Error> {
        self.gpu.enter()?;
        // SAFETY: the handle is live.
        check(unsafe { sys::cuEventSynchronize(self.handle) }, "cuEventSynchronize")
    }

    /// Waits for both.
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

/// Page-locked host memory, and the last copy from or into it.
pub(super) struct Locked {
    pointer: *mut u8,
    bytes: usize,
    copied: Event,
    /// The stream of a copy that has perhaps not happened yet.
    pending: Option<sys::CUstream>,
}

// SAFETY: the memory is this value's alone, and handles may be used from any thread.
unsafe impl Send for Locked {}

impl Locked {
    /// Zeroed memory.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self, Error> {
        let copied = Event::new(gpu, false)?;
        let (mut pointer, bytes) = (std::ptr::null_mut(), bytes.max(16));
        // SAFETY: writes the address.
        let result = unsafe { sys::cuMemHostAlloc(&mut pointer, bytes, sys::CU_MEMHOSTALLOC_PORTABLE) };
        check(result, &format!("cuMemHostAlloc of {bytes} bytes"))?;
        let pointer = pointer.cast::<u8>();
        // SAFETY: so many bytes were allocated just now.
        unsafe { pointer.write_bytes(0, bytes) };
        Ok(Locked { pointer, bytes, copied, pending: None })
    }

    pub fn is_idle(&self) -> Result<bool, Error> {
        if self.pending.is_none() { Ok(true) } else { self.copied.is_done() }
    }

    /// The memory, after the last copy.
    pub fn bytes(&mut self) -> Result<&mut [u8], Error> {
        if self.pending.is_some() {
            self.copied.wait()?;
            self.pending = None;
        }
        // SAFETY: allocated with this size and zeroed; no copy is under way, and a new one needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) })
    }

    /// Before a copy: one event follows the copies of one stream only.
    fn begin(&mut self, queue: &Queue) -> Result<(), Error> {
        if self.pending.is_some_and(|stream| stream != queue.handle) {
            self.copied.wait()?;
        }
        self.pending = Some(queue.handle);
        Ok(())
    }

    fn end(&mut self, queue: &Queue) -> Result<(), Error> {
        queue.record_into(&mut self.copied)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if self.pending.is_some() {
            // A lost context copies nothing any more.
            let _ = self.copied.wait();
        }
        if self.copied.gpu.enter().is_ok() {
            // SAFETY: allocated by `new`, freed once; no copy is under way.
            let _ = unsafe { sys::cuMemFreeHost(self.pointer.cast()) };
        }
    }
}

/// The driver's largest distance of rows in a copy (`CU_DEVICE_ATTRIBUTE_MAX_PITCH`): 16 layers of a cache in 80 GB are
/// further apart.
const MAX_PITCH: usize = i32::MAX as usize;

/// All rows by one call, or each by its own.
fn by_rows(
    rows: Pitched,
    mut one: impl FnMut(usize) -> sys::CUresult,
    all: impl FnOnce() -> sys::CUresult,
) -> sys::CUresult {
    if rows.rows > 1 && rows.pitch <= MAX_PITCH {
        return all();
    }
    (0..rows.rows)
        .map(&mut one)
        .find(|result| *result != sys::CUresult::CUDA_SUCCESS)
        .unwrap_or(sys::CUresult::CUDA_SUCCESS)
}

/// Rows that follow each other on the host, to rows that need not on the device.
fn host_to_device(from: *const u8, to: Pitched) -> sys::CUDA_MEMCPY2D {
    sys::CUDA_MEMCPY2D {
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: from.cast(),
        srcPitch: to.width,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstDevice: to.address,
        dstPitch: to.pitch,
        ..no_copy(to)
    }
}

/// The other way.
fn device_to_host(from: Pitched, to: *mut u8) -> sys::CUDA_MEMCPY2D {
    sys::CUDA_MEMCPY2D {
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcDevice: from.address,
        srcPitch: from.pitch,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        dstHost: to.cast(),
        dstPitch: from.width,
        ..no_copy(from)
    }
}

/// The extent, and nothing else.
fn no_copy(extent: Pitched) -> sys::CUDA_MEMCPY2D {
    sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: std::ptr::null(),
        srcDevice: 0,
        srcArray: std::ptr::null_mut(),
        srcPitch: 0,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        dstHost: std::ptr::null_mut(),
        dstDevice: 0,
        dstArray: std::ptr::null_mut(),
        dstPitch: 0,
        WidthInBytes: extent.width,
        Height: extent.rows,
    }
}
