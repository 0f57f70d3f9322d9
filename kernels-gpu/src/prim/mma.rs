//! Warp-wide matrix instructions of sm_80: `ldmatrix` and `mma.sync`.
#[cfg(device)]
use super::intrinsics as llvm;

/// Loads four 8×8 matrices of 16-bit elements. Lanes 8i..8i+8 hold the shared addresses of the eight
/// 16-byte rows of matrix i; lane l gets row l/4, columns 2(l%4) and 2(l%4)+1 of each.
#[inline(always)]
pub unsafe fn load_matrix_x4(address: u32) -> [u32; 4] {
    device! {
        let (a, b, c, d): (u32, u32, u32, u32);
        llvm::bar_warp_sync(!0);
        core::arch::asm!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{0}, {1}, {2}, {3}}}, [{4}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address, options(readonly, nostack));
        [a, b, c, d]
    }
}
/// As [`load_matrix_x4`], each matrix transposed.
#[inline(always)]
pub unsafe fn load_matrix_x4_trans(address: u32) -> [u32; 4] {
    device! {
        let (a, b, c, d): (u32, u32, u32, u32);
        llvm::bar_warp_sync(!0);
        core::arch::asm!("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{{0}, {1}, {2}, {3}}}, [{4}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address, options(readonly, nostack));
        [a, b, c, d]
    }
}

macro_rules! mma_m16n8k16 {
    ($name:ident, $types:literal) => {
        #[doc = concat!("`mma.sync.m16n8k16 ", $types, "`: d += a · b. Fragments as in the PTX manual: a rows l/4 and l/4+8, b column l/4, ",
                        "d rows l/4 (0, 1) and l/4+8 (2, 3), columns 2(l%4) and +1.")]
        #[inline(always)]
        pub fn $name(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
            device! {
                llvm::bar_warp_sync(!0);
                core::arch::asm!(concat!("mma.sync.aligned.m16n8k16.row.col.", $types,
                    " {{{0}, {1}, {2}, {3}}}, {{{4}, {5}, {6}, {7}}}, {{{8}, {9}}}, {{{0}, {1}, {2}, {3}}};"),
                    inout(reg32) d[0], inout(reg32) d[1], inout(reg32) d[2], inout(reg32) d[3],
                    in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3], in(reg32) b[0], in(reg32) b[1],
                    options(nomem, nostack))
            }
        }
    };
}
mma_m16n8k16!(mma_bf16, "f32.bf16.bf16.f32");
mma_m16n8k16!(mma_f16, "f32.f16.f16.f32");
