//! Atomics with explicit order and scope.

/// `atom.add.acq_rel.gpu`: adds to a counter in global memory and returns its former value.
#[inline(always)]
pub unsafe fn fetch_add_acq_rel(p: *mut u32, value: u32) -> u32 {
    device! {
        let old: u32;
        core::arch::asm!("atom.acq_rel.gpu.global.add.u32 {0}, [{1}], {2};", out(reg32) old, in(reg64) p, in(reg32) value, options(nostack));
        old
    }
}
/// `membar.gl`: orders this thread's writes before its later ones, for all threads of the GPU.
#[inline(always)]
pub fn fence_gpu() {
    device! { core::arch::asm!("fence.acq_rel.gpu;", options(nostack)) }
}
