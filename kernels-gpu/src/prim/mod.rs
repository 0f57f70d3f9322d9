//! Instruction wrappers. Names follow Rust-CUDA's `cuda_std` where it has one.
//!
//! Rules that the compiler forces on this module (LLVM 22):
//! - Barriers, shuffles, votes and everything else `.sync` go through LLVM intrinsics: they are
//!   `convergent`, which `asm!` is not, so `asm!("bar.sync")` can be duplicated into divergent arms.
//! - `.aligned` instructions that exist only as `asm!` are preceded by a warp barrier.
//! - Atomics with ordering go through `asm!`: LLVM 22 drops the ordering of read-modify-writes.

#![cfg_attr(not(device), allow(unused_variables))]

/// `device! { body }`: the body on the device, unreachable on the host.
macro_rules! device {
    ($($body:tt)*) => {{
        #[cfg(device)]
        {
            #[allow(unused_unsafe)]
            unsafe { $($body)* }
        }
        #[cfg(not(device))]
        { $crate::prim::device_only() }
    }};
}

#[macro_use]
mod entry;
pub mod async_copy;
pub mod cluster;
pub mod convert;
pub mod global_atomic;
mod intrinsics;
pub mod math;
pub mod mbarrier;
pub mod memory;
pub mod memory_relaxed;
pub mod memory_scalar;
pub mod mma;
pub mod ring_copy;
pub mod shared;
pub mod shared_atomic;
pub mod thread;
pub mod tma;
pub mod warp;
pub mod wgmma;

pub use entry::*;

/// The value, of which the compiler then knows nothing: it computes what follows from it anew instead of keeping
/// earlier results in registers.
#[inline(always)]
pub fn opaque(value: i32) -> i32 {
    device! {
        let hidden;
        core::arch::asm!("// {0}", inout(reg32) value => hidden, options(nomem, nostack));
        hidden
    }
}

/// What every device-only function does on the host.
#[cfg(not(device))]
#[cold]
#[track_caller]
pub fn device_only() -> ! {
    panic!("device code was called on the host")
}

/// A failed check on the device ends the kernel with a trap, which the host sees as a sticky error.
#[cfg(device)]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    unsafe { core::arch::nvptx::trap() }
}
