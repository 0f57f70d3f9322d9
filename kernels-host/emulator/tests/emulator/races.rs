//! Data races in global memory, across warps and blocks: what orders accesses and what does not.

use ptx_emulator::{Access, Device, Fault, FaultKind, Grid, Param};

use crate::{module, numbers, words};

/// Runs `body` on `blocks` blocks of 64 threads; `out` has a word per thread of the grid and `in` 64 zeros.
fn run(seed: u64, body: &str, blocks: u32) -> Result<Vec<u32>, Fault> {
    let mut device = Device::new(seed);
    device.set_instruction_limit(1 << 20);
    let bytes = blocks as usize * 256;
    let (out, data) = (device.alloc("out", bytes), device.alloc("in", 256));
    device.write(out, &vec![0; bytes])?;
    device.write(data, &words(&[0; 64]))?;
    device.launch(&module(body), "k", Grid::linear(blocks, 64), &[Param::U64(out), Param::U64(data)], 1024)?;
    Ok(numbers(&device.read(out, bytes)?))
}

fn clean(body: &str, blocks: u32) {
    for seed in 0..20 {
        run(seed, body, blocks).unwrap_or_else(|fault| panic!("seed {seed}: {fault}\n{body}"));
    }
}

/// The fault under seed 0; every one of 20 seeds must find a race.
fn racy(body: &str, blocks: u32) -> Fault {
    let faults = (0..20).map(|seed| match run(seed, body, blocks) {
        Err(fault) if matches!(fault.kind, FaultKind::Race { .. }) => fault,
        Err(fault) => panic!("seed {seed}: {fault}\n{body}"),
        Ok(_) => panic!("seed {seed}: no race was found in\n{body}"),
    });
    faults.collect::<Vec<_>>().swap_remove(0)
}

/// Block 0 writes `out[0]` and raises the flag `in[0]`; block 1 waits for the flag and reads `out[0]`. One thread of
/// each block does it.
fn handover(before: &str, raise: &str, poll: &str, after: &str) -> String {
    format!(
        "ld.param.b64 %rd1, [out]; ld.param.b64 %rd2, [in]; mov.u32 %r2, %ctaid.x;
        setp.ne.u32 %p1, %r1, 0; @%p1 bra done;
        setp.eq.u32 %p2, %r2, 1; @%p2 bra consumer;
        st.global.b32 [%rd1], 7; {before} {raise} bra done;
        consumer: {poll} setp.eq.u32 %p3, %r3, 0; @%p3 bra consumer;
        {after} ld.global.b32 %r4, [%rd1]; st.global.b32 [%rd1+256], %r4;
        done:"
    )
}

const RAISE: &str = "st.relaxed.gpu.global.b32 [%rd2], 1;";
const POLL: &str = "ld.relaxed.gpu.global.b32 %r3, [%rd2];";
const FENCE: &str = "fence.acq_rel.gpu;";

#[test]
fn blocks_race_unless_a_flag_orders_them() {
    let same = "mov.u32 %r2, %ctaid.x; ld.param.b64 %rd1, [out]; st.global.b32 [%rd1+4], %r2;";
    let fault = racy(&format!("setp.ne.u32 %p1, %r1, 5; @%p1 bra done; {same} done:"), 2);
    let FaultKind::Race {
        access: Access::Write, other: Access::Write, thread: 5, block: Some(block), line, place, ..
    } = &fault.kind
    else {
        panic!("{fault}")
    };
    assert_eq!((place.as_str(), *line), ("byte 4 of `out`", 9));
    let here = fault.site.as_ref().unwrap().block;
    assert!(here != *block && here[0] + block[0] == 1, "{fault}");
    assert!(fault.to_string().contains("unordered with the write by thread 5 of block ["), "{fault}");
}

#[test]
fn a_flag_needs_a_fence_on_either_side() {
    clean(&handover(FENCE, RAISE, POLL, FENCE), 2);
    racy(&handover("", RAISE, POLL, FENCE), 2);
    racy(&handover(FENCE, RAISE, POLL, ""), 2);
    clean(
        &handover(
            "membar.gl;",
            "st.volatile.global.b32 [%rd2], 1;",
            "ld.volatile.global.b32 %r3, [%rd2];",
            "membar.gl;",
        ),
        2,
    );
}

#[test]
fn releases_and_acquires_order_without_fences() {
    let release = "st.release.gpu.global.b32 [%rd2], 1;";
    let acquire = "ld.acquire.gpu.global.b32 %r3, [%rd2];";
    clean(&handover("", release, acquire, ""), 2);
    clean(&handover(FENCE, RAISE, acquire, ""), 2);
    clean(
        &handover(
            "",
            "red.release.gpu.global.add.u32 [%rd2], 1;",
            "atom.acquire.gpu.global.or.b32 %r3, [%rd2], 0;",
            "",
        ),
        2,
    );
    racy(&handover("", "red.global.add.u32 [%rd2], 1;", acquire, ""), 2);
}

#[test]
fn a_narrow_scope_orders_no_other_block() {
    racy(&handover("fence.acq_rel.cta;", RAISE, POLL, FENCE), 2);
    racy(&handover(FENCE, RAISE, POLL, "membar.cta;"), 2);
    // Strong accesses whose scopes do not hold each other race themselves.
    racy(&handover("", "st.release.cta.global.b32 [%rd2], 1;", "ld.acquire.gpu.global.b32 %r3, [%rd2];", ""), 2);
    racy("ld.param.b64 %rd2, [in]; red.relaxed.cta.global.add.u32 [%rd2], 1;", 2);
    clean("ld.param.b64 %rd2, [in]; red.relaxed.gpu.global.add.u32 [%rd2], 1;", 2);
}

#[test]
fn a_plain_flag_is_itself_a_race() {
    let fault = racy(&handover(FENCE, "st.global.b32 [%rd2], 1;", POLL, FENCE), 2);
    assert!(fault.to_string().contains("byte 0 of `in`"), "{fault}");
}

/// The last of the blocks to come adds what all have left, as a reduction across blocks does.
fn last_block(before: &str, count: &str) -> String {
    format!(
        "mov.u32 %r2, %ctaid.x; mul.wide.u32 %rd4, %r2, 256; add.s64 %rd5, %rd1, %rd4;
        ld.param.b64 %rd2, [in]; ld.param.b64 %rd6, [out]; mov.u32 %r9, smem;
        st.global.b32 [%rd5], 3; {before} setp.ne.u32 %p1, %r1, 0; @%p1 bra joined;
        {count} st.shared.b32 [%r9], %r3; joined: bar.sync 0; ld.shared.b32 %r3, [%r9];
        setp.ne.u32 %p2, %r3, 3; @%p2 bra done;
        mul.wide.u32 %rd7, %r1, 4; add.s64 %rd6, %rd6, %rd7; ld.global.b32 %r4, [%rd6]; ld.global.b32 %r5, [%rd6+512];
        add.s32 %r4, %r4, %r5; st.global.b32 [%rd6+768], %r4; done:"
    )
}

#[test]
fn counters_pass_on_what_all_blocks_released() {
    clean(&last_block("bar.sync 0;", "atom.acq_rel.gpu.global.add.u32 %r3, [%rd2], 1;"), 4);
    let fenced = "membar.gl; atom.global.add.u32 %r3, [%rd2], 1; membar.gl;";
    clean(&last_block("bar.sync 0;", fenced), 4);
    // Every thread fences for itself before the barrier.
    clean(&last_block("fence.acq_rel.gpu; bar.sync 0;", "atom.acquire.gpu.global.add.u32 %r3, [%rd2], 1;"), 4);
    racy(&last_block("bar.sync 0;", "atom.global.add.u32 %r3, [%rd2], 1;"), 4);
    racy(&last_block("", "atom.acq_rel.gpu.global.add.u32 %r3, [%rd2], 1;"), 4);
}

#[test]
fn warps_and_lanes_of_a_block_need_barriers() {
    // Every thread reads the word that the thread across wrote.
    let exchange = |distance: u32, barrier: &str| {
        format!(
            "ld.param.b64 %rd6, [out]; xor.b32 %r2, %r1, {distance}; mul.wide.u32 %rd7, %r2, 4; add.s64 %rd6, %rd6, %rd7;
            st.global.b32 [%rd1], %r1; {barrier} ld.global.b32 %r3, [%rd6]; bar.sync 1; st.global.b32 [%rd1], %r3;"
        )
    };
    clean(&exchange(32, "bar.sync 0;"), 1);
    let fault = racy(&exchange(32, ""), 1);
    assert!(matches!(fault.kind, FaultKind::Race { block: None, .. }), "{fault}");
    clean(&exchange(1, "bar.warp.sync -1;"), 1);
    racy(&exchange(1, ""), 1);
    // A fence orders the accesses of its own thread only.
    racy(&exchange(1, "fence.acq_rel.cta;"), 1);
}

#[test]
fn lanes_of_one_store_must_agree() {
    clean("ld.param.b64 %rd1, [out]; setp.gt.u32 %p1, %r1, 31; @!%p1 st.global.b32 [%rd1], 1;", 1);
    let fault = racy("ld.param.b64 %rd1, [out]; setp.gt.u32 %p1, %r1, 31; @!%p1 st.global.b32 [%rd1], %r1;", 1);
    assert!(matches!(fault.kind, FaultKind::Race { thread: 0, other: Access::Write, .. }), "{fault}");
}

#[test]
fn a_write_must_not_pass_a_read_of_another_block() {
    let body = "mov.u32 %r2, %ctaid.x; setp.eq.u32 %p1, %r2, 0; ld.param.b64 %rd1, [out];
        @%p1 ld.global.b32 %r3, [%rd1+8]; setp.eq.u32 %p2, %r1, 40; @%p2 bra last; bra done;
        last: @!%p1 st.global.b32 [%rd1+8], 1; done:";
    racy(body, 2);
    // Neighbours within a word and within a sector do not race.
    clean(&body.replace("st.global.b32 [%rd1+8], 1;", "st.global.b32 [%rd1+12], 1;"), 2);
    let halves = "mov.u32 %r2, %ctaid.x; mul.wide.u32 %rd4, %r2, 2; ld.param.b64 %rd1, [out]; add.s64 %rd1, %rd1, %rd4;
        setp.ne.u32 %p1, %r1, 0; @%p1 bra done; ld.global.b16 %rs1, [%rd1]; st.global.b16 [%rd1], %rs1; done:";
    clean(halves, 2);
}

#[test]
fn constant_loads_need_constant_memory() {
    let body = "ld.global.nc.b32 %r2, [%rd1]; st.global.b32 [%rd1], %r2;";
    for seed in 0..20 {
        let fault = run(seed, body, 1).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::NotConstant { .. }), "{fault}");
    }
    clean("ld.global.nc.b32 %r2, [%rd2]; st.global.b32 [%rd1], %r2;", 1);
}

/// Thread 0 lets a bulk copy store 16 bytes of shared memory to `out`, does `then`, and meets the others.
fn bulk_store(copy: &str, then: &str) -> String {
    format!(
        "mov.u32 %r4, smem; ld.param.b64 %rd6, [out]; setp.ne.u32 %p1, %r1, 0; @%p1 bra joined;
        st.shared.v4.b32 [%r4], {{%r1, %r1, %r1, %r1}}; fence.proxy.async;
        {copy} [%rd6], [%r4], 16; cp.async.bulk.commit_group; {then} joined: bar.sync 0;"
    )
}

#[test]
fn stores_of_bulk_copies_are_done_when_they_are_waited_for() {
    let store = "cp.async.bulk.global.shared::cta.bulk_group";
    let read = "setp.eq.u32 %p2, %r1, 40; @%p2 ld.global.b32 %r5, [%rd6+8];";
    clean(&format!("{} {read}", bulk_store(store, "cp.async.bulk.wait_group 0;")), 1);
    // The source has been read; that says nothing of the destination.
    let fault = racy(&format!("{} {read}", bulk_store(store, "cp.async.bulk.wait_group.read 0;")), 1);
    assert!(fault.to_string().contains("unordered with the write by thread 0 at line 11"), "{fault}");
    racy(&bulk_store(store, "cp.async.bulk.wait_group 0;"), 2);
    let add = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32";
    clean(&bulk_store(add, "cp.async.bulk.wait_group 0;"), 2);
}
