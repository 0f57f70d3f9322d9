//! Global memory that several blocks read and write at the same time: relaxed accesses at the scope of the GPU, which
//! are never served from L1. Each word is whole; no order between words is promised, nor any of other accesses.

/// Loads 8 bytes (8-byte aligned), or ones, without a branch: the address is not touched unless `condition` holds.
#[inline(always)]
pub unsafe fn load_v2_if(condition: bool, p: *const u32) -> [u32; 2] {
    device! {
        let (a, b): (u32, u32);
        core::arch::asm!(
            "{{ .reg .pred %inside; setp.ne.u32 %inside, {3}, 0; mov.b32 {0}, 1; mov.b32 {1}, 1;",
            "@%inside ld.relaxed.gpu.global.v2.b32 {{{0}, {1}}}, [{2}]; }}",
            out(reg32) a, out(reg32) b, in(reg64) p, in(reg32) condition as u32, options(nostack));
        [a, b]
    }
}
/// As [`load_v2_if`] of 16 bytes (16-byte aligned).
#[inline(always)]
pub unsafe fn load_v4_if(condition: bool, p: *const u32) -> [u32; 4] {
    device! {
        let (a, b, c, d): (u32, u32, u32, u32);
        core::arch::asm!(
            "{{ .reg .pred %inside; setp.ne.u32 %inside, {5}, 0;",
            "mov.b32 {0}, 1; mov.b32 {1}, 1; mov.b32 {2}, 1; mov.b32 {3}, 1;",
            "@%inside ld.relaxed.gpu.global.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}]; }}",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) p, in(reg32) condition as u32,
            options(nostack));
        [a, b, c, d]
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
