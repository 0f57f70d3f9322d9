//! Atomic operations on global memory, with their ordering spelled out: LLVM 22 drops that of read-modify-writes.

/// Adds and returns the value before. What this thread has written or, before a block barrier, its block, is visible
/// to whom the addition is; what they wrote before theirs is visible after it.
#[inline(always)]
pub unsafe fn add_acq_rel_u32(p: *mut u32, value: u32) -> u32 {
    device! {
        let old: u32;
        core::arch::asm!("atom.acq_rel.gpu.global.add.u32 {0}, [{1}], {2};",
            out(reg32) old, in(reg64) p, in(reg32) value, options(nostack));
        old
    }
}
