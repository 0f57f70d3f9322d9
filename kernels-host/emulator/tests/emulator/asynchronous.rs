//! mbarriers, bulk copies and TMA: each kernel right, under twenty seeds, and with one mistake that must be reported.

use ptx_emulator::tensor::swizzle::Swizzle;
use ptx_emulator::tensor::tensor_map::{DataType, Fill, TensorMap, Tiled};
use ptx_emulator::{Device, Fault, FaultKind, Grid, LaunchOptions, Module, Param};

use crate::{numbers, words};

const SEEDS: u64 = 20;
/// Words of the input: a matrix of 64 rows of 32.
const WORDS: usize = 64 * 32;

/// `k(out, in, map)`: `%rd1`, `%rd2` and `%rd9` are what their names say, `%r1` is `%tid.x`, `%r2` the start of
/// shared memory. `WAIT(address, parity)` waits for a phase.
fn text(body: &str) -> String {
    let mut body = body.to_owned();
    while let Some(at) = body.find("WAIT(") {
        let end = at + body[at..].find(')').unwrap();
        let (address, parity) = body[at + 5..end].split_once(", ").unwrap();
        let wait = format!(
            "{{ .reg .pred over; again: mbarrier.try_wait.parity.shared::cta.b64 over, [{address}], {parity}; \
             @over bra done; bra again; done: }}"
        );
        body.replace_range(at..=end, &wait);
    }
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 smem[];
.visible .entry k(.param .u64 out, .param .u64 in, .param .align 64 .b8 map[128]) {{
.reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<29>; .reg .b64 %rd<29>;
ld.param.b64 %rd1, [out]; ld.param.b64 %rd2, [in]; mov.b64 %rd9, map; cvta.param.u64 %rd9, %rd9;
mov.u32 %r1, %tid.x; mov.u32 %r2, smem; setp.eq.u32 %p1, %r1, 0;
{body}\nret;\n}}"
    )
}

/// The map of the input, in boxes of 8 rows of 32 words.
fn map(address: u64, swizzle: Swizzle) -> TensorMap {
    TensorMap::new(&Tiled {
        data_type: DataType::U32,
        address,
        dims: &[32, 64],
        strides: &[128],
        box_dims: &[32, 8],
        element_strides: &[1, 1],
        swizzle,
        fill: Fill::Zero,
    })
    .unwrap()
}

/// Runs a cluster of two blocks of 32 threads; otherwise as [`run`].
fn run_two(seed: u64, body: &str) -> Result<Vec<u32>, Fault> {
    launch(seed, body, Grid::linear(2, 32), Some([2, 1, 1]))
}

/// Runs one block of `body` on 0, 1, 2, … and gives back `out`, of as many words, zeros at first.
fn run(seed: u64, body: &str, threads: u32) -> Result<Vec<u32>, Fault> {
    launch(seed, body, Grid::linear(1, threads), None)
}

fn launch(seed: u64, body: &str, grid: Grid, cluster: Option<[u32; 3]>) -> Result<Vec<u32>, Fault> {
    let module = Module::parse(&text(body)).unwrap_or_else(|error| panic!("{error}\n{}", text(body)));
    let mut device = Device::new(seed);
    device.set_instruction_limit(1 << 20);
    let (out, input) = (device.alloc("out", WORDS * 4), device.alloc("in", WORDS * 4));
    device.write(out, &[0; WORDS * 4])?;
    device.write(input, &words(&(0..WORDS as u32).collect::<Vec<_>>()))?;
    let target = if body.contains("[%rd9, {%r3, %r4}], [%r8]") { out } else { input };
    let map = map(target, Swizzle::B128).encode().to_vec();
    let params = [Param::U64(out), Param::U64(input), Param::Bytes(map)];
    device.launch_with(
        &module,
        "k",
        grid,
        &params,
        &LaunchOptions { shared_bytes: 16 << 10, cluster, ..Default::default() },
    )?;
    Ok(numbers(&device.read(out, WORDS * 4)?))
}

/// Runs the faulty `body` under all seeds; each time a fault that `is` must be found, at the line of `site`.
fn faulty(body: &str, threads: u32, site: &str, is: impl Fn(&Fault) -> bool) {
    let text = text(body);
    let lines: Vec<u32> =
        (1..).zip(text.lines()).filter(|(_, line)| line.contains(site)).map(|(number, _)| number).collect();
    for seed in 0..SEEDS {
        let Err(fault) = run(seed, body, threads) else { panic!("seed {seed}: nothing was reported for {text}") };
        assert!(is(&fault), "seed {seed}: {fault}");
        let line = fault.site.as_ref().map_or(0, |site| site.line);
        assert!(lines.contains(&line), "seed {seed}: {fault}\nis not at `{site}`, lines {lines:?}");
    }
}

/// Warp 0 fetches four tiles of 512 bytes into one buffer; warp 1 adds one to each word and stores it.
const RING: &str = "
setp.ge.u32 %p2, %r1, 32;
@%p1 mbarrier.init.shared::cta.b64 [%r2], 1;
@%p1 mbarrier.init.shared::cta.b64 [%r2+8], 1;
@%p1 fence.mbarrier_init.release.cluster;
bar.sync 0;
mov.u32 %r3, 0;
add.u32 %r4, %r2, 1024;
add.u32 %r10, %r2, 8;
@%p2 bra consume;
@!%p1 bra end;
produce:
and.b32 %r5, %r3, 1; xor.b32 %r6, %r5, 1;
WAIT(%r10, %r6)
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 512;
shl.b32 %r7, %r3, 9; cvt.u64.u32 %rd3, %r7; add.s64 %rd4, %rd2, %rd3;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r4], [%rd4], 512, [%r2];
add.u32 %r3, %r3, 1; setp.lt.u32 %p3, %r3, 4; @%p3 bra produce;
bra end;
consume:
and.b32 %r5, %r3, 1;
WAIT(%r2, %r5)
sub.u32 %r8, %r1, 32; shl.b32 %r9, %r8, 4; add.u32 %r11, %r4, %r9;
ld.shared.v4.b32 {%r12, %r13, %r14, %r15}, [%r11];
bar.warp.sync -1;
setp.eq.u32 %p4, %r8, 0;
@%p4 mbarrier.arrive.shared::cta.b64 _, [%r10];
add.u32 %r12, %r12, 1; add.u32 %r13, %r13, 1; add.u32 %r14, %r14, 1; add.u32 %r15, %r15, 1;
shl.b32 %r7, %r3, 9; add.u32 %r7, %r7, %r9; cvt.u64.u32 %rd3, %r7; add.s64 %rd4, %rd1, %rd3;
st.global.v4.b32 [%rd4], {%r12, %r13, %r14, %r15};
add.u32 %r3, %r3, 1; setp.lt.u32 %p3, %r3, 4; @%p3 bra consume;
end:";

#[test]
fn a_ring_of_bulk_copies() {
    for seed in 0..SEEDS {
        let out = run(seed, RING, 64).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        assert!(out[..512].iter().zip(1..).all(|(found, expected)| *found == expected), "seed {seed}");
    }
}

#[test]
fn a_wait_for_the_wrong_parity() {
    let wrong = RING.replace("WAIT(%r2, %r5)", "xor.b32 %r5, %r5, 1; WAIT(%r2, %r5)");
    // Early, the consumer finds the phase before over; late, it waits for one that never comes.
    let (mut early, mut late) = (0, 0);
    for seed in 0..SEEDS {
        let fault = run(seed, &wrong, 64).unwrap_err();
        match (&fault.kind, fault.site.as_ref().map(|site| site.instruction.as_str())) {
            (FaultKind::InFlight { .. } | FaultKind::Uninitialised { .. }, Some("ld.shared.v4.b32")) => early += 1,
            (FaultKind::Deadlock { .. }, Some(_)) => late += 1,
            _ => panic!("seed {seed}: {fault}"),
        }
    }
    assert!(early > 0 && late > 0, "{early} of {SEEDS} early, {late} late");
}

#[test]
fn too_many_bytes_are_a_deadlock_that_says_what_is_missing() {
    faulty(&RING.replace("[%r2], 512;", "[%r2], 528;"), 64, "try_wait", |fault| {
        let message = fault.to_string();
        message.contains("mbarrier at byte 0: phase 0, 0 of 1 arrivals and 16 bytes to come")
            && message.contains("for parity 0 of the mbarrier at byte 0")
    });
}

#[test]
fn too_few_bytes_let_the_consumer_in_early() {
    let wrong = RING.replace("_, [%r2], 512;", "_, [%r2], 128;");
    let kinds = |fault: &Fault| matches!(fault.kind, FaultKind::InFlight { .. } | FaultKind::Mbarrier { .. });
    for seed in 0..SEEDS {
        let fault = run(seed, &wrong, 64).unwrap_err();
        assert!(kinds(&fault), "seed {seed}: {fault}");
    }
}

#[test]
fn a_result_read_before_its_wait() {
    let wrong = RING.replace("WAIT(%r2, %r5)\n", "");
    let early = |fault: &Fault| matches!(fault.kind, FaultKind::InFlight { .. } | FaultKind::Uninitialised { .. });
    faulty(&wrong, 64, "ld.shared.v4", early);
}

#[test]
fn a_buffer_filled_anew_before_it_is_empty() {
    let wrong = RING.replace("WAIT(%r10, %r6)", "WAIT(%r2, %r6)");
    // The producer waits for its own copy, not for those who read it: the copy comes before the read is known to be
    // over, before it, or even instead of it.
    let mut races = 0;
    for seed in 0..SEEDS {
        let fault = run(seed, &wrong, 64).unwrap_err();
        let message = fault.to_string();
        let raced = message.contains("data race: write") && message.contains("unordered with the read by thread");
        let others = matches!(fault.kind, FaultKind::InFlight { .. } | FaultKind::Deadlock { .. });
        assert!(raced || others, "seed {seed}: {fault}");
        races += u32::from(raced);
    }
    assert!(races > 0);
}

#[test]
fn an_exit_with_a_copy_that_nobody_waits_for() {
    let body = "
@!%p1 bra end;
mbarrier.init.shared::cta.b64 [%r2], 1;
fence.proxy.async.shared::cta;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 64;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2+1024], [%rd2], 64, [%r2];
// LAST
end:";
    faulty(body, 32, "cp.async.bulk", |fault| {
        matches!(fault.kind, FaultKind::Exit { .. }) && fault.to_string().contains("nobody waited for the copy of line")
    });
    let waits = body.replace("// LAST", "WAIT(%r2, 0)");
    (0..SEEDS).for_each(|seed| drop(run(seed, &waits, 32).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"))));
    let announced = body.replace("_, [%r2], 64;", "_, [%r2], 80;");
    let fault = run(0, &announced, 32).unwrap_err().to_string();
    assert!(fault.contains("in phase 0 with 16 bytes to come"), "{fault}");
}

/// 32 threads write a box of 8 rows, swizzled, which one of them stores at row 16, a quarter of it outside… of nothing.
const STORE: &str = "
mov.u32 %r3, 0; mov.u32 %r4, 16; add.u32 %r8, %r2, 1024;
shr.u32 %r5, %r1, 2; and.b32 %r6, %r1, 3;
mov.u32 %r9, 0;
fill:
shl.b32 %r10, %r6, 1; add.u32 %r10, %r10, %r9; xor.b32 %r11, %r10, %r5;
shl.b32 %r12, %r5, 7; shl.b32 %r13, %r11, 4; add.u32 %r12, %r12, %r13; add.u32 %r12, %r12, %r8;
shl.b32 %r14, %r5, 5; shl.b32 %r15, %r10, 2; add.u32 %r14, %r14, %r15;
add.u32 %r16, %r14, 1; add.u32 %r17, %r14, 2; add.u32 %r18, %r14, 3;
st.shared.v4.b32 [%r12], {%r14, %r16, %r17, %r18};
add.u32 %r9, %r9, 1; setp.lt.u32 %p3, %r9, 2; @%p3 bra fill;
fence.proxy.async.shared::cta;
bar.warp.sync -1;
@!%p1 bra end;
cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd9, {%r3, %r4}], [%r8];
cp.async.bulk.commit_group;
cp.async.bulk.wait_group.read 0;
st.shared.b32 [%r8], 7;
end:";

#[test]
fn a_tensor_store() {
    for seed in 0..SEEDS {
        let out = run(seed, STORE, 32).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        let (box_at, rest) = (&out[16 * 32..24 * 32], [&out[..16 * 32], &out[24 * 32..]].concat());
        assert!(box_at.iter().zip(0..).all(|(found, expected)| *found == expected), "seed {seed}: {box_at:?}");
        assert!(rest.iter().all(|word| *word == 0));
    }
}

#[test]
fn a_missing_proxy_fence() {
    let wrong = STORE.replace("fence.proxy.async.shared::cta;\n", "");
    faulty(&wrong, 32, "cp.async.bulk.tensor", |fault| {
        matches!(fault.kind, FaultKind::Proxy { .. }) && fault.to_string().contains("missing fence.proxy.async")
    });
    // One thread's fence before the others have met it is none of theirs; after that it is.
    let alone = STORE.replace("fence.proxy.async.shared::cta;\n", "@%p1 fence.proxy.async.shared::cta;\n");
    faulty(&alone, 32, "cp.async.bulk.tensor", |fault| matches!(fault.kind, FaultKind::Proxy { .. }));
    let after = wrong.replace("@!%p1 bra end;", "@!%p1 bra end;\nfence.proxy.async;");
    run(0, &after, 32).unwrap();
}

#[test]
fn a_store_s_source_written_before_it_is_read() {
    let wrong = STORE.replace("cp.async.bulk.wait_group.read 0;\n", "");
    faulty(&wrong, 32, "st.shared.b32 [%r8], 7", |fault| {
        matches!(fault.kind, FaultKind::InUse { .. }) && fault.to_string().contains("still reads")
    });
    let newest = STORE.replace("wait_group.read 0", "wait_group.read 1");
    faulty(&newest, 32, "st.shared.b32 [%r8], 7", |fault| matches!(fault.kind, FaultKind::InUse { .. }));
    let exits = wrong.replace("st.shared.b32 [%r8], 7;\n", "");
    faulty(&exits, 32, "cp.async.bulk.tensor", |fault| matches!(fault.kind, FaultKind::Exit { .. }));
}

/// Loads rows 4 to 11 of the input and unswizzles them to `out`.
const LOAD: &str = "
@!%p1 bra wait;
mbarrier.init.shared::cta.b64 [%r2], 1;
fence.mbarrier_init.release.cluster;
mov.u32 %r3, 0; mov.u32 %r4, 4; add.u32 %r8, %r2, 1024;
prefetch.tensormap [%rd9];
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 1024;
cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r8], [%rd9, {%r3, %r4}], [%r2];
wait:
bar.warp.sync -1;
add.u32 %r8, %r2, 1024;
WAIT(%r2, 0)
mov.u32 %r9, 0;
next:
shr.u32 %r10, %r1, 2; and.b32 %r10, %r10, 7; xor.b32 %r10, %r10, %r9;
shl.b32 %r11, %r9, 7; shl.b32 %r10, %r10, 4; add.u32 %r11, %r11, %r10;
and.b32 %r12, %r1, 3; shl.b32 %r12, %r12, 2; add.u32 %r11, %r11, %r12; add.u32 %r11, %r11, %r8;
ld.shared.b32 %r13, [%r11];
shl.b32 %r14, %r9, 5; add.u32 %r14, %r14, %r1; mul.wide.u32 %rd3, %r14, 4; add.s64 %rd4, %rd1, %rd3;
st.global.b32 [%rd4], %r13;
add.u32 %r9, %r9, 1; setp.lt.u32 %p3, %r9, 8; @%p3 bra next;";

#[test]
fn a_tensor_load_and_a_wrong_swizzle() {
    let expected = |out: &[u32]| out[..256].iter().zip(128..).all(|(found, expected)| *found == expected);
    for seed in 0..SEEDS {
        assert!(expected(&run(seed, LOAD, 32).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"))), "seed {seed}");
    }
    // The kernel that does not undo the swizzle sees other data.
    assert!(!expected(&run(0, &LOAD.replace("xor.b32 %r10, %r10, %r9;", ""), 32).unwrap()));
}

#[test]
fn what_is_no_tensor_map_is_refused() {
    let wrong = LOAD.replace("cvta.param", "").replace("prefetch.tensormap [%rd9];", "mov.b64 %rd9, %rd2;");
    faulty(&wrong, 32, "cp.async.bulk.tensor", |fault| fault.to_string().contains("are no tensor map"));
}

#[test]
fn barriers_are_used_as_ptx_defines() {
    let message = |body: &str| run(0, body, 32).unwrap_err().to_string();
    let init = "@%p1 mbarrier.init.shared::cta.b64 [%r2], 1;\nbar.warp.sync -1;\n";
    for (body, part) in [
        ("@%p1 mbarrier.init.shared::cta.b64 [%r2], 0;", "0 arrivals are outside of 1 to 2^20 - 1"),
        ("mbarrier.test_wait.parity.shared::cta.b64 %p2, [%r2], 0;", "the barrier is not initialised"),
        ("INIT mbarrier.arrive.shared::cta.b64 _, [%r2], 2;", "more arrive than mbarrier.init said"),
        ("INIT @%p1 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r2], 1048576;", "are more than 2^20 - 1"),
        ("INIT ld.shared.b64 %rd3, [%r2];", "read of byte 0 of shared memory, which is part of one"),
        ("INIT st.shared.b32 [%r2+4], 0;", "write of byte 4 of shared memory, which is part of one"),
        ("INIT @%p1 mbarrier.init.shared::cta.b64 [%r2], 1;", "initialised already"),
        (
            "INIT @%p1 mbarrier.inval.shared::cta.b64 [%r2]; @%p1 mbarrier.arrive.shared::cta.b64 _, [%r2];",
            "is not initialised",
        ),
        ("INIT mbarrier.test_wait.parity.shared::cta.b64 %p2, [%r2], 2;", "parity 2 is neither 0 nor 1"),
        ("@%p1 mbarrier.init.shared::cta.b64 [%r2+4], 1;", "misaligned"),
    ] {
        let found = message(&body.replace("INIT", init));
        assert!(found.contains(part), "{body}: {found}");
    }
    run(
        0,
        &format!("{init}@%p1 mbarrier.inval.shared::cta.b64 [%r2];\nbar.warp.sync -1;\nst.shared.b32 [%r2], 1;")
            .replace("st.shared", "@%p1 st.shared"),
        32,
    )
    .unwrap();
}

#[test]
fn a_barrier_used_before_its_initialisation_is_published() {
    let body = "@%p1 mbarrier.init.shared::cta.b64 [%r2], 64;\nPUBLISH\nmbarrier.arrive.shared::cta.b64 _, [%r2];";
    run(0, &body.replace("PUBLISH", "bar.sync 0;"), 64).unwrap();
    for seed in 0..SEEDS {
        let fault = run(seed, &body.replace("PUBLISH", "bar.warp.sync -1;"), 64).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Race { .. } | FaultKind::Mbarrier { .. }), "{fault}");
    }
}

#[test]
fn cp_async_arrives_on_a_barrier() {
    let body = "
@%p1 mbarrier.init.shared::cta.b64 [%r2], COUNT;
bar.sync 0;
shl.b32 %r3, %r1, 4; add.u32 %r4, %r2, 1024; add.u32 %r5, %r4, %r3; cvt.u64.u32 %rd3, %r3; add.s64 %rd4, %rd2, %rd3;
cp.async.cg.shared.global [%r5], [%rd4], 16;
ARRIVE
WAIT(%r2, 0)
xor.b32 %r6, %r3, 512; add.u32 %r6, %r4, %r6; ld.shared.b32 %r7, [%r6];
add.s64 %rd5, %rd1, %rd3; st.global.b32 [%rd5], %r7;";
    let noinc = body.replace("COUNT", "64").replace("ARRIVE", "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r2];");
    let plain = body.replace("COUNT", "64").replace(
        "ARRIVE",
        "cp.async.mbarrier.arrive.shared::cta.b64 [%r2];\nmbarrier.arrive.shared::cta.b64 _, [%r2];",
    );
    let without = body.replace("COUNT", "64").replace("ARRIVE", "mbarrier.arrive.shared::cta.b64 _, [%r2];");
    for seed in 0..SEEDS {
        for body in [&noinc, &plain] {
            let out = run(seed, body, 64).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
            assert_eq!((out[0], out[4 * 33]), (128, 4));
        }
    }
    faulty(&without, 64, "ld.shared.b32", |fault| matches!(fault.kind, FaultKind::InFlight { .. }));
}

#[test]
fn reductions_add_into_global_memory() {
    let body = "
shl.b32 %r3, %r1, 2; add.u32 %r4, %r2, 1024; add.u32 %r5, %r4, %r3; st.shared.b32 [%r5], %r1;
fence.proxy.async;
bar.warp.sync -1;
@!%p1 bra end;
cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%rd1], [%r4], 128;
cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%rd1], [%r4], 128;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group.read 0;
WHOLE
ld.global.b32 %r6, [%rd1+124];
st.global.b32 [%rd1+128], %r6;
end:";
    for seed in 0..SEEDS {
        let whole = body.replace("WHOLE", "cp.async.bulk.wait_group 0;");
        let out = run(seed, &whole, 32).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        assert_eq!((out[0], out[5], out[31], out[32]), (0, 10, 62, 62), "seed {seed}");
        let early = run(seed, &body.replace("WHOLE", ""), 32).unwrap_err();
        assert!(matches!(early.kind, FaultKind::Race { .. }), "seed {seed}: {early}");
    }
}

const MEET: &str = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;";

/// Block 0 loads 128 bytes into both blocks; each adds its rank and stores them.
const MULTICAST: &str = "
mov.u32 %r3, %cluster_ctarank;
setp.eq.and.u32 %p2, %r3, 0, %p1;
add.u32 %r4, %r2, 1024; mov.u32 %r5, 3; cvt.u16.u32 %rs1, %r5;
@%p1 mbarrier.init.shared::cta.b64 [%r2], 1;
@%p1 fence.mbarrier_init.release.cluster;
MEET
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 128;
@%p2 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r4], [%rd2], 128, [%r2], %rs1;
WAIT(%r2, 0)
shl.b32 %r6, %r1, 2; add.u32 %r7, %r4, %r6; ld.shared.b32 %r8, [%r7]; add.u32 %r8, %r8, %r3;
shl.b32 %r9, %r3, 7; add.u32 %r9, %r9, %r6; cvt.u64.u32 %rd3, %r9; add.s64 %rd4, %rd1, %rd3;
st.global.b32 [%rd4], %r8;";

#[test]
fn a_multicast_lands_in_every_block() {
    let body = MULTICAST.replace("MEET", MEET);
    for seed in 0..SEEDS {
        let out = run_two(seed, &body).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        let expected = (0..32).chain(1..33);
        assert!(out[..64].iter().copied().eq(expected), "seed {seed}: {:?}", &out[..64]);
        let early = run_two(seed, &MULTICAST.replace("MEET", "")).unwrap_err();
        assert!(matches!(early.kind, FaultKind::Cluster { .. } | FaultKind::Mbarrier { .. }), "{early}");
        // Block 1 leaves without having waited for what it is sent.
        let leaves = body.replace("WAIT(%r2, 0)", "setp.ne.u32 %p3, %r3, 0; @%p3 bra end;\nWAIT(%r2, 0)");
        let fault = run_two(seed, &format!("{leaves}\nend:")).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Exit { .. } | FaultKind::Cluster { .. }), "{fault}");
    }
}

/// Block 1 writes a word of block 0's shared memory and arrives on its barrier.
const REMOTE: &str = "
mov.u32 %r3, %cluster_ctarank; setp.eq.u32 %p2, %r3, 0;
@%p1 mbarrier.init.shared::cta.b64 [%r2], COUNT;
@%p1 fence.mbarrier_init.release.cluster;
MEET
@%p2 bra own;
mov.u32 %r4, 0; mapa.shared::cluster.u32 %r5, %r2, %r4;
shl.b32 %r6, %r1, 2; add.u32 %r6, %r6, %r5;
SEND
bra.uni end;
own:
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], BYTES;
WAIT(%r2, 0)
xor.b32 %r7, %r1, 1; shl.b32 %r7, %r7, 2; add.u32 %r7, %r7, %r2; ld.shared.b32 %r8, [%r7+1024];
@%p1 st.global.b32 [%rd1], %r8;
end:
MEET";

#[test]
fn arrivals_and_values_from_another_block() {
    let body = |count: &str, bytes: &str, send: &str| {
        REMOTE.replace("COUNT", count).replace("BYTES", bytes).replace("SEND", send).replace("MEET", MEET)
    };
    let arrive =
        "st.shared::cluster.b32 [%r6+1024], %r1;\nmbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r5];";
    let relaxed = arrive.replace("release", "relaxed");
    let store = "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r6+1024], %r1, [%r5];";
    for seed in 0..SEEDS {
        for body in [body("33", "0", arrive), body("1", "128", store)] {
            let out = run_two(seed, &body).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
            assert_eq!(out[0], 1, "seed {seed}");
        }
        let fault = run_two(seed, &body("33", "0", &relaxed)).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Race { .. }), "seed {seed}: {fault}");
        let few = run_two(seed, &body("1", "64", store)).unwrap_err();
        assert!(
            matches!(
                few.kind,
                FaultKind::InFlight { .. } | FaultKind::Mbarrier { .. } | FaultKind::Uninitialised { .. }
            ),
            "seed {seed}: {few}"
        );
    }
}

#[test]
fn a_copy_between_blocks() {
    let body = "
mov.u32 %r3, %cluster_ctarank; xor.b32 %r4, %r3, 1;
@%p1 mbarrier.init.shared::cta.b64 [%r2], 1;
@%p1 fence.mbarrier_init.release.cluster;
shl.b32 %r6, %r1, 2; add.u32 %r6, %r6, %r2; mad.lo.u32 %r7, %r3, 100, %r1;
st.shared.b32 [%r6+1024], %r7;
fence.proxy.async;
MEET
@!%p1 bra wait;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 128;
add.u32 %r8, %r2, 2048; mapa.shared::cluster.u32 %r9, %r8, %r4; mapa.shared::cluster.u32 %r10, %r2, %r4;
add.u32 %r11, %r2, 1024;
cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r9], [%r11], 128, [%r10];
wait:
bar.warp.sync -1;
WAIT(%r2, 0)
ld.shared.b32 %r12, [%r6+2048];
shl.b32 %r13, %r3, 7; shl.b32 %r14, %r1, 2; add.u32 %r13, %r13, %r14; cvt.u64.u32 %rd3, %r13; add.s64 %rd4, %rd1, %rd3;
st.global.b32 [%rd4], %r12;
MEET";
    for seed in 0..SEEDS {
        let out = run_two(seed, &body.replace("MEET", MEET)).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        assert!(out[..64].iter().copied().eq((100..132).chain(0..32)), "seed {seed}: {:?}", &out[..64]);
        let unfenced = body.replace("fence.proxy.async;\n", "").replace("MEET", MEET);
        let fault = run_two(seed, &unfenced).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Proxy { .. }), "{fault}");
    }
}

#[test]
fn a_bulk_load_of_what_the_kernel_has_stored() {
    let body = "
@%p1 mbarrier.init.shared::cta.b64 [%r2], 1;
@%p1 fence.mbarrier_init.release.cluster;
shl.b32 %r3, %r1, 2; cvt.u64.u32 %rd3, %r3; add.s64 %rd4, %rd2, %rd3; add.u32 %r4, %r1, 7; st.global.b32 [%rd4], %r4;
FENCE
bar.sync 0;
AFTER
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 256;
@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2+1024], [%rd2], 256, [%r2];
WAIT(%r2, 0)
add.u32 %r5, %r2, %r3; ld.shared.b32 %r6, [%r5+1024]; add.s64 %rd5, %rd1, %rd3; st.global.b32 [%rd5], %r6;";
    let with = |before: &str, after: &str| body.replace("FENCE", before).replace("AFTER", after);
    for seed in 0..SEEDS {
        for body in [with("fence.proxy.async.global;", ""), with("", "@%p1 fence.proxy.async;")] {
            let out = run(seed, &body, 64).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
            assert!(out[..64].iter().copied().eq(7..71), "seed {seed}");
        }
        for body in [with("", ""), with("fence.proxy.async.shared::cta;", "")] {
            let fault = run(seed, &body, 64).unwrap_err();
            assert!(matches!(fault.kind, FaultKind::Proxy { .. }), "seed {seed}: {fault}");
            assert!(fault.to_string().contains("byte 0 of `in`"), "{fault}");
        }
    }
}
