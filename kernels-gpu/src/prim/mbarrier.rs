//! `mbarrier`: barriers in shared memory (sm_80) that also count the bytes of asynchronous copies (sm_90).
//!
//! A barrier has phases. A phase ends when its arrivals and all the bytes that they announced have come
//! in, and the next one starts by itself with the same count. Waiting names the parity (0, 1, 0, …) of
//! the phase to be over; on a fresh barrier, parity 1 is over.

/// The instruction that [`wait`] repeats; that of sm_90 sleeps for a while.
#[cfg(sm_90a)]
macro_rules! wait_instruction {
    () => {
        "try_wait"
    };
}
#[cfg(all(device, not(sm_90a)))]
macro_rules! wait_instruction {
    () => {
        "test_wait"
    };
}

/// Bytes of one barrier.
pub const BYTES: u32 = 8;

/// Initialises the barrier at `address` (8-byte aligned) for `arrivals` per phase.
#[inline(always)]
pub unsafe fn init(address: u32, arrivals: u32) {
    device! {
        core::arch::asm!("mbarrier.init.shared::cta.b64 [{0}], {1};",
            in(reg32) address, in(reg32) arrivals, options(nostack))
    }
}
/// Makes this thread's [`init`]s visible to asynchronous copies and to the cluster; a block barrier then
/// makes them visible to the block.
#[inline(always)]
pub fn fence_init() {
    device! {
        #[cfg(sm_90a)]
        core::arch::asm!("fence.mbarrier_init.release.cluster;", "fence.proxy.async.shared::cta;", options(nostack))
    }
}
/// Arrives once, ordering this thread's earlier accesses before the phase's end.
#[inline(always)]
pub unsafe fn arrive(address: u32) {
    device! { core::arch::asm!("mbarrier.arrive.shared::cta.b64 _, [{0}];", in(reg32) address, options(nostack)) }
}
/// [`arrive`] at the barrier at `address` of the cluster's block `rank`. Of this thread's writes it orders nothing for
/// that block: it says that asynchronous copies may overwrite what has been read. (With `.release.cluster`, which
/// would, ptxas puts a `MEMBAR.ALL.GPU` before it: 0.5 µs a stage, half of the speed of the kernels with a ring.)
#[inline(always)]
pub unsafe fn arrive_cluster(address: u32, rank: u32) {
    device! {
        // The address is made anew each time: kept, it costs a register through the whole kernel.
        core::arch::asm!("{{ .reg .b32 there; mapa.shared::cluster.u32 there, {0}, {1};",
            "mbarrier.arrive.shared::cluster.b64 _, [there]; }}",
            in(reg32) address, in(reg32) rank, options(nostack))
    }
}
/// Arrives once and announces `bytes` of asynchronous copies, which the phase then waits for as well.
#[inline(always)]
pub unsafe fn arrive_expect_tx(address: u32, bytes: u32) {
    device! {
        core::arch::asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{0}], {1};",
            in(reg32) address, in(reg32) bytes, options(nostack))
    }
}
/// Waits until the phase of parity `parity` is over. What its arrivals and copies wrote is then visible.
#[inline(always)]
pub unsafe fn wait(address: u32, parity: u32) {
    device! {
        // The labels are local to the braces, so that a copy of this block is no duplicate of them.
        core::arch::asm!(
            "{{ .reg .pred over;",
            concat!("again: mbarrier.", wait_instruction!(), ".parity.shared::cta.b64 over, [{0}], {1};"),
            "@over bra done;",
            "bra again;",
            "done: }}",
            in(reg32) address, in(reg32) parity, options(nostack))
    }
}
