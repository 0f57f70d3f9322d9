//! f32 and f64 arithmetic: rounding, `.ftz`, `.sat`, subnormal numbers, NaNs, signed zeros, comparisons.
use super::Probe;
use super::draw::{bytes, f32_tuples, rng, words};
use super::template::Elementwise;
use std::fmt::Write;

const N: usize = 8192;

/// The group.
pub(super) fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for op in ["add", "sub", "mul"] {
        for flags in ["", ".ftz", ".sat", ".ftz.sat"] {
            probes.push(f32_probe(&format!("{op}.rn{flags}.f32"), 2));
        }
    }
    for flags in ["", ".ftz", ".sat", ".ftz.sat"] {
        probes.push(f32_probe(&format!("fma.rn{flags}.f32"), 3));
    }
    for op in ["min", "max"] {
        for flags in ["", ".ftz", ".NaN", ".ftz.NaN"] {
            probes.push(f32_probe(&format!("{op}{flags}.f32"), 2));
        }
    }
    for op in ["neg.f32", "neg.ftz.f32", "abs.f32", "abs.ftz.f32", "sqrt.rn.f32", "sqrt.rn.ftz.f32", "rcp.rn.f32"] {
        probes.push(f32_probe(op, 1));
    }
    for op in ["rcp.rn.ftz.f32", "cvt.sat.f32.f32", "cvt.ftz.f32.f32", "cvt.ftz.sat.f32.f32"] {
        probes.push(f32_probe(op, 1));
    }
    for op in ["div.rn.f32", "div.rn.ftz.f32", "copysign.f32"] {
        probes.push(f32_probe(op, 2));
    }
    for (op, arity) in
        [("add.rn", 2), ("mul.rn", 2), ("div.rn", 2), ("fma.rn", 3), ("sqrt.rn", 1), ("min", 2), ("max", 2)]
    {
        probes.push(f64_probe(&format!("{op}.f64"), arity));
    }
    probes.push(comparisons(""));
    probes.push(comparisons(".ftz"));
    probes
}

fn operands(arity: usize) -> &'static str {
    ["", "%a", "%a, %b", "%a, %b, %c"][arity]
}

fn f32_probe(op: &str, arity: usize) -> Probe {
    let name = format!("f32/{op}");
    let inputs = f32_tuples(&mut rng(&name), arity, N).iter().map(|column| (4, words(column))).collect();
    Elementwise { name, inputs, outputs: &[4], code: &format!("{op} %x, {};", operands(arity)) }.probe()
}

fn f64_probe(op: &str, arity: usize) -> Probe {
    let name = format!("f64/{op}");
    let mut rng = rng(&name);
    let columns = f32_tuples(&mut rng, arity, N);
    // The f32's sign, exponent and special patterns, with random bits below.
    let mut widen = |&bits: &u32| {
        let (number, low) = (f64::from(f32::from_bits(bits)), rng.bits() & 0x0fff_ffff);
        if number.is_finite() && number != 0.0 { f64::from_bits(number.to_bits() | low) } else { number }.to_bits()
    };
    let inputs = columns.iter().map(|column| {
        let column: Vec<u64> = column.iter().map(&mut widen).collect();
        (8, bytes(&column, |v| v.to_le_bytes()))
    });
    let inputs = inputs.collect();
    Elementwise { name, inputs, outputs: &[8], code: &format!("{op} %x, {};", operands(arity)) }.probe()
}

/// All comparisons of two numbers, a bit each.
fn comparisons(ftz: &str) -> Probe {
    const ALL: [&str; 14] =
        ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];
    let name = format!("f32/setp{ftz}");
    let mut code = "mov.u32 %x, 0;\n".to_owned();
    for (bit, cmp) in ALL.iter().enumerate() {
        let bit = 1 << bit;
        let _ = write!(code, "setp.{cmp}{ftz}.f32 %p0, %a, %b;\nselp.u32 %r1, {bit}, 0, %p0;\nor.b32 %x, %x, %r1;\n");
    }
    let inputs = f32_tuples(&mut rng(&name), 2, N).iter().map(|column| (4, words(column))).collect();
    Elementwise { name, inputs, outputs: &[4], code: &code }.probe()
}
