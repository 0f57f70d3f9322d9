//! What instructions compute.

use crate::run;

/// One thread executes `code`, which leaves its result in `%r9`.
fn value(code: &str) -> u32 {
    let body = format!("{code}\nst.global.b32 [%rd1], %r9;");
    run(1, &body, 1, &[0]).unwrap_or_else(|fault| panic!("{code}: {fault}"))[0]
}

fn float(code: &str) -> f32 {
    f32::from_bits(value(code))
}

#[test]
fn integers() {
    for (code, expected) in [
        ("add.s32 %r9, -1, 3;", 2),
        ("sub.s32 %r9, 1, 3;", -2_i32 as u32),
        ("mul.hi.u32 %r9, -1, -1;", 0xffff_fffe),
        ("mul.hi.s32 %r9, -1, 2;", 0xffff_ffff),
        ("mad.lo.s32 %r9, 3, 5, 7;", 22),
        ("mul.wide.s32 %rd9, -2, 3; cvt.u32.u64 %r9, %rd9;", -6_i32 as u32),
        ("mul.wide.u32 %rd9, -1, -1; shr.u64 %rd9, %rd9, 32; cvt.u32.u64 %r9, %rd9;", 0xffff_fffe),
        ("mov.b64 %rd9, -1; mul.hi.u64 %rd9, %rd9, %rd9; cvt.u32.u64 %r9, %rd9;", 0xffff_fffe),
        ("div.u32 %r9, 17, 5;", 3),
        ("div.s32 %r9, -17, 5;", -3_i32 as u32),
        ("rem.s32 %r9, -17, 5;", -2_i32 as u32),
        ("min.s32 %r9, -1, 1;", u32::MAX),
        ("min.u32 %r9, -1, 1;", 1),
        ("shl.b32 %r9, 1, 32;", 0),
        ("shr.s32 %r9, -8, 99;", u32::MAX),
        ("shr.u32 %r9, -8, 30;", 3),
        ("bfe.u32 %r9, 0xabcd1234, 8, 12;", 0xd12),
        ("bfe.s32 %r9, 0x00000f00, 8, 4;", u32::MAX),
        ("bfi.b32 %r9, 0xff, 0, 4, 8;", 0xff0),
        ("popc.b32 %r9, 0xf0f0;", 8),
        ("clz.b32 %r9, 0x00ff0000;", 8),
        ("brev.b32 %r9, 1;", 0x8000_0000),
        ("prmt.b32 %r9, 0x33221100, 0x77665544, 0x7531;", 0x7755_3311),
        ("lop3.b32 %r9, 0xff00, 0x0ff0, 0x00ff, 0x96;", 0xff00 ^ 0x0ff0 ^ 0x00ff),
        ("shf.l.wrap.b32 %r9, 0x80000000, 1, 33;", 3),
        ("abs.s32 %r9, -5;", 5),
        ("not.b32 %r9, 0;", u32::MAX),
    ] {
        assert_eq!(value(code), expected, "{code}");
    }
}

#[test]
fn floats() {
    for (code, expected) in [
        ("add.rn.f32 %r9, 0f3F800000, 0f40000000;", 3.0),
        ("fma.rn.f32 %r9, 0f40400000, 0f40A00000, 0fBF800000;", 14.0),
        ("div.rn.f32 %r9, 0f3F800000, 0f40400000;", 1.0 / 3.0),
        ("max.f32 %r9, 0f7FC00000, 0f40000000;", 2.0),
        ("ex2.approx.ftz.f32 %r9, 0f40400000;", 8.0),
        ("lg2.approx.f32 %r9, 0f41000000;", 3.0),
        ("rsqrt.approx.ftz.f32 %r9, 0f40800000;", 0.5),
        ("rcp.approx.ftz.f32 %r9, 0f40800000;", 0.25),
        ("sqrt.rn.f32 %r9, 0f41100000;", 3.0),
        ("add.sat.f32 %r9, 0f3F800000, 0f40000000;", 1.0),
        ("mul.ftz.f32 %r9, 0f00400000, 0f40000000;", 0.0),
        ("neg.f32 %r9, 0f3F800000;", -1.0),
        ("cvt.rn.f32.s32 %r9, -3;", -3.0),
        ("cvt.rn.f32.u32 %r9, 0xffffffff;", 4_294_967_296.0),
        ("cvt.rz.f32.u32 %r9, 0xffffffff;", 4_294_967_040.0),
        ("cvt.rmi.f32.f32 %r9, 0fBF000000;", -1.0),
    ] {
        assert_eq!(float(code), expected, "{code}");
    }
    assert_eq!(value("sub.rn.f32 %r9, 0f7F800000, 0f7F800000;"), 0x7fff_ffff, "canonical NaN");
}

#[test]
fn conversions() {
    for (code, expected) in [
        ("cvt.rzi.u32.f32 %r9, 0fBF800000;", 0),
        ("cvt.rzi.s32.f32 %r9, 0f4F800000;", i32::MAX as u32),
        ("cvt.rni.s32.f32 %r9, 0f40200000;", 2),
        ("cvt.s32.s8 %r9, 0x80;", -128_i32 as u32),
        ("cvt.sat.u8.s32 %r9, 300;", 255),
        ("cvt.rn.bf16x2.f32 %r9, 0f3F800000, 0f40000000;", 0x3f80_4000),
        ("cvt.rn.f16.f32 %rs1, 0f3F800000; cvt.u32.u16 %r9, %rs1;", 0x3c00),
        ("cvt.rn.f16.f32 %rs1, 0f3F800000; cvt.f32.f16 %r9, %rs1;", 1.0_f32.to_bits()),
        ("mov.b32 {%rs1, %rs2}, 0x12345678; mov.b32 %r9, {%rs2, %rs1};", 0x5678_1234),
        ("mov.b64 %rd9, {%r1, 7}; mov.b64 {_, %r9}, %rd9;", 7),
    ] {
        assert_eq!(value(code), expected, "{code}");
    }
}

#[test]
fn predicates() {
    for (code, expected) in [
        ("setp.lt.u32 %p1|%p2, 1, -1; selp.b32 %r9, 5, 6, %p1;", 5),
        ("setp.lt.u32 %p1|%p2, 1, -1; selp.b32 %r9, 5, 6, %p2;", 6),
        ("setp.lt.s32 %p1, 1, -1; selp.b32 %r9, 5, 6, !%p1;", 5),
        ("mov.pred %p1, -1; setp.eq.and.s32 %p2, 1, 1, !%p1; selp.b32 %r9, 5, 6, %p2;", 6),
        ("setp.neu.f32 %p1, 0f7FC00000, 0f0; selp.b32 %r9, 5, 6, %p1;", 5),
        ("mov.pred %p1, -1; not.pred %p2, %p1; or.pred %p3, %p1, %p2; selp.b32 %r9, 5, 6, %p3;", 5),
        ("mov.b32 %r9, 4; mov.pred %p1, 0; @%p1 mov.b32 %r9, 3; @!%p1 add.s32 %r9, %r9, 4;", 8),
    ] {
        assert_eq!(value(code), expected, "{code}");
    }
}

#[test]
fn lanes_work_together() {
    let each = |code: &str| {
        let body = format!("{code}\nst.global.b32 [%rd1], %r9;");
        run(3, &body, 32, &[0; 32]).unwrap_or_else(|fault| panic!("{code}: {fault}"))
    };
    assert_eq!(each("shfl.sync.bfly.b32 %r9, %r1, 3, 31, -1;")[5], 6);
    assert_eq!(each("shfl.sync.up.b32 %r9, %r1, 4, 0, -1;")[..6], [0, 1, 2, 3, 0, 1]);
    assert_eq!(each("shfl.sync.down.b32 %r9, %r1, 30, 31, -1;")[..3], [30, 31, 2]);
    assert_eq!(each("shfl.sync.idx.b32 %r9, %r1, 2, 0x181f, -1;")[8..10], [10, 10], "segments of 8");
    let ballot = "setp.gt.u32 %p1, %r1, 29; vote.sync.ballot.b32 %r9, %p1, -1;";
    assert_eq!(each(ballot), [0xc000_0000; 32]);
    assert_eq!(each("redux.sync.add.s32 %r9, %r1, -1;"), [496; 32]);
    let matching = "and.b32 %r2, %r1, 1; match.any.sync.b32 %r9, %r2, -1;";
    assert_eq!(each(matching)[..2], [0x5555_5555, 0xaaaa_aaaa]);
    let elect = "elect.sync %r2|%p1, -1; selp.b32 %r9, 1, 0, %p1;";
    assert_eq!(each(elect)[..2], [1, 0]);
}

#[test]
fn lanes_that_diverge_meet_again() {
    // A loop of as many rounds as the lane's number, then a shuffle that needs all lanes.
    let body = "mov.b32 %r2, 0;
        loop: setp.ge.u32 %p1, %r2, %r1; @%p1 bra done; add.s32 %r2, %r2, 1; bra.uni loop;
        done: shfl.sync.bfly.b32 %r9, %r2, 1, 31, -1;
        st.global.b32 [%rd1], %r9;";
    let expected: Vec<u32> = (0..40).map(|thread| thread ^ 1).collect();
    assert_eq!(
        run(
            5,
            &body.replace("-1;", "%r3;").replace("mov.b32 %r2, 0;", "mov.b32 %r2, 0; activemask.b32 %r3;"),
            40,
            &[0; 40]
        )
        .unwrap()[..32],
        expected[..32]
    );
}

#[test]
fn half_a_warp_meets_at_its_own_warp_barrier() {
    let body = "setp.lt.u32 %p1, %r1, 16; @%p1 bra low;
        bar.warp.sync 0xffff0000; bra.uni all;
        low: bar.warp.sync 0x0000ffff;
        all: bar.warp.sync -1; st.global.b32 [%rd1], %r1;";
    assert_eq!(run(1, body, 32, &[0; 32]).unwrap()[31], 31);
}

#[test]
fn shared_memory_and_barriers_reverse_a_block() {
    let body = "mov.u32 %r2, smem; shl.b32 %r3, %r1, 2; add.s32 %r4, %r2, %r3;
        ld.global.b32 %r5, [%rd2]; st.shared.b32 [%r4], %r5;
        bar.sync 0;
        sub.s32 %r6, 508, %r3; add.s32 %r6, %r2, %r6; ld.shared.b32 %r9, [%r6];
        st.global.b32 [%rd1], %r9;";
    let input: Vec<u32> = (100..228).collect();
    let expected: Vec<u32> = input.iter().rev().copied().collect();
    for seed in 0..20 {
        assert_eq!(run(seed, body, 128, &input).unwrap(), expected, "seed {seed}");
    }
}

#[test]
fn atomics_add_up() {
    let body = "mov.u32 %r2, smem; setp.ne.u32 %p1, %r1, 0; @!%p1 st.shared.b32 [%r2], 0;
        bar.sync 0; red.shared.add.u32 [%r2], %r1; atom.shared.add.u32 %r3, [%r2], 1;
        bar.sync 0; ld.shared.b32 %r9, [%r2]; st.global.b32 [%rd1], %r9;";
    assert_eq!(run(2, body, 96, &[0; 96]).unwrap(), [95 * 96 / 2 + 96; 96]);
}

#[test]
fn asynchronous_copies_arrive_by_their_wait() {
    let body = "mov.u32 %r2, smem; shl.b32 %r3, %r1, 2; add.s32 %r2, %r2, %r3;
        cp.async.ca.shared.global [%r2], [%rd2], 4, 4; cp.async.commit_group;
        cp.async.ca.shared.global [%r2+1024], [%rd2], 4, 0; cp.async.commit_group;
        cp.async.wait_group 1; ld.shared.b32 %r4, [%r2];
        cp.async.wait_group 0; ld.shared.b32 %r5, [%r2+1024];
        add.s32 %r9, %r4, %r5; st.global.b32 [%rd1], %r9;";
    let input: Vec<u32> = (7..71).collect();
    for seed in 0..20 {
        assert_eq!(run(seed, body, 64, &input).unwrap(), input, "seed {seed}");
    }
}

#[test]
fn producers_and_consumers_meet_at_named_barriers() {
    let body = "mov.u32 %r2, smem; and.b32 %r3, %r1, 31; shl.b32 %r3, %r3, 2; add.s32 %r2, %r2, %r3;
        setp.ge.u32 %p1, %r1, 32; @%p1 bra consume;
        st.shared.b32 [%r2], %r1; bar.arrive 3, 64; bra.uni end;
        consume: bar.sync 3, 64; ld.shared.b32 %r9, [%r2]; st.global.b32 [%rd1], %r9;
        end:";
    for seed in 0..20 {
        assert_eq!(run(seed, body, 64, &[0; 64]).unwrap()[40], 8, "seed {seed}");
    }
}

#[test]
fn matrices_are_loaded_and_multiplied() {
    // Each thread stores the 16-byte row that holds its number eight times; lanes 0 to 7 name rows 0 to 7.
    let load = "mov.u32 %r2, smem; shl.b32 %r3, %r1, 4; add.s32 %r2, %r2, %r3;
        mad.lo.s32 %r4, %r1, 65536, %r1; st.shared.v4.b32 [%r2], {%r4, %r4, %r4, %r4}; bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%r2]; st.global.b32 [%rd1], %r9;";
    let rows: Vec<u32> = (0..32).map(|lane| lane / 4 * 0x1_0001).collect();
    assert_eq!(run(1, load, 32, &[0; 32]).unwrap(), rows);
    let multiply = "mov.b32 %r2, 0x3f803f80; mov.b32 %r3, 0x40004000; cvt.rn.f32.u32 %r4, %r1;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
            {%r9, %r5, %r6, %r7}, {%r2, %r2, %r2, %r2}, {%r3, %r3}, {%r4, %r4, %r4, %r4};
        st.global.b32 [%rd1], %r9;";
    let sums: Vec<u32> = (0..32).map(|lane| (32.0 + lane as f32).to_bits()).collect();
    assert_eq!(run(1, multiply, 32, &[0; 32]).unwrap(), sums);
}

#[test]
fn several_seeds_give_the_same_and_one_seed_the_same_twice() {
    let body = "mov.u32 %r2, smem; setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.b32 [%r2], 0; bar.sync 0;
        atom.shared.add.u32 %r9, [%r2], 1; st.global.b32 [%rd1], %r9;";
    let first = run(11, body, 256, &[0; 256]).unwrap();
    assert_eq!(run(11, body, 256, &[0; 256]).unwrap(), first);
    assert!((0..8).any(|seed| run(seed, body, 256, &[0; 256]).unwrap() != first), "the seed orders the warps");
}
