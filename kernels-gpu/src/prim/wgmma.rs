//! Matrix instructions of a warpgroup (four consecutive warps), sm_90a: `wgmma`.
//!
//! Both operands lie in shared memory, described by [`descriptor`]s, or the first one in the warpgroup's registers,
//! where the f32 accumulators are. The instructions run asynchronously: [`fence`] before the first one that uses
//! registers written otherwise, [`commit`] closes a group of them, [`wait`] and then [`pin`] come before the
//! accumulators are read. Until then the operands in shared memory must not be overwritten.
//!
//! Accumulators of an m64nN tile: thread t of the warpgroup (w = t / 32, l = t % 32) holds, for each
//! group j of 8 columns, at `d[4j..4j + 4]`: row 16w + l/4, columns 8j + 2(l%4) and +1; then row 8 further down,
//! the same columns.
#[cfg(device)]
use super::intrinsics as llvm;

/// Threads of a warpgroup.
pub const THREADS: u32 = 128;

/// Orders register accesses before the matrix instructions that follow. All threads of the warpgroup.
#[inline(always)]
pub fn fence() {
    device! { llvm::wgmma_fence() }
}
/// Closes a group of matrix instructions.
#[inline(always)]
pub fn commit() {
    device! { llvm::wgmma_commit_group() }
}
/// Waits until at most `N` of the newest groups are unfinished.
#[inline(always)]
pub fn wait<const N: u64>() {
    device! { llvm::wgmma_wait_group(N) }
}
/// Keeps reads of the accumulators behind the [`wait`] before: the compiler does not know that it is
/// the wait that fills them.
#[inline(always)]
pub fn pin<const N: usize>(d: &mut [f32; N]) {
    device! {
        for x in d {
            core::arch::asm!("// {0}", inout(reg32) *x, options(nostack));
        }
    }
}
/// Raises this warp's share of registers to `N` per thread (a multiple of 8). All warps of a warpgroup,
/// once, after another warpgroup has given up as many.
#[inline(always)]
pub fn registers_increase<const N: u32>() {
    device! { llvm::setmaxnreg_inc(N) }
}
/// Lowers this warp's share of registers to `N` per thread (a multiple of 8). All warps of a warpgroup, once.
#[inline(always)]
pub fn registers_decrease<const N: u32>() {
    device! { llvm::setmaxnreg_dec(N) }
}

/// Describes a K-major operand at `address` (1024-byte aligned): rows of 64 16-bit elements of K, 128 bytes
/// apart, under the 128-byte swizzle, as TMA lays down a box. The next 16 elements of K are at
/// [`K_STEP`] further.
#[inline(always)]
pub fn descriptor(address: u32) -> u64 {
    descriptor_apart(address, 1024)
}
/// As [`descriptor`], with `group` bytes (a multiple of 1024) from one group of 8 rows to the next.
#[inline(always)]
pub fn descriptor_apart(address: u32, group: u32) -> u64 {
    const SWIZZLE_128B: u64 = 1 << 62;
    // The other stride is not used with this swizzle.
    const UNUSED: u64 = 1 << 16;
    ((address as u64 & 0x3_ffff) >> 4) | UNUSED | ((group >> 4) as u64) << 32 | SWIZZLE_128B
}
/// What 16 elements of K (32 bytes) add to a [`descriptor`].
pub const K_STEP: u64 = 32 >> 4;

/// Describes an operand at `address` (1024-byte aligned) whose rows are elements of K: 64 16-bit elements of N, 128
/// bytes apart, under the 128-byte swizzle. The next 64 of N are `columns` bytes further, the next 16 elements of K
/// at [`ROWS_STEP`].
#[inline(always)]
pub fn descriptor_transposed(address: u32, columns: u32) -> u64 {
    // The first stride is now the one between groups of 64 columns, the second still between groups of 8 rows.
    descriptor(address) & !(0x3fff << 16) | ((columns >> 4) as u64) << 16
}
/// What 16 elements of K (rows of 128 bytes) add to a [`descriptor_transposed`].
pub const ROWS_STEP: u64 = (16 * 128) >> 4;

/// `$next!($args [1 2 … 7])`: the registers of 8 after the first.
macro_rules! with_7 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [1 2 3 4 5 6 7] } };
}
/// As `with_7`, of 16 registers.
macro_rules! with_15 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] } };
}
/// As `with_7`, of 24 registers.
macro_rules! with_23 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23
    ] } };
}
/// As `with_7`, of 32 registers.
macro_rules! with_31 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
    ] } };
}
/// As `with_7`, of 40 registers.
macro_rules! with_39 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37
        38 39
    ] } };
}
/// As `with_7`, of 48 registers.
macro_rules! with_47 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37
        38 39 40 41 42 43 44 45 46 47
    ] } };
}
/// As `with_7`, of 56 registers.
macro_rules! with_55 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36
        37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55
    ] } };
}
/// `$next!($args [1 2 … 63])`: the registers of 64 after the first.
macro_rules! with_63 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37
        38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
    ] } };
}
/// As `with_7`, of 72 registers.
macro_rules! with_71 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36
        37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69
        70 71
    ] } };
}
/// As `with_7`, of 80 registers.
macro_rules! with_79 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37
        38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71
        72 73 74 75 76 77 78 79
    ] } };
}
/// As `with_7`, of 96 registers.
macro_rules! with_95 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37
        38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71
        72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95
    ] } };
}
/// As `with_7`, of 112 registers.
macro_rules! with_111 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37
        38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71
        72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95 96 97 98 99 100 101 102 103 104
        105 106 107 108 109 110 111
    ] } };
}
/// As `with_7`, of 128 registers.
macro_rules! with_127 {
    ($next:ident!($($args:tt)*)) => { $next! { $($args)* [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37
        38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71
        72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95 96 97 98 99 100 101 102 103
        104 105 106 107 108 109 110 111 112 113 114 115 116 117 118 119 120 121 122 123 124 125 126 127
    ] } };
}
macro_rules! mma_async {
    ($name:ident, $n:literal, $len:literal, $type:literal, [$($i:literal)*]) => {
        #[doc = concat!("`wgmma.mma_async.m64n", $n, "k16`, ", $type,
                        ": d = a · bᵀ + d, or a · bᵀ where `accumulate` is false; ",
                        "`a [64, 16]` and `b [", $n, ", 16]` by [`descriptor`].")]
        #[inline(always)]
        pub unsafe fn $name(d: &mut [f32; $len], a: u64, b: u64, accumulate: bool) {
            device! {
                core::arch::asm!(
                    "{{ .reg .pred p; setp.ne.b32 p, {accumulate}, 0;",
                    concat!("wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.", $type, ".", $type,
                        " {{{0}", $(", {", $i, "}",)* "}}, {a}, {b}, p, 1, 1, 0, 0; }}"),
                    inout(reg32) d[0], $(inout(reg32) d[$i],)*
                    a = in(reg64) a, b = in(reg64) b, accumulate = in(reg32) accumulate as u32, options(nostack))
            }
        }
    };
}
with_7!(mma_async!(mma_n16_bf16, "16", 8, "bf16",));
with_7!(mma_async!(mma_n16_f16, "16", 8, "f16",));
with_15!(mma_async!(mma_n32_bf16, "32", 16, "bf16",));
with_15!(mma_async!(mma_n32_f16, "32", 16, "f16",));
with_23!(mma_async!(mma_n48_bf16, "48", 24, "bf16",));
with_23!(mma_async!(mma_n48_f16, "48", 24, "f16",));
with_31!(mma_async!(mma_n64_bf16, "64", 32, "bf16",));
with_31!(mma_async!(mma_n64_f16, "64", 32, "f16",));
with_39!(mma_async!(mma_n80_bf16, "80", 40, "bf16",));
with_39!(mma_async!(mma_n80_f16, "80", 40, "f16",));
with_47!(mma_async!(mma_n96_bf16, "96", 48, "bf16",));
with_47!(mma_async!(mma_n96_f16, "96", 48, "f16",));
with_55!(mma_async!(mma_n112_bf16, "112", 56, "bf16",));
with_55!(mma_async!(mma_n112_f16, "112", 56, "f16",));
with_63!(mma_async!(mma_n128_bf16, "128", 64, "bf16",));
with_63!(mma_async!(mma_n128_f16, "128", 64, "f16",));
with_71!(mma_async!(mma_n144_bf16, "144", 72, "bf16",));
with_71!(mma_async!(mma_n144_f16, "144", 72, "f16",));
with_79!(mma_async!(mma_n160_bf16, "160", 80, "bf16",));
with_79!(mma_async!(mma_n160_f16, "160", 80, "f16",));
with_95!(mma_async!(mma_n192_bf16, "192", 96, "bf16",));
with_95!(mma_async!(mma_n192_f16, "192", 96, "f16",));
with_111!(mma_async!(mma_n224_bf16, "224", 112, "bf16",));
with_111!(mma_async!(mma_n224_f16, "224", 112, "f16",));
with_127!(mma_async!(mma_n256_bf16, "256", 128, "bf16",));
with_127!(mma_async!(mma_n256_f16, "256", 128, "f16",));
macro_rules! mma_async_registers {
    ($name:ident, $n:literal, $len:literal, $type:literal, [$($i:literal)*]) => {
        #[doc = concat!("`wgmma.mma_async.m64n", $n, "k16`, ", $type, ": d += a · b, `a [64, 16]` in registers, ",
                        "`b [16, ", $n, "]` by [`descriptor_transposed`]. Thread t (w = t / 32, l = t % 32) holds of ",
                        "`a` rows 16w + l/4 and 8 further (elements 0 and 1), columns 2(l%4) and +1, then the same ",
                        "8 columns further (2 and 3): packed accumulators of 16 columns, in order.")]
        #[inline(always)]
        pub unsafe fn $name(d: &mut [f32; $len], a: [u32; 4], b: u64) {
            device! {
                // Registers of its own for `a`: ptxas before 13.3 may reuse those that are still being read.
                core::arch::asm!(
                    "{{ .reg .b32 a0, a1, a2, a3;",
                    "mov.b32 a0, {a0}; mov.b32 a1, {a1}; mov.b32 a2, {a2}; mov.b32 a3, {a3};",
                    concat!("wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.", $type, ".", $type,
                        " {{{0}", $(", {", $i, "}",)* "}}, {{a0, a1, a2, a3}}, {b}, 1, 1, 1, 1; }}"),
                    inout(reg32) d[0], $(inout(reg32) d[$i],)*
                    a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                    b = in(reg64) b, options(nostack))
            }
        }
    };
}
with_31!(mma_async_registers!(mma_registers_n64_bf16, "64", 32, "bf16",));
with_31!(mma_async_registers!(mma_registers_n64_f16, "64", 32, "f16",));
with_47!(mma_async_registers!(mma_registers_n96_bf16, "96", 48, "bf16",));
with_47!(mma_async_registers!(mma_registers_n96_f16, "96", 48, "f16",));
with_63!(mma_async_registers!(mma_registers_n128_bf16, "128", 64, "bf16",));
with_63!(mma_async_registers!(mma_registers_n128_f16, "128", 64, "f16",));
with_127!(mma_async_registers!(mma_registers_n256_bf16, "256", 128, "bf16",));
with_127!(mma_async_registers!(mma_registers_n256_f16, "256", 128, "f16",));

#[cfg(test)]
mod tests {
    use super::{descriptor, descriptor_transposed};

    #[test]
    fn fields_lie_where_the_manual_says() {
        let fields = |d: u64| (d & 0x3fff, d >> 16 & 0x3fff, d >> 32 & 0x3fff, d >> 62);
        assert_eq!(fields(descriptor(0x1_2400)), (0x1240, 1, 64, 1));
        assert_eq!(fields(descriptor_transposed(0x3_8400, 16384)), (0x3840, 1024, 64, 1));
    }
}
