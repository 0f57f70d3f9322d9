//! Arithmetic of f16, bf16 and pairs of them.
use super::Probe;
use super::draw::rng;
use super::template::Elementwise;
use kernels_host::case::Rng;

const N: usize = 8192;

/// The group.
pub(super) fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for ty in ["f16", "f16x2", "bf16", "bf16x2"] {
        for op in ["add.rn", "sub.rn", "mul.rn", "min", "max", "min.NaN", "max.NaN"] {
            probes.push(probe(op, ty, 2));
        }
        probes.push(probe("fma.rn", ty, 3));
        probes.push(probe("fma.rn.relu", ty, 3));
        probes.push(probe("neg", ty, 1));
        probes.push(probe("abs", ty, 1));
        if ty.starts_with('f') {
            for op in ["add.rn.sat", "mul.rn.ftz", "add.ftz", "min.ftz"] {
                probes.push(probe(op, ty, 2));
            }
        }
    }
    probes
}

/// A pattern of 16 bits: anything, or an exponent near one.
fn half(rng: &mut Rng, ty: &str) -> u16 {
    const SPECIAL: [u16; 20] = [
        0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x7f, 0x80, 0x3c00, 0xbc00, 0x3f80, 0xbf80, 0x7bff, 0x7c00, 0xfc00, 0x7f7f,
        0x7f80, 0xff80, 0x7e00, 0xffff,
    ];
    let bits = rng.bits() as u16;
    match rng.below(8) {
        0 => SPECIAL[rng.below(SPECIAL.len())],
        1 => bits,
        _ if ty.starts_with("bf16") => (bits & 0x807f) | ((117 + rng.below(20) as u16) << 7),
        _ => (bits & 0x83ff) | ((5 + rng.below(20) as u16) << 10),
    }
}

fn probe(op: &str, ty: &str, arity: usize) -> Probe {
    let name = format!("packed/{op}.{ty}");
    let mut rng = rng(&name);
    let size = if ty.ends_with("x2") { 4 } else { 2 };
    let column = |rng: &mut Rng| (0..N * size / 2).flat_map(|_| half(rng, ty).to_le_bytes()).collect::<Vec<u8>>();
    let inputs = (0..arity).map(|_| (size, column(&mut rng))).collect();
    let operands = ["%a", "%a, %b", "%a, %b, %c"][arity - 1];
    Elementwise { name, inputs, outputs: &[size], code: &format!("{op}.{ty} %x, {operands};") }.probe()
}
