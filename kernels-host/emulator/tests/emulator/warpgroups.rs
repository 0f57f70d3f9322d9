//! `wgmma` and `setmaxnreg`: products, and what the sanitizer says of their misuse.

use ptx_emulator::formats::{BF16, Narrowing};
use ptx_emulator::tensor::swizzle::Swizzle;
use ptx_emulator::tensor::wgmma::Descriptor;
use ptx_emulator::{Device, Fault, FaultKind, Grid, Module, Param};

use crate::numbers;

/// A block of 128 threads copies `in`, an image of shared memory, 16 bytes of each 2 KiB per thread; runs BODY, which has
/// the descriptors of a and b in `%rd10` and `%rd11`; and stores the eight registers of d.
const KERNEL: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 smem[];
.visible .entry k(.param .u64 out, .param .u64 in, .param .u32 bytes, .param .u64 a, .param .u64 b) .maxntid 128, 1, 1 {
.reg .pred %p<9>; .reg .b32 %r<40>; .reg .b64 %rd<20>; .reg .f32 %f<20>;
ld.param.b64 %rd1, [out]; ld.param.b64 %rd2, [in]; ld.param.b32 %r1, [bytes];
ld.param.b64 %rd10, [a]; ld.param.b64 %rd11, [b];
mov.u32 %r2, %tid.x; shl.b32 %r3, %r2, 4; mov.u32 %r4, smem; add.u32 %r4, %r4, %r3; cvt.u64.u32 %rd3, %r3;
add.s64 %rd2, %rd2, %rd3;
copy: ld.global.v4.b32 {%r5, %r6, %r7, %r8}, [%rd2]; st.shared.v4.b32 [%r4], {%r5, %r6, %r7, %r8};
add.u32 %r4, %r4, 2048; add.s64 %rd2, %rd2, 2048; sub.u32 %r1, %r1, 2048; setp.gt.s32 %p1, %r1, 0; @%p1 bra copy;
mov.b32 %f1, 0f00000000; mov.b32 %f2, 0f00000000; mov.b32 %f3, 0f00000000; mov.b32 %f4, 0f00000000;
mov.b32 %f5, 0f00000000; mov.b32 %f6, 0f00000000; mov.b32 %f7, 0f00000000; mov.b32 %f8, 0f00000000;
mov.b32 %r20, 0x3f803f80; mov.pred %p2, -1; mov.pred %p3, 0;
fence.proxy.async.shared::cta; bar.sync 0;
BODY
shl.b32 %r3, %r2, 5; cvt.u64.u32 %rd3, %r3; add.s64 %rd1, %rd1, %rd3;
st.global.v4.b32 [%rd1], {%f1, %f2, %f3, %f4}; st.global.v4.b32 [%rd1+16], {%f5, %f6, %f7, %f8};
ret;\n}";

const D: &str = "{%f1, %f2, %f3, %f4, %f5, %f6, %f7, %f8}";
const WAIT: &str = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;";

fn product(a: &str, scale: &str) -> String {
    format!("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {D}, {a}, %rd11, {scale};\n")
}

/// a and b in shared memory, K-major.
fn shared() -> String {
    product("%rd10", "%p2, 1, 1, 0, 0")
}

/// A number of the matrices: small and whole, so that sums are exact.
fn element(matrix: usize, row: usize, k: usize) -> i32 {
    ((row * 7 + k * 5 + matrix * 3) % 11) as i32 - 5
}

/// An image with a [64, k] at 0 and b [16, k] at `b`, in 128-byte rows of 64 numbers that are swizzled.
fn image(b: usize) -> Vec<u8> {
    let mut image = vec![0; (b + 2048).next_multiple_of(2048)];
    for (matrix, base, rows) in [(0, 0, 64), (1, b, 16)] {
        for (row, k) in (0..rows).flat_map(|row| (0..64).map(move |k| (row, k))) {
            let at = Swizzle::B128.apply((base + row * 128 + k * 2) as u32) as usize;
            let code = BF16.from_f32(element(matrix, row, k) as f32, Narrowing::RN) as u16;
            image[at..at + 2].copy_from_slice(&code.to_le_bytes());
        }
    }
    image
}

const B: usize = 8192;

fn descriptor(start: usize, swizzle: Swizzle) -> u64 {
    Descriptor { start: start as u32, leading: 16, stride: 1024, base_offset: 0, swizzle }.encode()
}

fn run(seed: u64, body: &str, swizzle: Swizzle) -> Result<Vec<f32>, Fault> {
    run_text(seed, &KERNEL.replace("BODY", body), swizzle)
}

fn run_text(seed: u64, text: &str, swizzle: Swizzle) -> Result<Vec<f32>, Fault> {
    let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let mut device = Device::new(seed);
    device.set_instruction_limit(1 << 20);
    let image = image(B);
    let (out, data) = (device.alloc("out", 128 * 32), device.alloc("in", image.len()));
    device.write(data, &image)?;
    let (a, b) = (descriptor(0, swizzle), descriptor(B, swizzle));
    let params = [Param::U64(out), Param::U64(data), Param::U32(image.len() as u32), Param::U64(a), Param::U64(b)];
    device.launch(&module, "k", Grid::linear(1, 128), &params, image.len())?;
    let values = numbers(&device.read(out, 128 * 32)?);
    Ok(values.into_iter().map(f32::from_bits).collect())
}

/// What register `r` of d of a thread is for, as row and column.
fn place(thread: usize, r: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    (16 * warp + lane / 4 + 8 * (r / 2 % 2), 8 * (r / 4) + 2 * (lane % 4) + r % 2)
}

fn expect(found: &[f32], wanted: impl Fn(usize, usize) -> i32) {
    for (at, found) in found.iter().enumerate() {
        let (row, column) = place(at / 8, at % 8);
        assert_eq!(*found, wanted(row, column) as f32, "row {row}, column {column}");
    }
}

fn dot(row: usize, column: usize, k: std::ops::Range<usize>) -> i32 {
    k.map(|k| element(0, row, k) * element(1, column, k)).sum()
}

fn fault(body: &str) -> Fault {
    let first = run(0, body, Swizzle::B128).expect_err(body);
    for seed in 1..20 {
        let fault = run(seed, body, Swizzle::B128).expect_err(body);
        assert_eq!(std::mem::discriminant(&fault.kind), std::mem::discriminant(&first.kind), "{fault}");
    }
    first
}

#[test]
fn products_of_shared_memory_and_of_registers() {
    let next = "add.s64 %rd10, %rd10, 2; add.s64 %rd11, %rd11, 2;\n";
    let two = format!("wgmma.fence.sync.aligned; {} {next} {} {WAIT}", shared(), shared());
    let ones = product("{%r20, %r20, %r20, %r20}", "%p2, 1, 1, 0");
    let negative = product("{%r20, %r20, %r20, %r20}", "%p3, -1, 1, 0");
    for seed in 0..20 {
        let found = run(seed, &two, Swizzle::B128).unwrap();
        expect(&found, |row, column| dot(row, column, 0..32));
        let found = run(seed, &format!("wgmma.fence.sync.aligned; {ones} {ones} {WAIT}"), Swizzle::B128).unwrap();
        let sum = |column| (0..16).map(|k| element(1, column, k)).sum::<i32>();
        expect(&found, |_, column| 2 * sum(column));
        // Without scale-d what was there does not count; the sign of a is turned.
        let found = run(seed, &format!("wgmma.fence.sync.aligned; {ones} {negative} {WAIT}"), Swizzle::B128).unwrap();
        expect(&found, |_, column| -sum(column));
    }
}

#[test]
fn groups_are_waited_for_in_order() {
    let second = shared()
        .replace("{%f1, %f2, %f3, %f4, %f5, %f6, %f7, %f8}", "{%f11, %f12, %f13, %f14, %f15, %f16, %f17, %f18}");
    let body = format!(
        "mov.b32 %f11, %f1; mov.b32 %f12, %f1; mov.b32 %f13, %f1; mov.b32 %f14, %f1; mov.b32 %f15, %f1;
        mov.b32 %f16, %f1; mov.b32 %f17, %f1; mov.b32 %f18, %f1;
        wgmma.fence.sync.aligned; {} wgmma.commit_group.sync.aligned; {second} wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned PENDING; add.f32 %f1, %f1, %f1; wgmma.wait_group.sync.aligned 0;
        add.f32 %f1, %f1, %f11;",
        shared()
    );
    for seed in 0..20 {
        let found = run(seed, &body.replace("PENDING", "1"), Swizzle::B128).unwrap();
        // Three times the product in the first register, once in the others.
        let first = |row: usize, column: usize| row % 16 < 8 && column < 8 && column.is_multiple_of(2);
        expect(&found, |row, column| dot(row, column, 0..16) * if first(row, column) { 3 } else { 1 });
    }
    let early = fault(&body.replace("PENDING", "2"));
    assert!(early.to_string().contains("use of %f1"), "{early}");
}

#[test]
fn a_wrong_swizzle_gives_a_wrong_product() {
    let body = format!("wgmma.fence.sync.aligned; {} {WAIT}", shared());
    let found = run(0, &body, Swizzle::B64).unwrap();
    let wrong = (0..1024).filter(|at| {
        let (row, column) = place(at / 8, at % 8);
        found[*at] != dot(row, column, 0..16) as f32
    });
    assert!(wrong.count() > 256);
}

#[test]
fn accumulators_wait() {
    let read = fault(&format!(
        "wgmma.fence.sync.aligned; {} wgmma.commit_group.sync.aligned;\nadd.f32 %f9, %f1, %f1;\n
        wgmma.wait_group.sync.aligned 0;",
        shared()
    ));
    let FaultKind::TensorRegister { register, .. } = &read.kind else { panic!("{read}") };
    assert_eq!((register.as_str(), read.site.unwrap().instruction.as_str()), ("%f1", "add.f32"));
    // A wait does not cover what was not committed.
    let open = fault(&format!("wgmma.fence.sync.aligned; {} wgmma.wait_group.sync.aligned 0;", shared()));
    assert!(matches!(open.kind, FaultKind::TensorRegister { .. }), "{open}");
    let never = fault(&format!("wgmma.fence.sync.aligned; {} wgmma.commit_group.sync.aligned; exit;", shared()));
    assert!(never.to_string().contains("the warp exits before the wgmma"), "{never}");
}

#[test]
fn fragments_of_a_stay_until_the_wait() {
    let body = |gap: &str| {
        let product = product("{%r20, %r20, %r20, %r20}", "%p2, 1, 1, 0");
        format!("wgmma.fence.sync.aligned; {product} wgmma.commit_group.sync.aligned; {gap} mov.b32 %r20, 0;")
    };
    let early = fault(&body(""));
    assert!(early.to_string().contains("use of %r20, which the wgmma"), "{early}");
    run(0, &body("wgmma.wait_group.sync.aligned 0;"), Swizzle::B128).unwrap();
}

#[test]
fn registers_are_fenced() {
    let none = fault(&format!("{} {WAIT}", shared()));
    assert!(none.to_string().contains("before any wgmma.fence"), "{none}");
    let stale = fault(&format!("wgmma.fence.sync.aligned; add.f32 %f3, %f3, %f3; {} {WAIT}", shared()));
    let FaultKind::TensorFence { register } = &stale.kind else { panic!("{stale}") };
    assert_eq!(register, "%f3");
    // A d that does not count may be written, not read, after the fence.
    let fresh = |gap: &str| {
        let product = shared().replace("%p2, 1, 1", "0, 1, 1");
        format!("wgmma.fence.sync.aligned; {gap} {product} {WAIT}")
    };
    run(0, &fresh("mov.b32 %f3, 0f3F800000;"), Swizzle::B128).unwrap();
    assert!(matches!(fault(&fresh("add.f32 %f9, %f3, %f3;")).kind, FaultKind::TensorFence { .. }));
    let again = format!("wgmma.fence.sync.aligned; {0} {WAIT} add.f32 %f9, %f2, %f2; FENCE {0} {WAIT}", shared());
    let read = fault(&again.replace("FENCE", ""));
    assert!(matches!(read.kind, FaultKind::TensorFence { .. }), "{read}");
    run(0, &again.replace("FENCE", "wgmma.fence.sync.aligned;"), Swizzle::B128).unwrap();
}

#[test]
fn operands_stay_until_the_wait() {
    // Thread 0 writes over b; its own warp, or a barrier, says that all have waited, or does not.
    let body = |before: &str, after: &str| {
        format!(
            "wgmma.fence.sync.aligned; {} wgmma.commit_group.sync.aligned; {before}
            setp.eq.u32 %p4, %r2, 0; mov.u32 %r30, smem;\n@%p4 st.shared.b32 [%r30+8192], 0;\n{after}",
            shared()
        )
    };
    let wait = "wgmma.wait_group.sync.aligned 0;";
    let early = fault(&body("", wait));
    let FaultKind::Operand { place, .. } = &early.kind else { panic!("{early}") };
    assert!(place.contains("byte 8192"), "{early}");
    for seed in 0..20 {
        // The other warps have not waited, or have not said so.
        let alone = run(seed, &body(wait, ""), Swizzle::B128).unwrap_err();
        assert!(matches!(alone.kind, FaultKind::Operand { .. } | FaultKind::Race { .. }), "{alone}");
        run(seed, &body(&format!("{wait} bar.sync 0;"), ""), Swizzle::B128).unwrap();
    }
}

#[test]
fn operands_are_there_before_the_issue() {
    let publish = "fence.proxy.async.shared::cta; bar.sync 0;";
    let early = |seed, instead: &str| {
        let body = format!("wgmma.fence.sync.aligned; {} {WAIT}", shared());
        run_text(seed, &KERNEL.replace(publish, instead).replace("BODY", &body), Swizzle::B128).unwrap_err()
    };
    for seed in 0..20 {
        let nothing = early(seed, "");
        let caught =
            matches!(nothing.kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. } | FaultKind::Proxy { .. });
        assert!(caught, "{nothing}");
        let unfenced = early(seed, "bar.sync 0;");
        assert!(unfenced.to_string().contains("missing fence.proxy.async"), "{unfenced}");
    }
}

#[test]
fn all_warps_of_a_group_execute_the_same() {
    let third = "shr.u32 %r31, %r2, 5; setp.eq.u32 %p4, %r31, 2;";
    let skip = format!("{third} wgmma.fence.sync.aligned; @%p4 bra past; {0} past: {WAIT}", shared());
    let skipped = fault(&skip);
    assert!(skipped.to_string().contains("all four must come"), "{skipped}");
    let other = format!("{third} wgmma.fence.sync.aligned; @%p4 add.s64 %rd11, %rd11, 2; {} {WAIT}", shared());
    assert!(fault(&other).to_string().contains("has other descriptors here"));
    let gone = fault(&format!("{third} @%p4 exit; wgmma.fence.sync.aligned; {} {WAIT}", shared()));
    assert!(matches!(gone.kind, FaultKind::Warpgroup { .. }), "{gone}");
    // A copy of the fence in each arm of a branch, as compilers make them: the lanes never all meet.
    let odd = "and.b32 %r31, %r2, 1; setp.eq.u32 %p4, %r31, 1;";
    let split = format!("{odd} @%p4 bra odd; wgmma.fence.sync.aligned; bra both; odd: wgmma.fence.sync.aligned; both:");
    assert!(matches!(fault(&split).kind, FaultKind::Divergent { .. }));
}

#[test]
fn registers_move_between_warpgroups() {
    let kernel = |threads: u32, bounds: &str, body: &str| {
        let text = format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k() {bounds} {{
            .reg .pred %p<3>; .reg .b32 %r<3>; mov.u32 %r1, %tid.x; setp.ge.u32 %p1, %r1, 256; @%p1 bra producer;
            {body} ret; producer: setmaxnreg.dec.sync.aligned.u32 40; }}"
        );
        let module = Module::parse(&text).unwrap();
        let launch = |seed| Device::new(seed).launch(&module, "k", Grid::linear(3, threads), &[], 0);
        (0..20).map(launch).collect::<Result<Vec<_>, _>>()
    };
    let bounds = ".maxntid 384, 1, 1 .minnctapersm 1";
    let reports = kernel(384, bounds, "setmaxnreg.inc.sync.aligned.u32 232;").unwrap();
    assert!(reports.iter().all(|report| *report == reports[0]), "waiting is not counted");
    let greedy = kernel(384, bounds, "setmaxnreg.inc.sync.aligned.u32 240;").unwrap_err();
    let FaultKind::Deadlock { waits } = &greedy.kind else { panic!("{greedy}") };
    assert!(waits.contains("setmaxnreg's pool holds"), "{waits}");
    let down = kernel(384, bounds, "setmaxnreg.inc.sync.aligned.u32 160;").unwrap_err();
    assert!(down.to_string().contains("the threads have 168 registers: up to 160"), "{down}");
    let odd = Module::parse(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k() { setmaxnreg.dec.sync.aligned.u32 42; }",
    );
    assert!(odd.unwrap_err().to_string().contains("42 registers are no multiple of 8"));
}
