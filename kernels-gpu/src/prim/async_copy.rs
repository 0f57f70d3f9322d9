//! `cp.async`: 16-byte copies from global to shared memory that do not pass through registers (sm_80).

/// Copies 16 bytes; only the first `bytes` (0 or 16 as a rule) are read, the rest is zero-filled.
/// Bypasses L1.
#[inline(always)]
pub unsafe fn copy_16(shared: u32, global: *const u8, bytes: u32) {
    device! {
        core::arch::asm!("cp.async.cg.shared.global [{0}], [{1}], 16, {2};",
            in(reg32) shared, in(reg64) global, in(reg32) bytes, options(nostack))
    }
}
/// Closes a group of copies.
#[inline(always)]
pub fn commit() {
    device! { core::arch::asm!("cp.async.commit_group;", options(nostack)) }
}
/// Waits until at most `N` of this thread's newest groups are unfinished. (Other threads' copies need a
/// block barrier as well.)
#[inline(always)]
pub fn wait<const N: u32>() {
    device! { core::arch::asm!("cp.async.wait_group {};", const N, options(nostack)) }
}
