//! Global memory: named allocations far enough apart that an overrun hits nothing.

use super::{UNINITIALISED, WRITTEN};
use crate::{Access, FaultKind};

/// Distance between allocations at least.
const GAP: u64 = 1 << 20;

/// All allocations, by ascending base address.
#[derive(Debug)]
pub(crate) struct Memory {
    allocations: Vec<Allocation>,
    next: u64,
}

#[derive(Debug)]
struct Allocation {
    name: String,
    base: u64,
    bytes: Vec<u8>,
    state: Vec<u8>,
}

impl Memory {
    pub fn new() -> Self {
        Self { allocations: Vec::new(), next: 0x7f00_0000_0000 }
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
        });
        base
    }

    /// Returns the allocation that starts at `address`; false if there is none.
    pub fn free(&mut self, address: u64) -> bool {
        let found = self.allocations.binary_search_by_key(&address, |found| found.base);
        found.map(|at| self.allocations.remove(at)).is_ok()
    }

    /// The allocation that holds `bytes` bytes at `address`, and their offset in it.
    fn locate(&self, access: Access, address: u64, bytes: usize) -> Result<(usize, usize), FaultKind> {
        let after = self.allocations.partition_point(|found| found.base <= address);
        if let Some(at) = after.checked_sub(1) {
            let offset = (address - self.allocations[at].base) as usize;
            if offset.saturating_add(bytes) <= self.allocations[at].bytes.len() {
                return Ok((at, offset));
            }
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

    /// The bytes at `address`, all written.
    pub fn read(&self, address: u64, bytes: usize) -> Result<&[u8], FaultKind> {
        let (at, offset) = self.locate(Access::Read, address, bytes)?;
        let found = &self.allocations[at];
        let state = &found.state[offset..offset + bytes];
        if let Some(first) = state.iter().position(|state| *state == UNINITIALISED) {
            let place = format!("byte {} of `{}`", offset + first, found.name);
            return Err(FaultKind::Uninitialised { place });
        }
        Ok(&found.bytes[offset..offset + bytes])
    }

    /// Writes `data` at `address`.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), FaultKind> {
        let (at, offset) = self.locate(Access::Write, address, data.len())?;
        let found = &mut self.allocations[at];
        found.bytes[offset..offset + data.len()].copy_from_slice(data);
        found.state[offset..offset + data.len()].fill(WRITTEN);
        Ok(())
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
