//! Atomics on shared memory, relaxed: block barriers order them against other accesses.

/// Adds to a word and returns its former value.
#[inline(always)]
pub unsafe fn fetch_add_u32(address: u32, value: u32) -> u32 {
    device! {
        let old: u32;
        core::arch::asm!("atom.shared.add.u32 {0}, [{1}], {2};", out(reg32) old, in(reg32) address, in(reg32) value, options(nostack));
        old
    }
}
/// Adds to a word.
#[inline(always)]
pub unsafe fn add_u32(address: u32, value: u32) {
    device! { core::arch::asm!("red.shared.add.u32 [{0}], {1};", in(reg32) address, in(reg32) value, options(nostack)) }
}
