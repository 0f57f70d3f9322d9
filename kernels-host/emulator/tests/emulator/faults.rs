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
    assert!(endless.to_string().contains("warp 0 runs in circles"), "{endless}");
    let counts = fault(0, "again: add.u32 %r2, %r2, 1; bra again;", 32);
    assert!(matches!(counts.kind, FaultKind::Limit { .. }), "{counts}");
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

/// Thread 0 polls until `LOOK` says so; warp 1 does `TELL` after some work of its own.
const SPIN: &str = "mov.u32 %r2, smem; setp.eq.u32 %p1, %r1, 0; setp.eq.u32 %p2, %r1, 32;
    @%p1 mbarrier.init.shared::cta.b64 [%r2], 1; @%p1 st.shared.b32 [%r2+64], 0; bar.sync 0;
    @%p2 bra tell; @!%p1 bra all;
    again: LOOK
    @!%p3 bra again;
    bra.uni all;
    tell: mov.u32 %r4, 0;
    work: add.u32 %r4, %r4, 1; setp.lt.u32 %p4, %r4, WORK; @%p4 bra work;
    TELL
    all: st.global.b32 [%rd1], %r1;";

fn spin(look: &str, tell: &str, work: u32) -> String {
    SPIN.replace("LOOK", look).replace("TELL", tell).replace("WORK", &work.to_string())
}

/// The message of the deadlock that `body` ends in.
fn circles(body: &str) -> String {
    for seed in 0..5 {
        let fault = fault(seed, body, 64);
        assert!(matches!(fault.kind, FaultKind::Deadlock { .. }), "seed {seed}: {fault}");
        assert_eq!(fault.site.as_ref().map(|site| site.line), Some(12), "seed {seed}: {fault}");
    }
    fault(5, body, 64).to_string()
}

const TEST_WAIT: &str = "mbarrier.test_wait.parity.shared::cta.b64 %p3, [%r2], PARITY;";
const ARRIVE: &str = "mbarrier.arrive.shared::cta.b64 _, [%r2];";
const FLAG: &str = "ld.acquire.gpu.global.b32 %r3, [%rd2+4]; setp.ne.u32 %p3, %r3, 1;";

#[test]
fn polling_a_phase_that_never_ends_is_a_deadlock() {
    let message = circles(&spin(&TEST_WAIT.replace("PARITY", "0"), "", 10));
    let what = "block [0, 0, 0]: warp 0 runs in circles: lanes 0x00000001 at line 12 \
                (mbarrier.test_wait.parity.shared::cta.b64) look at parity 0 of the mbarrier at byte 0 (phase 0, 1 of 1 \
                arrivals and 0 bytes to come)";
    assert!(message.contains(what), "{message}");
    // Phase 0 ends; the parity of phase 1 is the wrong one to go on with.
    let (first, wrong) = (TEST_WAIT.replace("PARITY", "0"), TEST_WAIT.replace("PARITY", "1"));
    let message = circles(&spin(&format!("{first} @%p3 {wrong}"), ARRIVE, 10));
    assert!(message.contains("look at parity 1 of the mbarrier at byte 0 (phase 1, 1 of 1 arrivals"), "{message}");
}

#[test]
fn polling_a_flag_that_nobody_sets_is_a_deadlock() {
    let message = circles(&spin(FLAG, "", 10));
    assert!(message.contains("(ld.acquire.gpu.global.b32) look at offset 4 of `in`, which has 256 bytes"), "{message}");
    // Reading with an atomic operation that leaves the flag as it is changes nothing.
    let atomic = FLAG.replace("ld.acquire.gpu.global.b32 %r3, [%rd2+4]", "atom.global.or.b32 %r3, [%rd2+4], 0");
    assert!(circles(&spin(&atomic, "", 10)).contains("(atom.global.or.b32) look at offset 4"));
}

#[test]
fn polling_ends_however_long_it_takes() {
    // 100 thousand rounds of work are 300 thousand instructions, more than the patience of 65 thousand.
    let set = "st.release.gpu.global.b32 [%rd2-124], 5;";
    for seed in 0..5 {
        run(seed, &spin(&TEST_WAIT.replace("PARITY", "0"), ARRIVE, 100_000), 64, &[1; 64]).unwrap();
        run(seed, &spin(FLAG, set, 100_000), 64, &[1; 64]).unwrap();
    }
}

#[test]
fn lanes_that_poll_let_the_lanes_that_they_wait_for_go_first() {
    // What thread 0 does lies behind the loop of the others, so that smallest-position-first would never get there.
    let body = |look: &str, tell: &str| {
        format!(
            "mov.u32 %r2, smem; setp.eq.u32 %p1, %r1, 0;
            @%p1 mbarrier.init.shared::cta.b64 [%r2], 1; bar.sync 0; ld.param.b64 %rd5, [in];
            @%p1 bra tell;
            again: {look} @!%p3 bra again;
            bra.uni all;
            tell: {tell}
            all: st.global.b32 [%rd1], %r1;"
        )
    };
    let flag = "ld.acquire.gpu.global.b32 %r3, [%rd5]; setp.ne.u32 %p3, %r3, 1;";
    for seed in 0..5 {
        run(seed, &body(&TEST_WAIT.replace("PARITY", "0"), ARRIVE), 64, &[1; 64]).unwrap();
        run(seed, &body(flag, "st.release.gpu.global.b32 [%rd2], 5;"), 64, &[1; 64]).unwrap();
        circles(&body(flag, "st.release.gpu.global.b32 [%rd2+4], 5;"));
    }
}
