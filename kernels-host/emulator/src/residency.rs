//! How many blocks run at once, as on an H200.

use crate::module::Entry;

/// Multiprocessors; clusters stay within groups of 16 to 18 of them, which is not modelled.
const MULTIPROCESSORS: u32 = 132;
/// Threads, blocks and bytes of shared memory of a multiprocessor.
const THREADS: u32 = 2048;
const BLOCKS: u32 = 32;
const SHARED: usize = 233_472;
/// Bytes of shared memory that each block takes besides its own.
const RESERVED: usize = 1024;

/// Clusters of `cluster` blocks, each of `threads` threads and `shared` bytes, that are resident at once.
///
/// Registers are the assembler's choice, so PTX does not say how many blocks they allow. An entry with `.minnctapersm` is
/// taken to get that many and no more, for that is what it can rely on; one without is bound by the rest.
pub(crate) fn clusters(entry: &Entry, threads: u32, shared: usize, cluster: u32) -> usize {
    let warps = threads.next_multiple_of(32);
    let by_shared = (SHARED / (shared + RESERVED)).min(BLOCKS as usize) as u32;
    let by_registers = entry.min_blocks.unwrap_or(BLOCKS).max(1);
    let blocks = (THREADS / warps).min(by_shared).min(by_registers).max(1);
    ((MULTIPROCESSORS * blocks / cluster) as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Module;

    #[test]
    fn threads_shared_memory_and_launch_bounds_set_the_number_of_blocks() {
        let residents = |directives: &str, threads, shared, cluster| {
            let text =
                format!(".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k() {directives} {{ ret; }}");
            let module = Module::parse(&text).unwrap();
            clusters(module.entry("k").unwrap(), threads, shared, cluster)
        };
        assert_eq!(residents("", 256, 0, 1), 132 * 8);
        assert_eq!(residents("", 32, 0, 1), 132 * 32);
        assert_eq!(residents("", 128, 110_000, 1), 132 * 2);
        assert_eq!(residents("", 384, 232_448, 2), 66);
        assert_eq!(residents(".maxntid 256, 1, 1 .minnctapersm 2", 256, 0, 1), 264);
        assert_eq!(residents("", 1000, 0, 16), 132 * 2 / 16);
    }
}
