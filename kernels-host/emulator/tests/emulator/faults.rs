//! What the sanitizer reports, each from a kernel with one mistake.

use ptx_emulator::{Access, FaultKind};

use crate::run;

fn fault(seed: u64, body: &str, threads: u32) -> ptx_emulator::Fault {
    match run(seed, body, threads, &vec![1; threads as usize]) {
        Err(fault) => fault,
        Ok(_) => panic!("nothing was reported for {body}"),
    }
}

/// Each thread writes its word and reads its neighbour's.
const EXCHANGE: &str = "mov.u32 %r2, smem; shl.b32 %r3, %r1, 2; add.s32 %r4, %r2, %r3;
    xor.b32 %r5, %r3, 128; add.s32 %r5, %r2, %r5;
    st.shared.b32 [%r4], 0; st.shared.b32 [%r4+512], 0; bar.sync 0;
    st.shared.b32 [%r4], %r1; BARRIER ld.shared.b32 %r9, [%r5]; st.global.b32 [%rd1], %r9;";

#[test]
fn a_missing_barrier_is_a_race() {
    for seed in 0..20 {
        let with = EXCHANGE.replace("BARRIER", "bar.sync 0;");
        assert_eq!(run(seed, &with, 64, &[0; 64]).unwrap()[0], 32);
        let fault = fault(seed, &EXCHANGE.replace("BARRIER", ""), 64);
        assert!(matches!(fault.kind, FaultKind::Race { .. }), "seed {seed}: {fault}");
        assert!(fault.to_string().contains("data race"), "{fault}");
    }
}

#[test]
fn lanes_of_a_warp_race_without_a_warp_barrier() {
    let near = EXCHANGE.replace("128", "4");
    let fault = fault(0, &near.replace("BARRIER", ""), 32);
    assert!(matches!(fault.kind, FaultKind::Race { other: Access::Write, .. }), "{fault}");
    run(0, &near.replace("BARRIER", "bar.warp.sync -1;"), 32, &[0; 32]).unwrap();
}

#[test]
fn overruns_name_the_allocation_the_thread_and_the_line() {
    let fault = fault(0, "ld.global.b32 %r9, [%rd2+4];\nst.global.b32 [%rd1], %r9;", 32);
    let message = fault.to_string();
    assert!(message.contains("read of 4 bytes"), "{message}");
    assert!(message.contains("offset 128 of `in`, which has 128 bytes"), "{message}");
    assert!(message.contains("line 9: ld.global.b32, thread [31, 0, 0] of block [0, 0, 0]"), "{message}");
}

#[test]
fn shared_overruns_misalignment_and_reads_of_nothing() {
    let shared = fault(0, "mov.u32 %r2, smem; st.shared.b32 [%r2+4096], 1;", 1);
    assert!(shared.to_string().contains("the block has 4096 bytes of shared memory"), "{shared}");
    let odd = fault(0, "ld.global.b16 %rs1, [%rd2+1];", 1);
    assert!(matches!(odd.kind, FaultKind::Misaligned { bytes: 2, .. }), "{odd}");
    let never = fault(0, "mov.u32 %r2, smem; ld.shared.b32 %r9, [%r2+8];", 1);
    assert!(never.to_string().contains("byte 8 of shared memory"), "{never}");
}

#[test]
fn a_copy_must_be_waited_for() {
    let body = "mov.u32 %r2, smem; cp.async.ca.shared.global [%r2], [%rd2], 4;
        cp.async.commit_group; WAIT ld.shared.b32 %r9, [%r2];";
    for seed in 0..10 {
        let early = fault(seed, &body.replace("WAIT", "cp.async.wait_group 1;"), 1);
        assert!(matches!(early.kind, FaultKind::InFlight { access: Access::Read, .. }), "{early}");
        run(seed, &body.replace("WAIT", "cp.async.wait_group 0;"), 1, &[0]).unwrap();
    }
}

#[test]
fn a_barrier_in_two_arms_is_divergent() {
    let body = "setp.lt.u32 %p1, %r1, 16; @%p1 bra low;
        bar.sync 0;\nbra.uni all;
        low: bar.sync 0;
        all: st.global.b32 [%rd1], %r1;";
    let fault = fault(0, body, 64);
    let FaultKind::Divergent { waits } = &fault.kind else { panic!("{fault}") };
    assert!(waits.contains("lanes 0xffff0000 at line 10 (bar.sync)"), "{waits}");
    assert!(waits.contains("lanes 0x0000ffff at line 12 (bar.sync)"), "{waits}");
}

#[test]
fn a_warp_that_never_comes_is_a_deadlock() {
    let body = "setp.lt.u32 %p1, %r1, 32; @%p1 bar.sync 1, 64;";
    let fault = fault(0, body, 64);
    let FaultKind::Deadlock { waits } = &fault.kind else { panic!("{fault}") };
    assert!(waits.contains("warp 0 has lanes 0xffffffff at line 9 (bar.sync)"), "{waits}");
    assert!(waits.contains("barrier 1: 32 of 64 threads have come"), "{waits}");
}

#[test]
fn barriers_are_used_as_ptx_defines() {
    let mixed = "setp.lt.u32 %p1, %r1, 32; @%p1 bar.sync 1, 64; @!%p1 bar.sync 1, 96;";
    let FaultKind::Barrier { .. } = fault(0, mixed, 64).kind else { panic!("mixed counts") };
    let partial = fault(0, "bar.sync 1, 40;", 64);
    assert!(partial.to_string().contains("40 threads are not a whole number of warps"));
    let outside = fault(0, "shfl.sync.idx.b32 %r9, %r1, 0, 31, 0xff;", 32);
    assert!(outside.to_string().contains("lane 8 is not in its member mask"), "{outside}");
}

#[test]
fn traps_and_limits() {
    assert_eq!(fault(0, "setp.eq.u32 %p1, %r1, 3; @%p1 trap;", 32).kind, FaultKind::Trap);
    let endless = fault(0, "again: bra again;", 32);
    assert!(matches!(endless.kind, FaultKind::Limit { .. }), "{endless}");
}

#[test]
fn launches_that_cannot_be_are_refused() {
    use ptx_emulator::{Device, Grid, Param};
    let module = crate::module("");
    let mut device = Device::new(0);
    let pointers = [Param::U64(0), Param::U64(0)];
    let mut refusal = |entry: &str, threads: u32, params: &[Param], shared: usize| {
        device.launch(&module, entry, Grid::linear(1, threads), params, shared).unwrap_err().to_string()
    };
    assert!(refusal("other", 32, &pointers, 0).contains("no entry `other`"));
    assert!(refusal("k", 1025, &pointers, 0).contains("1025 threads per block; `k` takes 1 to 1024"));
    assert!(refusal("k", 32, &pointers[..1], 0).contains("1 parameters; `k` takes 2"));
    let narrow = [Param::U32(0), Param::U64(0)];
    assert!(refusal("k", 32, &narrow, 0).contains("parameter 0 of `k` has 8 bytes, not 4"));
    assert!(refusal("k", 32, &pointers, 232_449).contains("232449 bytes of shared memory"));
}

#[test]
fn faults_name_source_lines() {
    use ptx_emulator::{Device, Grid, Module};
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.file 1 \"src/norm/row.rs\"
        .file 2 \"src/prim/memory.rs\"\n.extern .shared .align 16 .b8 smem[];
        .visible .entry k() {\n.reg .b32 %r<9>;
        .loc 1 120 9
        mov.u32 %r1, %tid.x; mov.u32 %r3, smem;
        .loc 2 12 5, function_name $L__info_string0, inlined_at 1 121 13
        st.shared.b32 [%r3], %r1;
        .loc 1 122 1
        ld.shared.b32 %r2, [%r3];
        ret;\n}\n.section .debug_str { $L__info_string0: .b8 115, 0 }";
    let module = Module::parse(text).unwrap();
    let fault = Device::new(0).launch(&module, "k", Grid::linear(1, 1), &[], 0).unwrap_err();
    assert!(fault.to_string().ends_with("at src/prim/memory.rs:12, from src/norm/row.rs:121"), "{fault}");
    let race = Device::new(0).launch(&module, "k", Grid::linear(1, 32), &[], 16).unwrap_err().to_string();
    assert!(race.contains("(src/prim/memory.rs:12, from src/norm/row.rs:121)"), "{race}");
}
