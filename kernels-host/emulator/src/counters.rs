//! What a launch asked of the machine, as a profiler counts it.

use std::collections::BTreeMap;

use crate::memory::shadow::SECTOR;

/// Counts of a launch. Requests are warp instructions with at least one lane that takes part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Loads from global memory, `cp.async` among them.
    pub global_loads: Traffic,
    /// Stores to global memory.
    pub global_stores: Traffic,
    /// Atomic operations and reductions in global memory.
    pub global_atomics: Traffic,
    /// Bytes of global memory that were read at least once, in whole sectors of 32 bytes.
    pub global_bytes_read: u64,
    /// Bytes of global memory that were written at least once, in whole sectors of 32 bytes.
    pub global_bytes_written: u64,
    /// Bytes that bulk and tensor copies moved from global memory.
    pub bulk_bytes_loaded: u64,
    /// Bytes that bulk and tensor copies moved to global memory.
    pub bulk_bytes_stored: u64,
    /// Loads from shared memory, `ldmatrix` among them.
    pub shared_loads: Banks,
    /// Stores to shared memory, `stmatrix` among them.
    pub shared_stores: Banks,
    /// Atomic operations and reductions in shared memory.
    pub shared_atomics: Banks,
    /// Operations of the tensor cores by the type of the first factor, such as `bf16`: twice the products.
    pub tensor_operations: BTreeMap<&'static str, u64>,
    /// Warps that came to a barrier of their block or cluster and had to wait for others.
    pub barrier_waits: u64,
}

/// Accesses to global memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Warp instructions.
    pub requests: u64,
    /// Sectors of 32 bytes that they touched, each counted once for each request.
    pub sectors: u64,
    /// Bytes that their lanes asked for.
    pub bytes: u64,
}

/// Accesses to shared memory, which has 32 banks of four-byte words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Banks {
    /// Warp instructions.
    pub requests: u64,
    /// Times that the banks were used for them. Wide accesses go in parts: halves of a warp for 8 bytes a lane,
    /// quarters for 16; a row of `ldmatrix` counts as a lane's 16 bytes.
    pub wavefronts: u64,
    /// Those of them in excess of one for each part, because lanes met in a bank at different words.
    pub conflicts: u64,
}

impl Traffic {
    /// Sectors per request; 4 is ideal for four bytes a lane, 16 for sixteen.
    pub fn sectors_per_request(&self) -> f64 {
        self.sectors as f64 / (self.requests as f64).max(1.0)
    }

    /// Counts a request of `bytes` bytes at each of `addresses`.
    pub(crate) fn add(&mut self, addresses: &[u64], bytes: usize) {
        self.requests += 1;
        self.bytes += (addresses.len() * bytes) as u64;
        self.sectors += distinct(addresses.iter().map(|address| address / SECTOR as u64));
    }
}

impl Banks {
    /// Counts a request of `bytes` bytes at each of the addresses, by lane; `None` for lanes that take no part.
    pub(crate) fn add(&mut self, addresses: &[Option<u32>; 32], bytes: usize) {
        self.requests += 1;
        let words = bytes.div_ceil(4);
        for part in addresses.chunks(32 / words.clamp(1, 8)) {
            if part.iter().all(Option::is_none) {
                continue;
            }
            let wavefronts = busiest_bank(part, words as u32);
            self.wavefronts += wavefronts;
            self.conflicts += wavefronts - 1;
        }
    }
}

/// The most distinct words that one bank must deliver.
fn busiest_bank(addresses: &[Option<u32>], words: u32) -> u64 {
    let mut first = [0; 32];
    let mut used = 0_u32;
    let mut more = Vec::new();
    for address in addresses.iter().flatten() {
        for word in address / 4..address / 4 + words {
            let bank = word as usize % 32;
            if used >> bank & 1 == 0 {
                used |= 1 << bank;
                first[bank] = word;
            } else if first[bank] != word {
                more.push((bank, word));
            }
        }
    }
    more.sort_unstable();
    more.dedup();
    let runs = more.chunk_by(|a, b| a.0 == b.0).map(|run| run.len() as u64);
    1 + runs.max().unwrap_or(0)
}

/// How many different numbers there are; quick if they ascend.
fn distinct(numbers: impl Iterator<Item = u64> + Clone) -> u64 {
    let mut last = None;
    let mut count = 0;
    for number in numbers.clone() {
        match last {
            Some(last) if number == last => continue,
            Some(last) if number < last => {
                let mut all: Vec<u64> = numbers.collect();
                all.sort_unstable();
                all.dedup();
                return all.len() as u64;
            }
            _ => count += 1,
        }
        last = Some(number);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(bytes: usize, address: impl Fn(u64) -> u64) -> u64 {
        let mut traffic = Traffic::default();
        traffic.add(&(0..32).map(address).collect::<Vec<_>>(), bytes);
        assert_eq!((traffic.requests, traffic.bytes), (1, 32 * bytes as u64));
        traffic.sectors
    }

    #[test]
    fn sectors_of_a_request_count_once() {
        assert_eq!(traffic(4, |lane| lane * 4), 4);
        assert_eq!(traffic(16, |lane| lane * 16), 16);
        assert_eq!(traffic(4, |lane| lane * 8), 8);
        assert_eq!(traffic(4, |lane| lane * 128), 32);
        assert_eq!(traffic(4, |_| 64), 1);
        assert_eq!(traffic(4, |lane| (31 - lane) * 4), 4);
        assert_eq!(traffic(4, |lane| 16 + lane * 4), 5);
    }

    /// Wavefronts and conflicts.
    fn banks(bytes: usize, address: impl Fn(u32) -> u32) -> (u64, u64) {
        let mut banks = Banks::default();
        banks.add(&std::array::from_fn(|lane| Some(address(lane as u32))), bytes);
        (banks.wavefronts, banks.conflicts)
    }

    #[test]
    fn strides_meet_in_banks() {
        assert_eq!(banks(4, |lane| lane * 4), (1, 0));
        assert_eq!(banks(4, |lane| lane * 8), (2, 1));
        assert_eq!(banks(4, |lane| lane * 128), (32, 31));
        assert_eq!(banks(4, |lane| lane * 132), (1, 0));
        assert_eq!(banks(4, |_| 12), (1, 0), "one word goes to all");
        assert_eq!(banks(2, |lane| lane * 2), (1, 0), "two lanes share a word");
        assert_eq!(banks(4, |lane| lane % 2 * 128), (2, 1));
    }

    #[test]
    fn wide_accesses_go_in_parts() {
        assert_eq!(banks(8, |lane| lane * 8), (2, 0));
        assert_eq!(banks(16, |lane| lane * 16), (4, 0));
        assert_eq!(banks(16, |lane| lane * 32), (8, 4));
        let mut half = Banks::default();
        half.add(&std::array::from_fn(|lane| (lane < 8).then_some(lane as u32 * 16)), 16);
        assert_eq!((half.wavefronts, half.conflicts), (1, 0));
    }

    #[test]
    fn rows_of_a_tile_conflict_unless_they_are_swizzled() {
        let plain = |row: u32| row * 128;
        assert_eq!(banks(16, |lane| plain(lane % 8) + lane / 8 * 16), (32, 28));
        let swizzled = |row: u32, chunk: u32| row * 128 + (chunk ^ (row % 8)) * 16;
        assert_eq!(banks(16, |lane| swizzled(lane % 8, lane / 8)), (4, 0));
    }
}
