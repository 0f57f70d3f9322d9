//! Atomics and reductions, one thread per address: what each makes of an old value and an operand.
use super::Probe;
use super::draw::{bytes, cut, f32_tuples, integers, rng, words};
use super::template::Elementwise;

const N: usize = 4096;

/// The group.
pub(super) fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for space in ["global", "shared"] {
        for op in ["add.u32", "add.s32", "min.u32", "min.s32", "max.u32", "max.s32", "inc.u32", "dec.u32"] {
            probes.push(probe(space, op, 4));
        }
        for op in ["and.b32", "or.b32", "xor.b32", "exch.b32", "cas.b32", "add.f32"] {
            probes.push(probe(space, op, 4));
        }
        for op in ["add.u64", "min.u64", "min.s64", "max.u64", "max.s64", "and.b64", "or.b64", "exch.b64", "cas.b64"] {
            probes.push(probe(space, op, 8));
        }
        probes.push(probe(space, "add.f64", 8));
        for op in ["add.noftz.f16x2", "add.noftz.bf16x2"] {
            probes.push(probe(space, op, 4));
        }
        for op in ["add.noftz.f16", "add.noftz.bf16"] {
            probes.push(probe(space, op, 2));
        }
    }
    probes
}

/// `%x` is what the atomic returns, `%y` what memory holds afterwards, `%z` what it holds after a second operation
/// by `red`.
fn probe(space: &str, op: &str, size: usize) -> Probe {
    let name = format!("atomics/{space}.{op}");
    let bits = 8 * size;
    let cas = if op.starts_with("cas") { ", %c" } else { "" };
    let mut code = match space {
        "global" => "mov.b64 %l1, %pa;\n".to_owned(),
        _ => format!(
            "mov.u32 %r1, %tid.x;\nmov.u32 %r2, smem;\nmad.lo.u32 %r1, %r1, 8, %r2;\nst.shared.b{bits} [%r1], %a;\n"
        ),
    };
    let address = if space == "global" { "%l1" } else { "%r1" };
    code += &format!("atom.{space}.{op} %x, [{address}], %b{cas};\nld.{space}.b{bits} %y, [{address}];\n");
    if op.starts_with("cas") || op.starts_with("exch") {
        code += &format!("mov.b{bits} %z, %y;");
    } else {
        code += &format!("red.{space}.{op} [{address}], %c;\nld.{space}.b{bits} %z, [{address}];");
    }
    let mut rng = rng(&name);
    let floats = |rng: &mut _| f32_tuples(rng, 3, N);
    let inputs: Vec<(usize, Vec<u8>)> = match op {
        "add.f32" => floats(&mut rng).iter().map(|c| (4, words(c))).collect(),
        "add.f64" => {
            floats(&mut rng).iter().map(|c| (8, bytes(c, |&v| f64::from(f32::from_bits(v)).to_le_bytes()))).collect()
        }
        _ => (0..3)
            .map(|at| {
                let mut column = integers(&mut rng, N);
                column.rotate_right(3 * at);
                (size, cut(&column, size))
            })
            .collect(),
    };
    let mut inputs = inputs;
    if op.starts_with("cas") {
        // Half of the comparisons succeed.
        let (old, rest) = inputs.split_at_mut(1);
        for i in (0..N).step_by(2) {
            rest[0].1[i * size..][..size].copy_from_slice(&old[0].1[i * size..][..size]);
        }
    }
    let probe = Elementwise { name, inputs, outputs: &[size; 3], code: &code }.probe();
    Probe { shared: if space == "shared" { 8 * 256 } else { 0 }, ..probe }
}
