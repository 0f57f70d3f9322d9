//! Global memory access in 16-byte vectors. (A Rust copy of a 16-byte struct becomes two 64-bit
//! accesses, so the vector forms are explicit.) Pointers must be 16-byte aligned.

/// Loads 16 bytes.
#[inline(always)]
pub unsafe fn load_v4(p: *const u32) -> [u32; 4] {
    device! {
        let (a, b, c, d): (u32, u32, u32, u32);
        core::arch::asm!("ld.global.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) p, options(readonly, nostack));
        [a, b, c, d]
    }
}
/// As [`load_v4`], or zeros, without a branch: the address is not touched unless `condition` holds.
#[inline(always)]
pub unsafe fn load_v4_if(condition: bool, p: *const u32) -> [u32; 4] {
    device! {
        let (a, b, c, d): (u32, u32, u32, u32);
        core::arch::asm!(
            "{{ .reg .pred %inside; setp.ne.u32 %inside, {5}, 0;",
            "mov.b32 {0}, 0; mov.b32 {1}, 0; mov.b32 {2}, 0; mov.b32 {3}, 0;",
            "@%inside ld.global.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}]; }}",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) p, in(reg32) condition as u32,
            options(readonly, nostack));
        [a, b, c, d]
    }
}
/// Loads 16 bytes that nothing writes while the grid (and, with programmatic dependent launch, its
/// predecessor) runs, without keeping them in L1: weights.
#[inline(always)]
pub unsafe fn load_v4_streaming(p: *const u32) -> [u32; 4] {
    device! {
        let (a, b, c, d): (u32, u32, u32, u32);
        core::arch::asm!("ld.global.nc.L1::no_allocate.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) p, options(pure, readonly, nostack));
        [a, b, c, d]
    }
}
/// As [`load_v4_streaming`], or zeros, without a branch: the address is not touched unless `condition` holds.
#[inline(always)]
pub unsafe fn load_v4_streaming_if(condition: bool, p: *const u32) -> [u32; 4] {
    device! {
        let (a, b, c, d): (u32, u32, u32, u32);
        core::arch::asm!(
            "{{ .reg .pred %inside; setp.ne.u32 %inside, {5}, 0;",
            "mov.b32 {0}, 0; mov.b32 {1}, 0; mov.b32 {2}, 0; mov.b32 {3}, 0;",
            "@%inside ld.global.nc.L1::no_allocate.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}]; }}",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) p, in(reg32) condition as u32,
            options(readonly, nostack));
        [a, b, c, d]
    }
}
/// As [`load_v4_streaming_if`]; 256 bytes around come to the L2 cache: for requests of fewer from many rows.
#[inline(always)]
pub unsafe fn load_v4_streaming_256_if(condition: bool, p: *const u32) -> [u32; 4] {
    device! {
        let (a, b, c, d): (u32, u32, u32, u32);
        core::arch::asm!(
            "{{ .reg .pred %inside; setp.ne.u32 %inside, {5}, 0;",
            "mov.b32 {0}, 0; mov.b32 {1}, 0; mov.b32 {2}, 0; mov.b32 {3}, 0;",
            "@%inside ld.global.nc.L1::no_allocate.L2::256B.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}]; }}",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) p, in(reg32) condition as u32,
            options(readonly, nostack));
        [a, b, c, d]
    }
}
/// Stores 16 bytes.
#[inline(always)]
pub unsafe fn store_v4(p: *mut u32, v: [u32; 4]) {
    device! {
        core::arch::asm!("st.global.v4.b32 [{4}], {{{0}, {1}, {2}, {3}}};",
            in(reg32) v[0], in(reg32) v[1], in(reg32) v[2], in(reg32) v[3], in(reg64) p, options(nostack))
    }
}
/// Loads two 16-bit elements (4-byte aligned), the first into the low half, of which `left` are there
/// (any number, also negative): zero in place of the others. By predicates: a series of such loads has no branches
/// that would keep their latencies from overlapping.
#[inline(always)]
pub unsafe fn load_pair(p: *const u16, left: i32) -> u32 {
    device! {
        let pair: u32;
        core::arch::asm!("{{ .reg .pred both, one;",
            "setp.gt.s32 both, {2}, 1;", "setp.eq.s32 one, {2}, 1;", "mov.b32 {0}, 0;",
            "@both ld.global.b32 {0}, [{1}];", "@one ld.global.u16 {0}, [{1}]; }}",
            out(reg32) pair, in(reg64) p, in(reg32) left, options(readonly, nostack));
        pair
    }
}
/// Stores the first `left` of two packed 16-bit elements (4-byte aligned), as [`load_pair`].
#[inline(always)]
pub unsafe fn store_pair(p: *mut u16, left: i32, pair: u32) {
    device! {
        core::arch::asm!("{{ .reg .pred both, one;",
            "setp.gt.s32 both, {2}, 1;", "setp.eq.s32 one, {2}, 1;",
            "@both st.global.b32 [{1}], {0};", "@one st.global.u16 [{1}], {0}; }}",
            in(reg32) pair, in(reg64) p, in(reg32) left, options(nostack))
    }
}
