//! The device as its users see it: memory and launches.

use std::collections::{BTreeMap, HashMap};

use crate::exec::launch;
use crate::memory::Memory;
use crate::module::Entry;
use crate::{Counters, Fault, FaultKind, Module, residency};

/// Shared memory of a block at most, in bytes: that of compute capability 9.0.
const MAX_SHARED: usize = 232_448;
/// Blocks of a cluster at most, where the entry opts in to more than the portable eight.
const MAX_CLUSTER: u32 = 16;

/// An emulated GPU.
#[derive(Debug)]
pub struct Device {
    memory: Memory,
    seed: u64,
    limit: u64,
    resident: Option<usize>,
    /// Addresses of module variables, by the module and the variable's name.
    variables: HashMap<(u64, String), u64>,
}

/// Blocks of a launch and threads of a block, per axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// `%nctaid`.
    pub blocks: [u32; 3],
    /// `%ntid`.
    pub threads: [u32; 3],
}

impl Grid {
    /// A grid of one axis.
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { blocks: [blocks, 1, 1], threads: [threads, 1, 1] }
    }
}

/// What a launch may have besides its grid and parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaunchOptions {
    /// Bytes of dynamic shared memory of each block.
    pub shared_bytes: usize,
    /// Blocks of a cluster, per axis, each a divisor of the grid's; `None` for what the entry declares, or 1.
    pub cluster: Option<[u32; 3]>,
    /// A programmatic dependent launch: it may begin before the launch before it is finished, so what that one writes
    /// must not be touched before `griddepcontrol.wait`. The first launch after [`Device::synchronize`] or a
    /// [`Device::write`] depends on nothing.
    pub dependent: bool,
}

/// An argument of a launch.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// A 32-bit integer.
    U32(u32),
    /// A 64-bit integer or an address.
    U64(u64),
    /// A single-precision number.
    F32(f32),
    /// An argument by value, such as a tensor map.
    Bytes(Vec<u8>),
}

impl Param {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::U32(value) => value.to_le_bytes().to_vec(),
            Self::U64(value) => value.to_le_bytes().to_vec(),
            Self::F32(value) => value.to_le_bytes().to_vec(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Warp instructions by opcode.
    pub instructions: BTreeMap<String, u64>,
    /// What they asked of memory and of the tensor cores.
    pub counters: Counters,
}

impl Report {
    /// All warp instructions.
    pub fn total(&self) -> u64 {
        self.instructions.values().sum()
    }
}

impl Device {
    /// A device whose launches are scheduled by `seed`.
    pub fn new(seed: u64) -> Self {
        Self { memory: Memory::new(), seed, limit: 1 << 36, resident: None, variables: HashMap::new() }
    }

    /// Ends launches that execute more than `instructions` warp instructions (2^36 at first).
    pub fn set_instruction_limit(&mut self, instructions: u64) {
        self.limit = instructions;
    }

    /// Lets at most `blocks` blocks run at once, or one cluster if it has more. Without this, as many are resident as
    /// on an H200: 132 multiprocessors, each with as many blocks as their threads, their shared memory and the entry's
    /// `.minnctapersm` allow.
    pub fn set_resident_blocks(&mut self, blocks: usize) {
        self.resident = Some(blocks);
    }

    /// Reserves `bytes` bytes of global memory, uninitialised, at a multiple of 256; `name` is
    /// what faults call it.
    pub fn alloc(&mut self, name: &str, bytes: usize) -> u64 {
        self.memory.alloc(name, bytes)
    }

    /// Gives an allocation back; later accesses to it are out of bounds.
    ///
    /// # Errors
    /// `address` is not the start of an allocation.
    pub fn free(&mut self, address: u64) -> Result<(), Fault> {
        if self.memory.free(address) {
            return Ok(());
        }
        Err(FaultKind::Launch { what: format!("no allocation starts at {address:#x}") }.into())
    }

    /// Copies `data` to the device.
    ///
    /// # Errors
    /// The range is not within one allocation.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.memory.settle();
        Ok(self.memory.write(address, data)?)
    }

    /// Waits for all launches, as a host does before it uses their results. They are executed when they are launched;
    /// this only says that the next dependent launch has nothing to wait for.
    pub fn synchronize(&mut self) {
        self.memory.settle();
    }

    /// Copies `bytes` bytes from the device.
    ///
    /// # Errors
    /// The range is not within one allocation, or some of it was never written.
    pub fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>, Fault> {
        Ok(self.memory.read(address, bytes)?.to_vec())
    }

    /// Runs entry `name` of `module` with `shared_bytes` bytes of dynamic shared memory.
    ///
    /// # Errors
    /// A launch that does not fit the entry, or what the sanitizer found first.
    pub fn launch(
        &mut self,
        module: &Module,
        name: &str,
        grid: Grid,
        params: &[Param],
        shared_bytes: usize,
    ) -> Result<Report, Fault> {
        self.launch_with(module, name, grid, params, &LaunchOptions { shared_bytes, ..LaunchOptions::default() })
    }

    /// Runs entry `name` of `module` as `options` say.
    ///
    /// # Errors
    /// As [`Self::launch`].
    pub fn launch_with(
        &mut self,
        module: &Module,
        name: &str,
        grid: Grid,
        params: &[Param],
        options: &LaunchOptions,
    ) -> Result<Report, Fault> {
        let shared_bytes = options.shared_bytes;
        let Some(entry) = module.entry(name) else {
            return Err(refused(format!("the module has no entry `{name}`")));
        };
        check_grid(entry, grid)?;
        check_shared(entry, shared_bytes)?;
        let cluster = cluster_of(entry, grid, options.cluster)?;
        let params = marshal(entry, params)?;
        let globals = self.place_globals(module)?;
        let setup = launch::Setup {
            entry,
            grid,
            cluster,
            params: &params,
            globals: &globals,
            shared_bytes,
            seed: self.seed,
            limit: self.limit,
            resident: self.resident_clusters(entry, grid, shared_bytes, cluster),
            dependent: options.dependent,
        };
        launch::run(&setup, &mut self.memory)
    }

    fn resident_clusters(&self, entry: &Entry, grid: Grid, shared_bytes: usize, cluster: [u32; 3]) -> usize {
        let blocks: u32 = cluster.iter().product();
        match self.resident {
            Some(resident) => (resident / blocks as usize).max(1),
            None => {
                let threads = grid.threads.iter().product();
                residency::clusters(entry, threads, entry.static_shared + shared_bytes, blocks)
            }
        }
    }

    /// Addresses of the module's variables, which live as long as the device.
    fn place_globals(&mut self, module: &Module) -> Result<Vec<u64>, Fault> {
        let mut found = Vec::new();
        for variable in &module.globals {
            let key = (module.id, variable.name.clone());
            if let Some(address) = self.variables.get(&key) {
                found.push(*address);
                continue;
            }
            let address = self.memory.alloc(&variable.name, variable.bytes);
            let mut bytes = variable.init.clone();
            bytes.resize(variable.bytes, 0);
            self.memory.write(address, &bytes)?;
            self.variables.insert(key, address);
            found.push(address);
        }
        Ok(found)
    }
}

fn refused(what: String) -> Fault {
    FaultKind::Launch { what }.into()
}

fn check_grid(entry: &Entry, grid: Grid) -> Result<(), Fault> {
    let threads: u64 = grid.threads.iter().map(|n| u64::from(*n)).product();
    let limit = u64::from(entry.max_threads.unwrap_or(1024).min(1024));
    if threads == 0 || threads > limit {
        let what = format!("{threads} threads per block; `{}` takes 1 to {limit}", entry.name);
        return Err(refused(what));
    }
    if grid.blocks.contains(&0) {
        return Err(refused(format!("a grid of {:?} blocks is empty", grid.blocks)));
    }
    Ok(())
}

/// Blocks of a cluster, per axis.
fn cluster_of(entry: &Entry, grid: Grid, asked: Option<[u32; 3]>) -> Result<[u32; 3], Fault> {
    if let (Some(asked), Some(declared)) = (asked, entry.cluster)
        && asked != declared
    {
        return Err(refused(format!("clusters of {asked:?} blocks; `{}` declares {declared:?}", entry.name)));
    }
    let cluster = asked.or(entry.cluster).unwrap_or([1; 3]);
    let blocks: u64 = cluster.iter().map(|n| u64::from(*n)).product();
    let limit = u64::from(entry.max_cluster.unwrap_or(MAX_CLUSTER).min(MAX_CLUSTER));
    if blocks == 0 || blocks > limit {
        return Err(refused(format!("clusters of {blocks} blocks; `{}` takes 1 to {limit}", entry.name)));
    }
    if grid.blocks.iter().zip(&cluster).any(|(blocks, cluster)| blocks % cluster != 0) {
        return Err(refused(format!("a grid of {:?} blocks is not made of clusters of {cluster:?}", grid.blocks)));
    }
    Ok(cluster)
}

fn check_shared(entry: &Entry, dynamic: usize) -> Result<(), Fault> {
    let total = entry.static_shared.saturating_add(dynamic);
    if total > MAX_SHARED {
        return Err(refused(format!("{total} bytes of shared memory; a block has {MAX_SHARED} at most")));
    }
    Ok(())
}

/// The parameters as the kernel sees them.
fn marshal(entry: &Entry, params: &[Param]) -> Result<Vec<u8>, Fault> {
    if params.len() != entry.params.len() {
        let (given, wanted) = (params.len(), entry.params.len());
        return Err(refused(format!("{given} parameters; `{}` takes {wanted}", entry.name)));
    }
    let mut buffer = Vec::new();
    for (number, (param, slot)) in params.iter().zip(&entry.params).enumerate() {
        let bytes = param.bytes();
        if bytes.len() != slot.bytes {
            let (given, wanted) = (bytes.len(), slot.bytes);
            let name = &entry.name;
            let what = format!("parameter {number} of `{name}` has {wanted} bytes, not {given}");
            return Err(refused(what));
        }
        buffer.resize(slot.offset, 0);
        buffer.extend_from_slice(&bytes);
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_may_move_between_threads() {
        fn movable<T: Send>() {}
        movable::<Device>();
    }
}
