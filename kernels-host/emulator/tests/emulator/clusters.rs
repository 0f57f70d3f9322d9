//! Blocks of a cluster: identity, each other's shared memory, their barrier.

use ptx_emulator::{Device, Fault, FaultKind, Grid, LaunchOptions, Param};

use crate::{module, numbers};

/// Runs `body` on `blocks` blocks in clusters of `cluster`; `%rd1` is the thread's word of `out` in the whole grid.
fn run(seed: u64, body: &str, blocks: u32, cluster: u32, threads: u32) -> Result<Vec<u32>, Fault> {
    let mut device = Device::new(seed);
    device.set_instruction_limit(1 << 22);
    let bytes = (blocks * threads * 4) as usize;
    let out = device.alloc("out", bytes);
    device.write(out, &vec![0; bytes])?;
    let place = "mov.u32 %r28, %ctaid.x; mov.u32 %r27, %ntid.x; mul.lo.u32 %r28, %r28, %r27;
        mul.wide.u32 %rd28, %r28, 4; add.s64 %rd1, %rd1, %rd28;";
    let options = LaunchOptions { shared_bytes: 4096, cluster: Some([cluster, 1, 1]), ..LaunchOptions::default() };
    let params = [Param::U64(out), Param::U64(out)];
    device.launch_with(&module(&format!("{place}\n{body}")), "k", Grid::linear(blocks, threads), &params, &options)?;
    Ok(numbers(&device.read(out, bytes)?))
}

/// Every thread writes a word of its own shared memory and reads the same word of the next block of the cluster.
const RING: &str = "mov.u32 %r2, %cluster_ctarank; mov.u32 %r3, %cluster_nctarank;
    add.u32 %r4, %r2, 1; rem.u32 %r4, %r4, %r3;
    mov.u32 %r5, smem; shl.b32 %r6, %r1, 2; add.u32 %r5, %r5, %r6;
    mad.lo.u32 %r7, %r2, 1000, %r1; st.shared.b32 [%r5], %r7;
    BEFORE
    mapa.shared::cluster.u32 %r8, %r5, %r4; ld.shared::cluster.b32 %r9, [%r8];
    AFTER
    st.global.b32 [%rd1], %r9;";

fn ring(before: &str, after: &str) -> String {
    RING.replace("BEFORE", before).replace("AFTER", after)
}

const MEET: &str = "barrier.cluster.arrive; barrier.cluster.wait;";
const MEET_ALIGNED: &str = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;";

#[test]
fn blocks_read_their_neighbours_shared_memory() {
    for seed in 0..20 {
        for (blocks, cluster, threads) in [(4, 4, 40), (6, 2, 64), (16, 16, 32), (3, 1, 32)] {
            let found = run(seed, &ring(MEET_ALIGNED, MEET), blocks, cluster, threads).unwrap();
            for (block, words) in found.chunks(threads as usize).enumerate() {
                let next = (block as u32 % cluster + 1) % cluster;
                let expected: Vec<u32> = (0..threads).map(|thread| next * 1000 + thread).collect();
                assert_eq!(words, expected, "seed {seed}, block {block} of {blocks}");
            }
        }
    }
}

#[test]
fn generic_addresses_lead_to_peers_too() {
    let body = "mov.u32 %r2, %cluster_ctarank; xor.b32 %r3, %r2, 1; mov.u32 %r4, smem; cvt.u64.u32 %rd4, %r4;
        cvta.shared.u64 %rd4, %rd4; setp.eq.u32 %p1, %r1, 0; @%p1 st.b32 [%rd4], 5;
        barrier.cluster.arrive; barrier.cluster.wait;
        mapa.u64 %rd5, %rd4, %r3; @%p1 atom.add.u32 %r5, [%rd5], %r3; getctarank.u64 %r6, %rd5;
        barrier.cluster.arrive; barrier.cluster.wait;
        ld.b32 %r7, [%rd4]; mad.lo.u32 %r9, %r6, 100, %r7; st.global.b32 [%rd1], %r9;";
    for seed in 0..20 {
        let found = run(seed, body, 2, 2, 32).unwrap();
        assert_eq!((found[0], found[32]), (105, 6), "seed {seed}");
    }
}

#[test]
fn a_peer_is_only_there_after_a_barrier() {
    for seed in 0..20 {
        let fault = run(seed, &ring("bar.sync 0;", MEET), 2, 2, 32).unwrap_err();
        let FaultKind::Cluster { what } = &fault.kind else { panic!("{fault}") };
        assert!(what.contains("may not have started"), "{fault}");
        assert_eq!(fault.site.unwrap().instruction, "ld.shared::cluster.b32");
    }
}

#[test]
fn a_peer_that_may_have_exited_is_not_read() {
    for seed in 0..20 {
        let fault = run(seed, &ring(MEET, ""), 2, 2, 32).unwrap_err();
        let FaultKind::Cluster { what } = &fault.kind else { panic!("{fault}") };
        assert!(what.contains("which has exited") || what.contains("may not have finished its access"), "{fault}");
    }
}

#[test]
fn accesses_across_the_cluster_race() {
    // The write comes after the barrier that the neighbour relies on.
    let late = ring(MEET, MEET).replace("st.shared.b32 [%r5], %r7;", "").replace(
        "mapa",
        "st.shared.b32 [%r5], %r7;
        mapa",
    );
    let relaxed = ring("barrier.cluster.arrive.relaxed; barrier.cluster.wait;", MEET);
    for seed in 0..20 {
        let fault = run(seed, &late, 2, 2, 32).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. }), "{fault}");
        // The peers have started, but what they wrote need not be there.
        let fault = run(seed, &relaxed, 2, 2, 32).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. }), "{fault}");
    }
    let both = format!("{MEET} {}", ring("barrier.cluster.arrive.relaxed; barrier.cluster.wait;", MEET));
    for seed in 0..20 {
        let fault = run(seed, &both, 2, 2, 32).unwrap_err();
        let FaultKind::Race { place, .. } = &fault.kind else { panic!("{fault}") };
        assert!(place.contains("the other by block"), "{fault}");
    }
}

#[test]
fn a_relaxed_arrival_tells_of_fenced_barriers() {
    // Every block initialises a barrier, at which the next one's first thread arrives.
    let body = "mov.u32 %r2, %cluster_ctarank; mov.u32 %r3, %cluster_nctarank;
        add.u32 %r4, %r2, 1; rem.u32 %r4, %r4, %r3; mov.u32 %r5, smem; setp.eq.u32 %p1, %r1, 0;
        @%p1 mbarrier.init.shared::cta.b64 [%r5], 1; FENCE
        barrier.cluster.arrive.relaxed; barrier.cluster.wait;
        mapa.shared::cluster.u32 %r8, %r5, %r4;
        @%p1 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r8];
        again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r5], 0; @!%p2 bra again;
        st.global.b32 [%rd1], %r4;";
    for seed in 0..20 {
        let found = run(seed, &body.replace("FENCE", "fence.mbarrier_init.release.cluster;"), 4, 4, 40);
        assert_eq!(found.unwrap(), [1, 2, 3, 0].map(|next| [next; 40]).concat(), "seed {seed}");
        let fault = run(seed, &body.replace("FENCE", ""), 4, 4, 40).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Race { .. }), "{fault}");
        // The fence must come before the arrival.
        let late = body.replace("FENCE", "barrier.cluster.arrive.relaxed; barrier.cluster.wait;");
        let late = late.replacen("mapa", "fence.mbarrier_init.release.cluster; mapa", 1);
        assert!(matches!(run(seed, &late, 4, 4, 40).unwrap_err().kind, FaultKind::Race { .. }));
    }
}

#[test]
fn the_barrier_counts_every_thread_once() {
    let twice = run(0, "barrier.cluster.arrive; barrier.cluster.arrive;", 2, 2, 32).unwrap_err();
    assert!(twice.to_string().contains("again without having waited"), "{twice}");
    let never = run(0, "barrier.cluster.wait;", 2, 2, 32).unwrap_err();
    assert!(never.to_string().contains("without having arrived"), "{never}");
    let alone = "mov.u32 %r2, %cluster_ctarank; setp.eq.u32 %p1, %r2, 0;
        @%p1 barrier.cluster.arrive; @%p1 barrier.cluster.wait; @!%p1 bar.sync 1, 64;";
    let stuck = run(0, alone, 2, 2, 32).unwrap_err();
    let FaultKind::Deadlock { waits } = &stuck.kind else { panic!("{stuck}") };
    assert!(waits.contains("the cluster's barrier: 32 of 64 threads have come"), "{stuck}");
    // Who has exited is not waited for; lanes of a warp may come separately.
    let leave = "setp.gt.u32 %p1, %r1, 40; @%p1 ret; setp.lt.u32 %p2, %r1, 7; @%p2 bra low;
        barrier.cluster.arrive; barrier.cluster.wait; bra end;
        low: barrier.cluster.arrive; barrier.cluster.wait;
        end: st.global.b32 [%rd1], 1;";
    for seed in 0..20 {
        assert_eq!(run(seed, leave, 4, 2, 64).unwrap().iter().sum::<u32>(), 4 * 41);
    }
}

#[test]
fn clusters_have_numbers() {
    let text = ".version 8.0 .target sm_90a .address_size 64
        .visible .entry k(.param .u64 out) .reqnctapercluster 2, 1, 3 {
            .reg .b32 %r<20>; .reg .b64 %rd<9>;
            ld.param.b64 %rd1, [out];
            mov.u32 %r1, %clusterid.x; mov.u32 %r2, %clusterid.y; mov.u32 %r3, %clusterid.z;
            mov.u32 %r4, %cluster_ctaid.x; mov.u32 %r5, %cluster_ctaid.z; mov.u32 %r6, %cluster_ctarank;
            mov.u32 %r7, %nclusterid.x; mov.u32 %r8, %cluster_nctaid.z;
            mov.u32 %r10, %ctaid.x; mov.u32 %r11, %ctaid.y; mov.u32 %r12, %ctaid.z;
            mad.lo.u32 %r11, %r12, 5, %r11; mad.lo.u32 %r10, %r11, 6, %r10;
            mul.wide.u32 %rd2, %r10, 32; add.s64 %rd1, %rd1, %rd2;
            st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4}; st.global.v4.b32 [%rd1+16], {%r5, %r6, %r7, %r8};
            ret;
        }";
    let module = ptx_emulator::Module::parse(text).unwrap();
    let mut device = Device::new(3);
    let grid = Grid { blocks: [6, 5, 6], threads: [1, 1, 1] };
    let out = device.alloc("out", 180 * 32);
    device.launch(&module, "k", grid, &[Param::U64(out)], 0).unwrap();
    let found = numbers(&device.read(out, 180 * 32).unwrap());
    for (at, found) in found.chunks(8).enumerate() {
        let [x, y, z] = [at % 6, at / 6 % 5, at / 30].map(|n| n as u32);
        assert_eq!(found, [x / 2, y, z / 3, x % 2, z % 3, x % 2 + z % 3 * 2, 3, 3]);
    }
    let mut refusal = |blocks, cluster| {
        let options = LaunchOptions { cluster, ..LaunchOptions::default() };
        let grid = Grid { blocks, threads: [1, 1, 1] };
        device.launch_with(&module, "k", grid, &[Param::U64(out)], &options).unwrap_err().to_string()
    };
    assert!(refusal([6, 5, 6], Some([3, 1, 1])).contains("`k` declares [2, 1, 3]"));
    assert!(refusal([5, 5, 6], None).contains("is not made of clusters of [2, 1, 3]"));
}

#[test]
fn a_grid_that_waits_for_itself_runs_if_it_is_resident() {
    // Thread 0 of each block counts itself in and spins until all 200 have come.
    let body = "setp.ne.u32 %p1, %r1, 0; @%p1 bra end; ld.param.b64 %rd5, [out]; add.u64 %rd5, %rd5, 25596;
        red.add.release.gpu.global.u32 [%rd5], 1;
        spin: ld.acquire.gpu.global.b32 %r2, [%rd5]; setp.lt.u32 %p1, %r2, 200; @%p1 bra spin;
        st.global.b32 [%rd1], %r2;
        end:";
    for seed in 0..4 {
        assert_eq!(run(seed, body, 200, 1, 32).unwrap()[..1], [200], "seed {seed}");
    }
}
