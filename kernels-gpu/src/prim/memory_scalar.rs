//! Global memory access in 4- and 8-byte units, kept in order with barriers and `grid_dependency_wait` (which
//! LLVM lets plain loads cross), and never through the read-only cache.

/// Loads 4 bytes.
#[inline(always)]
pub unsafe fn load_u32(p: *const u32) -> u32 {
    device! {
        let value: u32;
        core::arch::asm!("ld.global.b32 {0}, [{1}];", out(reg32) value, in(reg64) p, options(readonly, nostack));
        value
    }
}
/// Loads an `f32`.
#[inline(always)]
pub unsafe fn load_f32(p: *const f32) -> f32 {
    f32::from_bits(load_u32(p.cast()))
}
/// Loads 8 bytes (8-byte aligned).
#[inline(always)]
pub unsafe fn load_v2(p: *const u32) -> [u32; 2] {
    device! {
        let (a, b): (u32, u32);
        core::arch::asm!("ld.global.v2.b32 {{{0}, {1}}}, [{2}];", out(reg32) a, out(reg32) b, in(reg64) p, options(readonly, nostack));
        [a, b]
    }
}
/// Stores 4 bytes.
#[inline(always)]
pub unsafe fn store_u32(p: *mut u32, value: u32) {
    device! { core::arch::asm!("st.global.b32 [{1}], {0};", in(reg32) value, in(reg64) p, options(nostack)) }
}
/// Stores 8 bytes (8-byte aligned).
#[inline(always)]
pub unsafe fn store_v2(p: *mut u32, v: [u32; 2]) {
    device! {
        core::arch::asm!("st.global.v2.b32 [{2}], {{{0}, {1}}};",
            in(reg32) v[0], in(reg32) v[1], in(reg64) p, options(nostack))
    }
}
/// Stores an `f32`.
#[inline(always)]
pub unsafe fn store_f32(p: *mut f32, value: f32) {
    store_u32(p.cast(), value.to_bits())
}
