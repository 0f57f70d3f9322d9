//! Instructions of a whole warp that only some of its lanes execute.

use ptx_emulator::FaultKind;

use crate::run;

fn kind(seed: u64, body: &str, threads: u32) -> FaultKind {
    match run(seed, body, threads, &vec![1; threads as usize]) {
        Err(fault) => fault.kind,
        Ok(_) => panic!("nothing was reported for {body}"),
    }
}

fn partial(body: &str, threads: u32, lanes: (u32, u32), because: &str) {
    for seed in 0..20 {
        match kind(seed, body, threads) {
            FaultKind::PartialWarp { present, missing, why } => {
                assert_eq!((present, missing), lanes, "{body}");
                assert!(why.contains(because), "{why}");
            }
            other => panic!("{other}: {body}"),
        }
    }
}

fn clean(body: &str, threads: u32) {
    for seed in 0..20 {
        run(seed, body, threads, &vec![1; threads as usize]).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    }
}

#[test]
fn guards_of_aligned_instructions_are_the_same_for_all_lanes() {
    let body = |limit: u32| format!("setp.lt.u32 %p1, %r1, {limit}; @%p1 bar.sync 1, 32;");
    partial(&body(16), 32, (0xffff, 0xffff_0000), "guard leaves out");
    clean(&body(32), 64);
}

#[test]
fn lanes_that_exit_instead_are_missed() {
    let body = "setp.lt.u32 %p1, %r1, 8; @%p1 bra low; bra end; low: bar.sync 0; end:";
    partial(body, 32, (0xff, 0xffff_ff00), "exit without it");
    // Diverged lanes that come to it later are waited for.
    clean("setp.lt.u32 %p1, %r1, 8; @%p1 bra low; add.u32 %r2, %r1, 1; low: bar.sync 0;", 32);
}

#[test]
fn matrix_instructions_need_all_lanes() {
    let load = "mov.u32 %r2, smem; shl.b32 %r3, %r1, 2; add.s32 %r3, %r2, %r3; st.shared.b32 [%r3], %r1;
        st.shared.b32 [%r3+128], 0; bar.warp.sync -1; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r2];";
    partial(load, 16, (0xffff, 0xffff_0000), "never were");
    clean(load, 32);
    let gone = format!("setp.gt.u32 %p1, %r1, 29; @%p1 ret; {}", load.replace("-1", "0x3fffffff"));
    partial(&gone, 32, (0x3fff_ffff, 0xc000_0000), "have exited");
}

#[test]
fn shuffles_read_lanes_that_take_part() {
    let shuffle = |mask: &str| {
        format!(
            "setp.ge.u32 %p1, %r1, 16; @%p1 bra end; add.u32 %r2, %r1, 8; and.b32 %r2, %r2, 31;
            shfl.sync.idx.b32 %r3, %r1, %r2, 31, {mask}; end: st.global.b32 [%rd1], %r1;"
        )
    };
    assert_eq!(kind(0, &shuffle("0xffff"), 32), FaultKind::Shuffle { source_lane: 16, members: 0xffff });
    clean(&shuffle("0xffff").replace("%r1, 8", "%r1, 0"), 32);
    clean("shfl.sync.down.b32 %r3, %r1, 16, 31, -1;", 32);
}

#[test]
fn members_that_wait_elsewhere_never_come() {
    for other in ["vote.sync.all.pred %p2, %p1, -1;", "bar.warp.sync -1;", "shfl.sync.idx.b32 %r3, %r1, 0, 31, -1;"] {
        let body = format!(
            "setp.lt.u32 %p1, %r1, 8; @%p1 bra low; bar.sync 0;\nbra end;
            low: {other}
            end:"
        );
        let fault = kind(0, &body, 32);
        let FaultKind::Divergent { waits } = &fault else { panic!("{fault}") };
        assert!(waits.contains("lanes 0xffffff00 at line 9 (bar.sync)"), "{waits}");
        assert!(waits.contains("lanes 0x000000ff at line 11"), "{waits}");
    }
}
