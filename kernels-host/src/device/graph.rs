//! Recorded sequences of launches, which keep the memory that they run on.
use super::stream::{Queue, Stream};
use super::{DeviceMemory, MIXED, cuda, emulated};
use crate::Error;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a capture on this thread has met so far, by address of the allocation.
type Kept = BTreeMap<usize, Arc<DeviceMemory>>;

thread_local! {
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept::new()) };
}

/// Every address that a launch gets comes from a view, which tells here whose it is. A graph that is being captured on
/// this thread will keep it.
#[inline]
pub(crate) fn keep(memory: &Arc<DeviceMemory>) {
    if CAPTURING.get() {
        KEPT.with_borrow_mut(|kept| {
            kept.entry(Arc::as_ptr(memory).addr()).or_insert_with(|| memory.clone());
        });
    }
}

/// A capture on this thread, also where it unwinds.
struct Capture;

impl Capture {
    fn begin() -> Self {
        assert!(!CAPTURING.replace(true), "a capture within a capture");
        Capture
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        CAPTURING.set(false);
        KEPT.take();
    }
}

/// A recorded sequence of launches. It shares the buffers that they read and write: these live as long as the graph.
pub struct Graph {
    recorded: Recorded,
    /// Dropped after `recorded`.
    kept: Vec<Arc<DeviceMemory>>,
}

enum Recorded {
    Cuda(cuda::Graph),
    Emulated(emulated::Graph),
}

impl Stream {
    /// Records what `work` launches and fills into a graph instead of running it. Kernels that `work` launches for the
    /// first time must have been loaded before (see [`Stream::prepare`]). `work` runs on this thread only.
    ///
    /// # Panics
    /// On the CPU device, and within another capture.
    pub fn capture<E: From<Error>>(&self, work: impl FnOnce(&Stream) -> Result<(), E>) -> Result<Graph, E> {
        let _capture = Capture::begin();
        let recorded = match self.queue() {
            Queue::Cpu => panic!("{MIXED}"),
            Queue::Cuda(queue) => Recorded::Cuda(queue.capture(|| work(self))?),
            Queue::Emulated(queue) => Recorded::Emulated(queue.capture(|| work(self))?),
        };
        Ok(Graph { recorded, kept: KEPT.take().into_values().collect() })
    }
}

impl Graph {
    /// Queues the whole graph.
    ///
    /// # Panics
    /// If the stream is of another kind of device.
    pub fn launch(&self, stream: &Stream) -> Result<(), Error> {
        match (&self.recorded, stream.queue()) {
            (Recorded::Cuda(graph), Queue::Cuda(queue)) => queue.replay(graph),
            (Recorded::Emulated(graph), Queue::Emulated(queue)) => queue.replay(graph),
            _ => panic!("a graph runs on the kind of device that recorded it"),
        }
    }

    /// Allocations that it keeps.
    pub fn buffers(&self) -> usize {
        self.kept.len()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Buffer, DType, Device, Error, Target};

    #[test]
    fn a_graph_keeps_its_buffers() {
        let device = Device::emulated(Target::Sm80, 1);
        let stream = device.stream().unwrap();
        let mut buffer = Buffer::new(&device, DType::U32, 64).unwrap();
        let other = Buffer::new(&device, DType::U32, 64).unwrap();
        let (free, _) = device.memory().unwrap().unwrap();
        let graph = stream.capture::<Error>(|stream| stream.fill(buffer.view_mut(), 3)).unwrap();
        assert_eq!(graph.buffers(), 1);
        drop((buffer, other));
        let (now, _) = device.memory().unwrap().unwrap();
        assert_eq!(now - free, 256, "the other buffer is free, the graph's is not");
        graph.launch(&stream).unwrap();
        drop(graph);
        assert_eq!(device.memory().unwrap().unwrap().0 - free, 512);
    }
}
