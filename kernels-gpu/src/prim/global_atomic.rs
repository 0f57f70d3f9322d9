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

/// Adds, in no order with anything but barriers.
#[inline(always)]
pub unsafe fn add_u32(p: *mut u32, value: u32) {
    device! {
        core::arch::asm!("red.relaxed.gpu.global.add.u32 [{0}], {1};", in(reg64) p, in(reg32) value, options(nostack))
    }
}

/// Sets bits, as [`add_u32`].
#[inline(always)]
pub unsafe fn or_u32(p: *mut u32, bits: u32) {
    device! {
        core::arch::asm!("red.relaxed.gpu.global.or.b32 [{0}], {1};", in(reg64) p, in(reg32) bits, options(nostack))
    }
}

/// Stores `value` where `expected` is, as [`add_u32`], and returns what was there.
#[inline(always)]
pub unsafe fn compare_and_swap_u32(p: *mut u32, expected: u32, value: u32) -> u32 {
    device! {
        let old: u32;
        core::arch::asm!("atom.relaxed.gpu.global.cas.b32 {0}, [{1}], {2}, {3};",
            out(reg32) old, in(reg64) p, in(reg32) expected, in(reg32) value, options(nostack));
        old
    }
}
