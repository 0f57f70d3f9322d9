//! Entries that Wootz ships, compiled for sm_80, against arithmetic on the host.

use ptx_emulator::formats::{BF16, Narrowing};
use ptx_emulator::{Device, Fault, FaultKind, Grid, Module, Param};

fn fixture(name: &str) -> Module {
    Module::parse(&text(name)).unwrap()
}

fn text(name: &str) -> String {
    let path = format!("{}/tests/fixtures/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// Numbers of about unit size, a different sequence for each `seed`.
fn some_numbers(seed: u32, count: usize) -> Vec<u16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..count).map(|_| bf16(next())).collect()
}

fn bf16(value: f32) -> u16 {
    BF16.from_f32(value, Narrowing::RN) as u16
}

fn wide(value: u16) -> f32 {
    f32::from_bits(u32::from(value) << 16)
}

fn bytes(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn upload(device: &mut Device, name: &str, values: &[u16]) -> u64 {
    let address = device.alloc(name, values.len() * 2);
    device.write(address, &bytes(values)).unwrap();
    address
}

fn download(device: &Device, address: u64, count: usize) -> Vec<u16> {
    let bytes = device.read(address, count * 2).unwrap();
    bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

/// Within one unit in the last place of the eight bits that bf16 keeps.
fn assert_close(found: &[u16], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (wide(*found) - expected).abs();
        assert!(error <= expected.abs() / 128.0 + 1e-30, "{at}: {} for {expected}", wide(*found));
    }
}

#[test]
fn silu_mul() {
    let (tokens, width) = (3, 2056);
    let (gate, up) = (some_numbers(1, tokens * width), some_numbers(2, tokens * width));
    let mut device = Device::new(1);
    let params = [upload(&mut device, "gate", &gate), upload(&mut device, "up", &up)];
    let out = device.alloc("out", tokens * width * 2);
    let w = Param::U32(width as u32);
    let params = [Param::U64(params[0]), Param::U64(params[1]), Param::U64(out), w.clone(), w.clone(), w.clone(), w];
    let grid = Grid { blocks: [3, 2, 1], threads: [256, 1, 1] };
    let report = device.launch(&fixture("silu_mul_bf16"), "silu_mul_bf16", grid, &params, 0).unwrap();
    let silu = |(g, u): (&u16, &u16)| wide(*g) / (1.0 + (-wide(*g)).exp()) * wide(*u);
    let expected: Vec<f32> = gate.iter().zip(&up).map(silu).collect();
    assert_close(&download(&device, out, tokens * width), &expected);
    assert_eq!(report.instructions["ex2.approx.ftz.f32"], 3 * 9 * 8, "nine warps a token have work");
}

#[test]
fn embedding_gather() {
    let (vocab, width) = (11, 64);
    let table = some_numbers(3, vocab * width);
    let ids: [u32; 4] = [10, 0, 11, 3];
    let mut device = Device::new(2);
    let (table_at, ids_at) = (upload(&mut device, "table", &table), device.alloc("ids", 16));
    device.write(ids_at, &crate::words(&ids)).unwrap();
    let out = device.alloc("out", 4 * width * 2);
    let [v, w] = [vocab, width].map(|n| Param::U32(n as u32));
    let params = [Param::U64(table_at), Param::U64(ids_at), Param::U64(out), v, w.clone(), w.clone(), w];
    device.launch(&fixture("embedding_gather"), "embedding_gather", Grid::linear(4, 256), &params, 0).unwrap();
    let row = |id: &u32| match *id as usize {
        id if id < vocab => table[id * width..(id + 1) * width].to_vec(),
        _ => vec![0; width],
    };
    let expected: Vec<u16> = ids.iter().flat_map(row).collect();
    assert_eq!(download(&device, out, 4 * width), expected);
}

#[test]
fn rms_norm() {
    let (tokens, width) = (5, 1032);
    let (x, weight) = (some_numbers(4, tokens * width), some_numbers(5, width));
    let expected: Vec<f32> = x
        .chunks_exact(width)
        .flat_map(|row| {
            let squares: f64 = row.iter().map(|x| f64::from(wide(*x)).powi(2)).sum();
            let scale = 1.0 / (squares / width as f64 + 1e-5).sqrt();
            row.iter().zip(&weight).map(move |(x, w)| wide(*x) * scale as f32 * wide(*w))
        })
        .collect();
    for seed in 0..8 {
        let mut device = Device::new(seed);
        let (x, weight) = (upload(&mut device, "x", &x), upload(&mut device, "weight", &weight));
        let out = device.alloc("out", tokens * width * 2);
        let w = Param::U32(width as u32);
        let [x, weight, at] = [x, weight, out].map(Param::U64);
        let params = [x, Param::U64(0), weight, at, w.clone(), w.clone(), w.clone(), w, Param::F32(1e-5)];
        let module = fixture("rms_norm_bf16");
        device.launch(&module, "rms_norm_bf16", Grid::linear(5, 256), &params, 256).unwrap();
        assert_close(&download(&device, out, tokens * width), &expected);
    }
}

/// Philox4x32-7 of Salmon et al. 2011.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..7 {
        let first = u64::from(counter[0]) * 0xd251_1f53;
        let second = u64::from(counter[2]) * 0xcd9e_8d57;
        let high = |product: u64| (product >> 32) as u32;
        counter = [high(second) ^ counter[1] ^ key[0], second as u32, high(first) ^ counter[3] ^ key[1], first as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[test]
fn fill_normal_bit_for_bit() {
    let (len, seed, step, offset) = (5000 + 3, 0x1234_5678_9abc_def0_u64, 0.02_f32, 0.5_f32);
    let mut expected = Vec::new();
    for group in 0..len / 8 + 1 {
        for word in philox([group as u32, 0, 0, 0], [seed as u32, (seed >> 32) as u32]) {
            let [d, b, c, a] = word.to_le_bytes().map(i32::from);
            let (high, low) = (c + a - 255, d + b - 255);
            expected.push(bf16((high + low) as f32 * step + offset));
            expected.push(bf16((high - low) as f32 * step + offset));
        }
    }
    let mut device = Device::new(3);
    let out = device.alloc("out", len * 2);
    let params = [Param::U64(out), Param::U64(len as u64), Param::U64(seed), Param::F32(step), Param::F32(offset)];
    let module = fixture("fill_normal_bf16");
    device.launch(&module, "fill_normal_bf16", Grid::linear(2, 256), &params, 0).unwrap();
    assert_eq!(download(&device, out, len), expected[..len]);
}

const SKINNY: &str = "skinny16_f32_bf16";

/// a [5, 1000] times w [40, 1000] transposed, in f32; the product, and what it should be.
fn gemm(module: &Module, seed: u64) -> Result<(Vec<f32>, Vec<f64>), Fault> {
    let [m, n, k] = [5, 40, 1000];
    let (a, w) = (some_numbers(6, m * k), some_numbers(7, n * k));
    let dot =
        |a: &[u16], w: &[u16]| -> f64 { a.iter().zip(w).map(|(a, w)| f64::from(wide(*a)) * f64::from(wide(*w))).sum() };
    let expected = a.chunks_exact(k).flat_map(|row| w.chunks_exact(k).map(move |column| dot(row, column))).collect();
    let mut device = Device::new(seed);
    let (a, w) = (upload(&mut device, "a", &a), upload(&mut device, "w", &w));
    let out = device.alloc("out", m * n * 4);
    let mut params = [a, w, 0, out].map(Param::U64).to_vec();
    params.extend([m, n, k, k, k, n, 0, 0].map(|number| Param::U32(number as u32)));
    device.launch(module, SKINNY, Grid::linear(2, 128), &params, 73_728)?;
    let found = crate::numbers(&device.read(out, m * n * 4)?);
    Ok((found.into_iter().map(f32::from_bits).collect(), expected))
}

#[test]
fn gemm_with_asynchronous_copies_and_warp_barriers() {
    for seed in 0..4 {
        let (found, expected) = gemm(&fixture(SKINNY), seed).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() < 3e-3, "seed {seed}: {found} for {expected}");
        }
    }
}

#[test]
fn gemm_with_a_planted_mistake_is_caught() {
    let text = text(SKINNY);
    for seed in 0..4 {
        let mistake = |from: &str, to: &str| {
            assert!(text.contains(from), "{from} is not in the kernel any more");
            gemm(&Module::parse(&text.replace(from, to)).unwrap(), seed).unwrap_err()
        };
        let unordered = mistake("bar.warp.sync", "// ");
        assert!(matches!(unordered.kind, FaultKind::Race { .. }), "{unordered}");
        let early = mistake("cp.async.wait_group 4;", "cp.async.wait_group 5;");
        assert!(matches!(early.kind, FaultKind::InFlight { .. }), "{early}");
        let open = mistake("bar.sync", "// ");
        // Which of the accesses that the barrier separates comes first depends on the seed.
        let caught =
            matches!(open.kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. } | FaultKind::InFlight { .. });
        assert!(caught, "{open}");
    }
}
