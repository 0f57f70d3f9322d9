//! Global memory: named allocations far enough apart that an overrun hits nothing.

use super::predecessor::{Footprint, Predecessors, Use};
use super::shadow::{By, Conflict, History, PAGE, Page, SECTOR};
use super::{UNINITIALISED, WRITTEN};
use crate::{Access, FaultKind};

/// Distance between allocations at least.
const GAP: u64 = 1 << 20;

/// All allocations, by ascending base address, and what this launch did to them.
#[derive(Debug)]
pub(crate) struct Memory {
    allocations: Vec<Allocation>,
    next: u64,
    /// The allocation that was found last.
    recent: usize,
    /// What the running launch has done.
    pub history: History,
    predecessors: Predecessors,
    /// Entries of all launches so far.
    launches: Vec<String>,
    geometry: Geometry,
}

/// Where a thread is in its grid.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Geometry {
    /// Blocks per axis.
    pub blocks: [u32; 3],
    /// Warps of a block.
    pub warps: u32,
}

#[derive(Debug)]
struct Allocation {
    name: String,
    base: u64,
    bytes: Vec<u8>,
    state: Vec<u8>,
    /// Records of the running launch, page by page; none until it touches the allocation.
    pages: Vec<Option<Box<Page>>>,
}

impl Memory {
    pub fn new() -> Self {
        Self {
            allocations: Vec::new(),
            next: 0x7f00_0000_0000,
            recent: 0,
            history: History::default(),
            predecessors: Predecessors::default(),
            launches: Vec::new(),
            geometry: Geometry::default(),
        }
    }

    /// Reserves `bytes` bytes at a multiple of 256, as the driver does.
    pub fn alloc(&mut self, name: &str, bytes: usize) -> u64 {
        let base = self.next;
        self.next = (base + bytes as u64 + GAP).next_multiple_of(256);
        self.allocations.push(Allocation {
            name: name.to_owned(),
            base,
            bytes: vec![0; bytes],
            state: vec![UNINITIALISED; bytes],
            pages: Vec::new(),
        });
        base
    }

    /// Returns the allocation that starts at `address`; false if there is none.
    pub fn free(&mut self, address: u64) -> bool {
        let found = self.allocations.binary_search_by_key(&address, |found| found.base);
        found.map(|at| self.allocations.remove(at)).is_ok()
    }

    // Launches.

    /// Forgets the last launch, or if the next one is dependent, keeps what it may not have finished.
    pub fn begin_launch(&mut self, entry: &str, geometry: Geometry, dependent: bool) {
        let launch = self.launches.len().wrapping_sub(1) as u32;
        let mut last = Footprint::default();
        for allocation in &mut self.allocations {
            for (at, page) in allocation.pages.drain(..).enumerate() {
                if let (Some(page), true) = (page, dependent) {
                    last.add(allocation.base + (at * PAGE) as u64, &page, launch);
                }
            }
        }
        self.predecessors.advance(last, dependent);
        self.history = History::default();
        self.launches.push(entry.to_owned());
        self.geometry = geometry;
    }

    /// The host has waited for all launches.
    pub fn settle(&mut self) {
        for allocation in &mut self.allocations {
            allocation.pages.clear();
        }
        self.predecessors = Predecessors::default();
    }

    /// Whether earlier launches may be unfinished.
    pub fn dependent(&self) -> bool {
        self.predecessors.dependent()
    }

    /// A thread has waited for them.
    pub fn waited(&mut self) {
        self.predecessors.waited = true;
    }

    // Accesses by the host and by asynchronous engines: not part of the launch's history.

    /// The allocation that holds `bytes` bytes at `address`, and their offset in it.
    fn locate(&self, access: Access, address: u64, bytes: usize) -> Result<(usize, usize), FaultKind> {
        let within = |at: usize| {
            let offset = address.checked_sub(self.allocations.get(at)?.base)? as usize;
            (offset.saturating_add(bytes) <= self.allocations[at].bytes.len()).then_some((at, offset))
        };
        if let Some(found) = within(self.recent) {
            return Ok(found);
        }
        let after = self.allocations.partition_point(|found| found.base <= address);
        if let Some(found) = after.checked_sub(1).and_then(within) {
            return Ok(found);
        }
        let place = self.describe(address, after);
        Err(FaultKind::OutOfBounds { access, bytes, address, place })
    }

    fn describe(&self, address: u64, after: usize) -> String {
        let before = after.checked_sub(1).map(|at| &self.allocations[at]);
        match (before, self.allocations.get(after)) {
            (Some(a), _) if address - a.base < a.bytes.len() as u64 + GAP / 2 => {
                format!("offset {} of `{}`, which has {} bytes", address - a.base, a.name, a.bytes.len())
            }
            (_, Some(a)) if a.base - address <= GAP / 2 => {
                format!("{} bytes before `{}`", a.base - address, a.name)
            }
            _ => "no allocation is near".into(),
        }
    }

    /// What lies at `address`: "offset 16 of `flags`, which has 64 bytes".
    pub fn place(&self, address: u64) -> String {
        self.describe(address, self.allocations.partition_point(|found| found.base <= address))
    }

    /// The bytes at `address`, all written.
    pub fn read(&self, address: u64, bytes: usize) -> Result<&[u8], FaultKind> {
        let (at, offset) = self.locate(Access::Read, address, bytes)?;
        self.allocations[at].settled(offset, bytes)
    }

    /// Writes `data` at `address`.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), FaultKind> {
        let (at, offset) = self.locate(Access::Write, address, data.len())?;
        self.allocations[at].put(offset, data);
        Ok(())
    }

    // Accesses by threads.

    /// Reads for `by`: bytes that are written, and not by a thread that races with it.
    pub fn load(&mut self, address: u64, bytes: usize, by: &By<'_>) -> Result<&[u8], FaultKind> {
        let (at, offset) = self.locate(Access::Read, address, bytes)?;
        self.recent = at;
        self.record(Access::Read, at, offset, bytes, by)?;
        if by.order.copies {
            self.fenced(at, offset, bytes, by)?;
        }
        self.allocations[at].settled(offset, bytes)
    }

    /// What threads of this launch stored to the bytes lies before a proxy fence.
    fn fenced(&self, at: usize, mut offset: usize, bytes: usize, by: &By<'_>) -> Result<(), FaultKind> {
        let end = offset + bytes;
        while offset < end {
            let next = (offset / PAGE * PAGE + PAGE).min(end);
            let page = self.allocations[at].page(offset);
            let found = page.and_then(|page| page.unfenced(offset % PAGE, next - offset, by, &self.history));
            if let Some((word, instant, lane)) = found {
                let store = self.history.instant(instant);
                let place = self.allocations[at].place(offset / PAGE * PAGE + word);
                let thread = store.slot % self.geometry.warps * 32 + u32::from(lane & 31);
                let block = self.block(store.block);
                return Err(FaultKind::Proxy {
                    place,
                    thread: format!("{thread} of block {block:?}"),
                    line: store.line,
                });
            }
            offset = next;
        }
        Ok(())
    }

    /// Coordinates of block `number` of the grid.
    fn block(&self, number: u32) -> [u32; 3] {
        let [x, y, _] = self.geometry.blocks;
        [number % x, number / x % y, number / x / y]
    }

    /// Writes for `by`.
    pub fn store(&mut self, address: u64, data: &[u8], by: &By<'_>) -> Result<(), FaultKind> {
        let (at, offset) = self.locate(Access::Write, address, data.len())?;
        self.recent = at;
        // Lanes that store the same value to the same word at once agree on the outcome.
        let found = &self.allocations[at];
        let agreed = found.bytes[offset..offset + data.len()] == *data
            && found.state[offset..offset + data.len()].iter().all(|state| *state == WRITTEN)
            && found.page(offset).is_some_and(|page| page.written_by_instruction(offset % PAGE, by));
        if !agreed {
            self.record(Access::Write, at, offset, data.len(), by)?;
            self.allocations[at].put(offset, data);
        }
        Ok(())
    }

    /// Reads for a read-modify-write operation of `by`, whose result [`Self::write`] takes.
    pub fn modify(&mut self, address: u64, bytes: usize, by: &By<'_>) -> Result<&[u8], FaultKind> {
        let (at, offset) = self.locate(Access::Atomic, address, bytes)?;
        self.recent = at;
        self.record(Access::Atomic, at, offset, bytes, by)?;
        self.allocations[at].settled(offset, bytes)
    }

    /// An asynchronous copy for `by` will write, at an instant that is in flight.
    pub fn begin_copy(&mut self, address: u64, bytes: usize, by: &By<'_>) -> Result<(), FaultKind> {
        let (at, offset) = self.locate(Access::Write, address, bytes)?;
        self.record(Access::Write, at, offset, bytes, by)
    }

    /// The thread of an asynchronous copy has waited for its writes, which were made at the instant `before`.
    pub fn settle_copy(&mut self, address: u64, bytes: usize, before: u32, by: &By<'_>) -> Result<(), FaultKind> {
        let (at, mut offset) = self.locate(Access::Write, address, bytes)?;
        let end = offset + bytes;
        while offset < end {
            let next = (offset / PAGE * PAGE + PAGE).min(end);
            self.allocations[at].page_mut(offset).settle(offset % PAGE, next - offset, before, by);
            offset = next;
        }
        Ok(())
    }

    /// Records an access sector by sector.
    fn record(
        &mut self,
        access: Access,
        at: usize,
        mut offset: usize,
        bytes: usize,
        by: &By<'_>,
    ) -> Result<(), FaultKind> {
        let end = offset + bytes;
        while offset < end {
            let next = (offset / SECTOR * SECTOR + SECTOR).min(end);
            if self.predecessors.dependent() {
                self.check_predecessors(access, at, (offset, next - offset), by)?;
            }
            let page = self.allocations[at].page_mut(offset);
            let done = match access {
                Access::Read => page.read(offset % PAGE, next - offset, by, &self.history),
                _ => page.write(offset % PAGE, next - offset, by, &self.history),
            };
            if let Err(conflict) = done {
                return Err(self.race(access, at, offset / PAGE * PAGE, &conflict, by));
            }
            offset = next;
        }
        Ok(())
    }

    fn check_predecessors(
        &self,
        access: Access,
        at: usize,
        (offset, bytes): (usize, usize),
        by: &By<'_>,
    ) -> Result<(), FaultKind> {
        let found = &self.allocations[at];
        let page = found.base + (offset / PAGE * PAGE) as u64;
        let sector = offset % PAGE / SECTOR;
        let mask = (u32::MAX >> (SECTOR - bytes)) << (offset % SECTOR);
        let name = |used: Use| self.launches[used.launch as usize].clone();
        if let Some(used) = self.predecessors.conflict(page, sector, mask, access, by.waited) {
            let place = found.place(offset);
            return Err(FaultKind::Predecessor { access, place, other: used.access, launch: name(used) });
        }
        if by.order.constant
            && let Some(used) = self.predecessors.written(page, sector, mask)
        {
            let what = format!("launch `{}`, on which this one depends,", name(used));
            return Err(FaultKind::NotConstant { place: found.place(offset), what });
        }
        Ok(())
    }

    fn race(&self, access: Access, at: usize, page: usize, conflict: &Conflict, by: &By<'_>) -> FaultKind {
        let other = self.history.instant(conflict.instant);
        let place = self.allocations[at].place(page + conflict.at);
        let (number, block) = (other.block, self.block(other.block));
        let thread = other.slot % self.geometry.warps * 32 + (conflict.lane & 31);
        if by.order.constant || (other.order.constant && access != Access::Read) {
            let what = format!("thread {thread} of block {block:?} at line {}", other.line);
            return FaultKind::NotConstant { place, what };
        }
        FaultKind::Race {
            access,
            place,
            other: conflict.access,
            thread,
            block: (number != by.actor.block).then_some(block),
            line: other.line,
            other_source: Vec::new(),
        }
    }

    /// Bytes that the launch has read and written at least once, in whole sectors.
    pub fn bytes_touched(&self) -> (u64, u64) {
        let pages = self.allocations.iter().flat_map(|found| found.pages.iter().flatten());
        pages.flat_map(|page| page.touched()).fold((0, 0), |(reads, writes), (_, read, written)| {
            let bytes = |mask: u32| if mask != 0 { SECTOR as u64 } else { 0 };
            (reads + bytes(read), writes + bytes(written))
        })
    }
}

impl Allocation {
    fn settled(&self, offset: usize, bytes: usize) -> Result<&[u8], FaultKind> {
        let state = &self.state[offset..offset + bytes];
        if let Some(first) = state.iter().position(|state| *state == UNINITIALISED) {
            return Err(FaultKind::Uninitialised { place: self.place(offset + first) });
        }
        Ok(&self.bytes[offset..offset + bytes])
    }

    fn put(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self.state[offset..offset + data.len()].fill(WRITTEN);
    }

    fn place(&self, offset: usize) -> String {
        format!("byte {offset} of `{}`", self.name)
    }

    fn page(&self, offset: usize) -> Option<&Page> {
        self.pages.get(offset / PAGE)?.as_deref()
    }

    fn page_mut(&mut self, offset: usize) -> &mut Page {
        if self.pages.is_empty() {
            self.pages.resize_with(self.bytes.len().div_ceil(PAGE), || None);
        }
        self.pages[offset / PAGE].get_or_insert_with(|| Box::new(Page::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_name_the_allocation() {
        let mut memory = Memory::new();
        let (a, b) = (memory.alloc("a", 16), memory.alloc("b", 16));
        memory.write(a, &[1; 16]).unwrap();
        assert_eq!(memory.read(a + 4, 4).unwrap(), [1; 4]);
        let past = memory.read(a + 14, 4).unwrap_err().to_string();
        assert!(past.contains("offset 14 of `a`, which has 16 bytes"), "{past}");
        let before = memory.write(b - 8, &[0; 4]).unwrap_err().to_string();
        assert!(before.contains("8 bytes before `b`"), "{before}");
        let never = memory.read(b, 4).unwrap_err().to_string();
        assert!(never.contains("byte 0 of `b`"), "{never}");
        assert!(memory.free(b) && !memory.free(b));
        assert!(memory.read(b, 4).unwrap_err().to_string().contains("no allocation"));
    }
}
