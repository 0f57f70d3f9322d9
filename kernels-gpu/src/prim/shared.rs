//! Shared memory. Rust has no address space for it, so it is addressed by 32-bit offsets in the
//! shared window, starting at [`base`]; the launcher states the size.

#[cfg(device)]
core::arch::global_asm!(".extern .shared .align 1024 .b8 dyn_smem[];");

/// Address of the block's dynamic shared memory, 1024-byte aligned (what 128-byte swizzles need).
#[inline(always)]
pub fn base() -> u32 {
    device! {
        let address: u32;
        core::arch::asm!("mov.u32 {0}, dyn_smem;", out(reg32) address, options(pure, nomem, nostack));
        address
    }
}

/// [`base`], asked for again where keeping it would cost a register.
#[inline(always)]
pub fn base_anew() -> u32 {
    device! {
        let address: u32;
        core::arch::asm!("mov.u32 {0}, dyn_smem;", out(reg32) address, options(nomem, nostack));
        address
    }
}

macro_rules! scalar {
    ($load:ident $store:ident $ty:ty, $class:ident, $suffix:literal) => {
        #[doc = concat!("Loads a `", stringify!($ty), "`.")]
        #[inline(always)]
        pub unsafe fn $load(address: u32) -> $ty {
            device! {
                let value: $ty;
                core::arch::asm!(concat!("ld.shared.", $suffix, " {0}, [{1}];"), out($class) value, in(reg32) address, options(readonly, nostack));
                value
            }
        }
        #[doc = concat!("Stores a `", stringify!($ty), "`.")]
        #[inline(always)]
        pub unsafe fn $store(address: u32, value: $ty) {
            device! { core::arch::asm!(concat!("st.shared.", $suffix, " [{1}], {0};"), in($class) value, in(reg32) address, options(nostack)) }
        }
    };
}
scalar!(load_u32 store_u32 u32, reg32, "b32");
scalar!(load_f32 store_f32 f32, reg32, "b32");
scalar!(load_u16 store_u16 u16, reg16, "b16");
scalar!(load_u64 store_u64 u64, reg64, "b64");

/// Stores two `f32` (8-byte aligned).
#[inline(always)]
pub unsafe fn store_v2_f32(address: u32, v: [f32; 2]) {
    device! {
        core::arch::asm!("st.shared.v2.b32 [{2}], {{{0}, {1}}};",
            in(reg32) v[0], in(reg32) v[1], in(reg32) address, options(nostack))
    }
}
/// Loads 16 bytes (16-byte aligned).
#[inline(always)]
pub unsafe fn load_v4(address: u32) -> [u32; 4] {
    device! {
        let (a, b, c, d): (u32, u32, u32, u32);
        core::arch::asm!("ld.shared.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address, options(readonly, nostack));
        [a, b, c, d]
    }
}
/// Stores 16 bytes (16-byte aligned).
#[inline(always)]
pub unsafe fn store_v4(address: u32, v: [u32; 4]) {
    device! {
        core::arch::asm!("st.shared.v4.b32 [{4}], {{{0}, {1}, {2}, {3}}};",
            in(reg32) v[0], in(reg32) v[1], in(reg32) v[2], in(reg32) v[3], in(reg32) address, options(nostack))
    }
}
