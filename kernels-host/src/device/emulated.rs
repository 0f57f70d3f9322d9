//! An emulated GPU: the PTX of a real one's launches, executed on the host under a sanitizer.
//!
//! A launch has ended when it returns, so streams only keep what a capture records. Everything of a device is behind
//! one lock; devices are independent of each other.
use super::Launch;
use crate::{Error, Target, ptx};
use kernels_gpu::prim::DevicePtr;
use ptx_emulator::{Grid, LaunchOptions, Module, Param, Report};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Instant;

/// Multiprocessors of each group that a cluster stays within: an H200's 132.
const GROUPS: [usize; 8] = [18, 18, 16, 16, 16, 16, 16, 16];
/// Shared memory of a multiprocessor, and what each resident block takes of it beyond its own.
const SHARED: usize = 228 << 10;
const SHARED_PER_BLOCK: usize = 1 << 10;
/// Threads of a multiprocessor.
const THREADS: usize = 2048;
/// Memory in all. Small, because the host keeps several bytes for each, and an engine fills what it gets with its cache.
const MEMORY: usize = 256 << 20;
/// A launch that executes more warp instructions (some minutes' worth) does not end.
const LONGEST_LAUNCH: u64 = 1 << 32;

/// What an emulated device has executed.
#[derive(Clone, Debug, Default)]
pub struct Emulation {
    /// Warp instructions.
    pub instructions: u64,
    /// Launches by PTX entry.
    pub launches: BTreeMap<&'static str, Launches>,
}

/// The launches of an entry.
#[derive(Clone, Debug, Default)]
pub struct Launches {
    /// How many.
    pub count: u64,
    /// What the last one did.
    pub last: Report,
}

pub(crate) struct Emulated {
    target: Target,
    seed: u64,
    state: Mutex<State>,
}

struct State {
    device: ptx_emulator::Device,
    /// Bytes in use.
    used: usize,
    done: Emulation,
}

type Modules = Mutex<HashMap<(Target, &'static str), Arc<Module>>>;

/// Every entry's PTX is parsed once per process.
static MODULES: LazyLock<Modules> = LazyLock::new(Mutex::default);

impl Emulated {
    pub fn new(target: Target, seed: u64) -> Self {
        let mut device = ptx_emulator::Device::new(seed);
        device.set_instruction_limit(LONGEST_LAUNCH);
        Emulated { target, seed, state: Mutex::new(State { device, used: 0, done: Emulation::default() }) }
    }

    pub fn target(&self) -> Target {
        self.target
    }

    pub fn compute_capability(&self) -> (i32, i32) {
        match self.target {
            Target::Sm80 => (8, 0),
            Target::Sm90a => (9, 0),
        }
    }

    pub fn multiprocessors(&self) -> usize {
        GROUPS.iter().sum()
    }

    /// Free and total bytes.
    pub fn memory(&self) -> (usize, usize) {
        (MEMORY.saturating_sub(self.state().used), MEMORY)
    }

    pub fn emulation(&self) -> Emulation {
        self.state().done.clone()
    }

    /// As `cuOccupancyMaxActiveClusters`, were registers no limit.
    pub fn clusters(&self, threads: u32, cluster: u32, shared: u32) -> usize {
        let blocks = (SHARED / (shared as usize + SHARED_PER_BLOCK)).min(THREADS / threads as usize).min(32);
        GROUPS.iter().map(|group| group * blocks / cluster as usize).sum()
    }

    pub fn alloc(self: &Arc<Self>, name: &str, bytes: usize) -> Result<Allocation, Error> {
        let mut state = self.state();
        let free = MEMORY.saturating_sub(state.used);
        if bytes > free {
            return Err(Error::OutOfMemory { wanted: bytes, free, total: MEMORY });
        }
        state.used += bytes;
        let ptr = DevicePtr(state.device.alloc(name, bytes));
        Ok(Allocation { ptr, bytes, device: self.clone() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn fault(&self, what: &str, fault: impl std::fmt::Display) -> Error {
        Error::Emulator { what: what.into(), target: self.target, fault: fault.to_string(), seed: self.seed }
    }

    /// Parses an entry's PTX.
    pub fn load(&self, entry: &'static str) -> Result<(), Error> {
        self.module(entry).map(drop)
    }

    fn module(&self, entry: &'static str) -> Result<Arc<Module>, Error> {
        let (target, text) = ptx::newest(self.target, entry)
            .ok_or_else(|| Error::NoEntry { entry: entry.into(), target: self.target.to_string() })?;
        let mut modules = MODULES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(module) = modules.get(&(target, entry)) {
            return Ok(module.clone());
        }
        let module = Arc::new(Module::parse(text).map_err(|error| self.fault(entry, error))?);
        modules.insert((target, entry), module.clone());
        Ok(module)
    }

    fn run(&self, call: &Call) -> Result<(), Error> {
        let mut state = self.state();
        let state = &mut *state;
        match call {
            Call::Launch { entry, module, grid, params, options } => {
                let report = state.device.launch_with(module, entry, *grid, params, options);
                let report = report.map_err(|fault| self.fault(entry, fault))?;
                state.done.instructions += report.total();
                let launches = state.done.launches.entry(entry).or_default();
                launches.count += 1;
                launches.last = report;
            }
            Call::Copy { from, to, len } => {
                let bytes = state.device.read(*from, *len).map_err(|fault| self.fault("a copy", fault))?;
                state.device.write(*to, &bytes).map_err(|fault| self.fault("a copy", fault))?;
            }
            Call::Fill { to, byte, len } => {
                state.device.write(*to, &vec![*byte; *len]).map_err(|fault| self.fault("a fill", fault))?;
            }
        }
        Ok(())
    }
}

/// An allocation, given back on drop.
pub(crate) struct Allocation {
    ptr: DevicePtr,
    bytes: usize,
    device: Arc<Emulated>,
}

impl Allocation {
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let mut state = self.device.state();
        state.used -= self.bytes;
        // Allocated by `alloc`, freed once.
        let _ = state.device.free(self.ptr.0);
    }
}

/// What a graph can hold.
#[derive(Clone)]
enum Call {
    Launch { entry: &'static str, module: Arc<Module>, grid: Grid, params: Vec<Param>, options: LaunchOptions },
    Copy { from: u64, to: u64, len: usize },
    Fill { to: u64, byte: u8, len: usize },
}

/// A stream of an emulated device.
pub(super) struct Queue {
    device: Arc<Emulated>,
    /// What the capture that is under way has recorded.
    recorded: Mutex<Option<Vec<Call>>>,
}

impl Queue {
    pub fn new(device: &Arc<Emulated>) -> Self {
        Queue { device: device.clone(), recorded: Mutex::new(None) }
    }

    fn recorded(&self) -> MutexGuard<'_, Option<Vec<Call>>> {
        self.recorded.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn submit(&self, call: Call) -> Result<(), Error> {
        if let Some(recorded) = self.recorded().as_mut() {
            recorded.push(call);
            return Ok(());
        }
        self.device.run(&call)
    }

    /// Runs `entry` in blocks of `threads` threads.
    ///
    /// # Safety
    /// The pointers are to the entry's parameters. (Addresses among these need not be valid: the emulator checks them.)
    pub unsafe fn launch(
        &self,
        entry: &'static str,
        threads: u32,
        launch: Launch,
        params: &[*mut c_void],
    ) -> Result<(), Error> {
        let module = self.device.module(entry)?;
        let sizes = module.parameter_bytes(entry);
        assert_eq!(sizes.len(), params.len(), "parameters of {entry}");
        let params = params
            .iter()
            .zip(sizes)
            // SAFETY: each pointer is to a parameter, whose size the PTX declares as the host's type has it: one macro
            // makes both.
            .map(|(pointer, bytes)| unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), bytes) })
            .map(|bytes| Param::Bytes(bytes.to_vec()))
            .collect();
        let grid = Grid { blocks: launch.grid, threads: [threads, 1, 1] };
        let options = LaunchOptions {
            shared_bytes: launch.shared as usize,
            cluster: (launch.cluster > 1).then_some([launch.cluster, 1, 1]),
            // Of no effect on an entry that never waits, as the driver's attribute is left out for those.
            dependent: launch.dependent && self.device.target != Target::Sm80,
        };
        self.submit(Call::Launch { entry, module, grid, params, options })
    }

    pub fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), Error> {
        self.not_while_capturing("an upload");
        self.device.state().device.write(to, bytes).map_err(|fault| self.device.fault("an upload", fault))
    }

    pub fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.not_while_capturing("a download");
        let mut state = self.device.state();
        state.device.synchronize();
        let found = state.device.read(from, bytes.len());
        bytes.copy_from_slice(&found.map_err(|fault| self.device.fault("a download", fault))?);
        Ok(())
    }

    pub fn copy(&self, from: u64, to: u64, len: usize) -> Result<(), Error> {
        self.submit(Call::Copy { from, to, len })
    }

    pub fn fill(&self, to: u64, byte: u8, len: usize) -> Result<(), Error> {
        self.submit(Call::Fill { to, byte, len })
    }

    /// The driver refuses them too: a graph would read host memory that is gone.
    fn not_while_capturing(&self, what: &str) {
        assert!(self.recorded().is_none(), "{what} while a graph is captured");
    }

    /// Records what `work` queues.
    pub fn capture<E>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        *self.recorded() = Some(Vec::new());
        let done = work();
        let calls = self.recorded().take().unwrap_or_default();
        done.map(|()| Graph { calls })
    }

    /// Runs the whole graph.
    pub fn replay(&self, graph: &Graph) -> Result<(), Error> {
        graph.calls.iter().try_for_each(|call| self.submit(call.clone()))
    }
}

/// What a capture recorded.
pub(super) struct Graph {
    calls: Vec<Call>,
}

/// A moment: emulation takes the host's time.
pub(super) struct Event(Instant);

impl Event {
    pub fn now() -> Self {
        Event(Instant::now())
    }

    pub fn elapsed_ms(&self, earlier: &Event) -> f32 {
        self.0.duration_since(earlier.0).as_secs_f32() * 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_clusters_as_an_h200_runs() {
        let device = Emulated::new(Target::Sm90a, 0);
        // What cuOccupancyMaxActiveClusters says of blocks that have a multiprocessor each.
        assert_eq!(device.clusters(384, 4, 227 << 10), 32);
        assert_eq!(device.clusters(384, 2, 227 << 10), 66);
        assert_eq!(device.clusters(384, 1, 227 << 10), 132);
    }
}
