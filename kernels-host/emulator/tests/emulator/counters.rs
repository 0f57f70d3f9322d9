//! What launches are counted to have asked of the machine.

use ptx_emulator::{Banks, Counters, Device, Grid, Param, Traffic};

use crate::{module, words};

fn count(body: &str, threads: u32) -> Counters {
    let mut device = Device::new(0);
    let (out, data) = (device.alloc("out", 8192), device.alloc("in", 8192));
    for address in [out, data] {
        device.write(address, &words(&[1; 2048])).unwrap();
    }
    let params = [Param::U64(out), Param::U64(data)];
    device.launch(&module(body), "k", Grid::linear(1, threads), &params, 8192).unwrap().counters
}

#[test]
fn global_traffic() {
    let counters = count("ld.global.b32 %r2, [%rd2]; st.global.b32 [%rd1], %r2; ld.global.b32 %r3, [%rd2];", 64);
    assert_eq!(counters.global_loads, Traffic { requests: 4, sectors: 16, bytes: 512 });
    assert_eq!(counters.global_stores, Traffic { requests: 2, sectors: 8, bytes: 256 });
    assert_eq!((counters.global_bytes_read, counters.global_bytes_written), (256, 256), "each byte once");
    assert!((counters.global_loads.sectors_per_request() - 4.0).abs() < 1e-9);
    let strided = "shl.b32 %r2, %r1, 6; cvt.u64.u32 %rd5, %r2; ld.param.b64 %rd2, [in]; add.s64 %rd2, %rd2, %rd5;
        ld.global.b32 %r3, [%rd2];";
    assert_eq!(count(strided, 32).global_loads, Traffic { requests: 1, sectors: 32, bytes: 128 });
    let counted = "ld.param.b64 %rd1, [out]; red.global.add.u32 [%rd1], 1;";
    assert_eq!(count(counted, 32).global_atomics, Traffic { requests: 1, sectors: 1, bytes: 128 });
}

#[test]
fn guards_leave_lanes_out() {
    let body = "setp.lt.u32 %p1, %r1, 8; @%p1 ld.global.b32 %r2, [%rd2];";
    assert_eq!(count(body, 64).global_loads, Traffic { requests: 1, sectors: 1, bytes: 32 });
}

#[test]
fn shared_banks() {
    let store = |shift: u32| {
        format!("mov.u32 %r2, smem; shl.b32 %r3, %r1, {shift}; add.s32 %r2, %r2, %r3; st.shared.b32 [%r2], %r1;")
    };
    assert_eq!(count(&store(2), 32).shared_stores, Banks { requests: 1, wavefronts: 1, conflicts: 0 });
    assert_eq!(count(&store(3), 32).shared_stores, Banks { requests: 1, wavefronts: 2, conflicts: 1 });
    assert_eq!(count(&store(7), 32).shared_stores, Banks { requests: 1, wavefronts: 32, conflicts: 31 });
    let generic = format!("{} cvta.shared.u32 %r4, %r2; ld.shared.b32 %r5, [%r2];", store(2));
    assert_eq!(count(&generic, 32).shared_loads, Banks { requests: 1, wavefronts: 1, conflicts: 0 });
}

#[test]
fn matrices_and_barriers() {
    let body =
        "mov.u32 %r2, smem; shl.b32 %r3, %r1, 4; add.s32 %r3, %r2, %r3; shl.b32 %r4, %r1, 7; add.s32 %r4, %r2, %r4;
        st.shared.v4.b32 [%r3], {%r1, %r1, %r1, %r1}; bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r3];
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r9, %r10, %r11, %r12}, {%r5, %r6, %r7, %r8}, {%r5, %r6},
            {%r9, %r10, %r11, %r12};";
    let counters = count(body, 32);
    assert_eq!(counters.shared_loads, Banks { requests: 1, wavefronts: 4, conflicts: 0 });
    assert_eq!(counters.shared_stores, Banks { requests: 1, wavefronts: 4, conflicts: 0 });
    assert_eq!(counters.tensor_operations["bf16"], 2 * 16 * 8 * 16);
    assert_eq!(counters.barrier_waits, 1);
}

#[test]
fn asynchronous_copies_are_loads() {
    let body = "mov.u32 %r2, smem; shl.b32 %r3, %r1, 2; add.s32 %r3, %r2, %r3;
        cp.async.ca.shared.global [%r3], [%rd2], 4; cp.async.wait_all;";
    let counters = count(body, 32);
    assert_eq!(counters.global_loads, Traffic { requests: 1, sectors: 4, bytes: 128 });
    assert_eq!(counters.shared_stores, Banks { requests: 1, wavefronts: 1, conflicts: 0 });
}
