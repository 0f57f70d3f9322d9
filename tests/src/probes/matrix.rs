//! `mma.sync`, `ldmatrix` and `stmatrix`.
use super::draw::{Spread, elements, rng, words};
use super::template::{Elementwise, module, vector};
use super::{Compare, Layout, Probe};

const N: usize = 2048;

/// The group.
pub(super) fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for (shape, ty, [a, b]) in [
        ("m16n8k16", "bf16", [4, 2]),
        ("m16n8k16", "f16", [4, 2]),
        ("m16n8k8", "bf16", [2, 1]),
        ("m16n8k8", "f16", [2, 1]),
        ("m16n8k8", "tf32", [4, 2]),
        ("m16n8k4", "tf32", [2, 1]),
        ("m16n8k32", "e4m3", [4, 2]),
        ("m16n8k32", "e5m2", [4, 2]),
    ] {
        for spread in [Spread::Exact, Spread::Normal, Spread::Wide, Spread::Any] {
            probes.push(mma(shape, [ty, ty, "f32"], [a, b], spread, ""));
        }
    }
    probes.push(mma("m16n8k32", ["e4m3", "e5m2", "f32"], [4, 2], Spread::Normal, ""));
    for [a, b] in [["s8", "s8"], ["u8", "u8"], ["s8", "u8"]] {
        for saturate in ["", ".satfinite"] {
            probes.push(mma("m16n8k32", [a, b, "s32"], [4, 2], Spread::Any, saturate));
            probes.push(mma("m16n8k16", [a, b, "s32"], [2, 1], Spread::Any, saturate));
        }
    }
    for count in [1, 2, 4] {
        for transpose in ["", ".trans"] {
            probes.push(load(count, transpose));
            probes.push(store(count, transpose));
        }
    }
    probes
}

fn mma(shape: &str, [a, b, sum]: [&str; 3], [a_count, b_count]: [usize; 2], spread: Spread, saturate: &str) -> Probe {
    let form = format!("mma.sync.aligned.{shape}.row.col{saturate}.{sum}.{a}.{b}.{sum}");
    let name = format!("mma/{}.{spread:?}", &form["mma.sync.aligned.".len()..]);
    let mut rng = rng(&name);
    let mut inputs = Vec::new();
    for (ty, count) in [(a, a_count), (b, b_count), (sum, 4)] {
        inputs.extend((0..count).map(|_| (4, elements(&mut rng, ty, spread, 4 * N))));
    }
    let names: Vec<String> = "abcdefghijkl".chars().take(inputs.len()).map(|name| format!("%{name}")).collect();
    let list = |range: std::ops::Range<usize>| names[range].join(", ");
    let (end_a, end_b) = (a_count, a_count + b_count);
    let code = format!(
        "{form} {{%x, %y, %z, %w}}, {{{}}}, {{{}}}, {{{}}};",
        list(0..end_a),
        list(end_a..end_b),
        list(end_b..end_b + 4)
    );
    Elementwise { name, inputs, outputs: &[4; 4], code: &code }.probe()
}

/// Bytes of shared memory that the matrices' rows lie in.
const ROWS: usize = 4096;

/// Copies buffer 0 to shared memory, one thread a word; `%r2` is the thread.
fn fill_shared() -> String {
    format!(
        "mov.u32 %r2, %tid.x;\nld.param.u64 %l0, [p0];\nmov.u32 %r0, %r2;\nfill:\nmul.wide.u32 %l1, %r0, 4;\n\
         add.u64 %l1, %l1, %l0;\nld.global.b32 %r1, [%l1];\nmov.u32 %r3, smem;\nmad.lo.u32 %r3, %r0, 4, %r3;\n\
         st.shared.b32 [%r3], %r1;\nadd.u32 %r0, %r0, 32;\nsetp.lt.u32 %p0, %r0, {};\n@%p0 bra fill;\nbar.sync 0;\n\
         ld.param.u64 %l0, [p1];\nmul.wide.u32 %l1, %r2, 4;\nadd.u64 %l0, %l0, %l1;\nld.global.b32 %r4, [%l0];\n\
         mov.u32 %r3, smem;\nadd.u32 %r4, %r4, %r3;\n",
        ROWS / 4
    )
}

const REGISTERS: &str = ".reg .pred %p<4>; .reg .b32 %r<10>; .reg .b32 %v<4>; .reg .b64 %l<4>;";

/// 16-byte rows in any order, each once.
fn row_offsets(rng: &mut kernels_host::case::Rng) -> Vec<u8> {
    let mut rows: Vec<u32> = (0..ROWS as u32 / 16).collect();
    for i in (1..rows.len()).rev() {
        rows.swap(i, rng.below(i + 1));
    }
    let offsets: Vec<u32> = rows[..32].iter().map(|row| row * 16).collect();
    words(&offsets)
}

fn load(count: usize, transpose: &str) -> Probe {
    let name = format!("ldmatrix/x{count}{transpose}");
    let mut rng = rng(&name);
    let mut body = fill_shared();
    body += &format!("ldmatrix.sync.aligned.m8n8.x{count}{transpose}.shared.b16 {}, [%r4];\n", vector("%v", count));
    body += "ld.param.u64 %l0, [p2];\nadd.u64 %l0, %l0, %l1;\n";
    for i in 0..count {
        body += &format!("st.global.b32 [%l0+{}], %v{i};\n", 128 * i);
    }
    let data = elements(&mut rng, "u8", Spread::Any, ROWS);
    let buffers = vec![data, row_offsets(&mut rng), vec![0xee; 128 * count]];
    shared_probe(name, buffers, &body)
}

fn store(count: usize, transpose: &str) -> Probe {
    let name = format!("stmatrix/x{count}{transpose}");
    let mut rng = rng(&name);
    let mut body = fill_shared();
    for i in 0..count {
        body += &format!("mad.lo.u32 %v{i}, %r2, 0x{:x}, 0x{:x};\n", 0x0102_0408 * (i + 1), rng.bits() as u32);
    }
    body += &format!("stmatrix.sync.aligned.m8n8.x{count}{transpose}.shared.b16 [%r4], {};\n", vector("%v", count));
    body += &format!(
        "bar.sync 0;\nld.param.u64 %l0, [p2];\nmov.u32 %r0, %r2;\ndump:\nmul.wide.u32 %l1, %r0, 4;\n\
         add.u64 %l1, %l1, %l0;\nmov.u32 %r3, smem;\nmad.lo.u32 %r3, %r0, 4, %r3;\nld.shared.b32 %r1, [%r3];\n\
         st.global.b32 [%l1], %r1;\nadd.u32 %r0, %r0, 32;\nsetp.lt.u32 %p0, %r0, {};\n@%p0 bra dump;\n",
        ROWS / 4
    );
    let buffers = vec![vec![0; ROWS], row_offsets(&mut rng), vec![0xee; ROWS]];
    shared_probe(name, buffers, &body)
}

fn shared_probe(name: String, buffers: Vec<Vec<u8>>, body: &str) -> Probe {
    Probe {
        name,
        ptx: module(buffers.len(), 0, REGISTERS, body),
        blocks: 1,
        threads: 32,
        shared: ROWS as u32,
        output: buffers.len() - 1,
        buffers,
        maps: Vec::new(),
        compare: Compare::Exact,
        layout: Layout::Plain(4),
    }
}
