//! Global memory that several blocks read and write at the same time: relaxed accesses at the scope of the GPU, which
//! are never served from L1. Each word is whole; no order between words is promised, nor any of other accesses.

/// Loads 8 bytes (8-byte aligned) into `v`, without a branch: neither is touched unless `condition` holds.
#[inline(always)]
pub unsafe fn load_v2_if(condition: bool, p: *const u32, v: &mut [u32; 2]) {
    device! {
        core::arch::asm!(
            "{{ .reg .pred %wanted; setp.ne.u32 %wanted, {3}, 0;",
            "@%wanted ld.relaxed.gpu.global.v2.b32 {{{0}, {1}}}, [{2}]; }}",
            inout(reg32) v[0], inout(reg32) v[1], in(reg64) p, in(reg32) condition as u32, options(nostack));
    }
}
/// As [`load_v2_if`] of 16 bytes (16-byte aligned).
#[inline(always)]
pub unsafe fn load_v4_if(condition: bool, p: *const u32, v: &mut [u32; 4]) {
    device! {
        core::arch::asm!(
            "{{ .reg .pred %wanted; setp.ne.u32 %wanted, {5}, 0;",
            "@%wanted ld.relaxed.gpu.global.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}]; }}",
            inout(reg32) v[0], inout(reg32) v[1], inout(reg32) v[2], inout(reg32) v[3], in(reg64) p,
            in(reg32) condition as u32, options(nostack));
    }
}
/// Stores 8 bytes (8-byte aligned).
#[inline(always)]
pub unsafe fn store_v2(p: *mut u32, v: [u32; 2]) {
    device! {
        core::arch::asm!("st.relaxed.gpu.global.v2.b32 [{2}], {{{0}, {1}}};",
            in(reg32) v[0], in(reg32) v[1], in(reg64) p, options(nostack))
    }
}
/// Stores 16 bytes (16-byte aligned).
#[inline(always)]
pub unsafe fn store_v4(p: *mut u32, v: [u32; 4]) {
    device! {
        core::arch::asm!("st.relaxed.gpu.global.v4.b32 [{4}], {{{0}, {1}, {2}, {3}}};",
            in(reg32) v[0], in(reg32) v[1], in(reg32) v[2], in(reg32) v[3], in(reg64) p, options(nostack))
    }
}
