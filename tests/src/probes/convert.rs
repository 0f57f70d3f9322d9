//! `cvt`: exhaustive over 16-bit sources, all special patterns of wider ones.
use super::Probe;
use super::draw::{all16, cut, f32_tuples, f32s, integers, rng, words};
use super::template::Elementwise;

const N: usize = 16384;

/// Integer types and their sizes.
const INTEGERS: [(&str, usize); 8] =
    [("u8", 1), ("s8", 1), ("u16", 2), ("s16", 2), ("u32", 4), ("s32", 4), ("u64", 8), ("s64", 8)];

/// The group.
pub(super) fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    narrowing(&mut probes);
    from_16_bits(&mut probes);
    to_integers(&mut probes);
    from_integers(&mut probes);
    between_integers(&mut probes);
    for rounding in ["rni", "rzi", "rmi", "rpi"] {
        for flags in ["", ".ftz", ".sat"] {
            probes.push(unary(&format!("{rounding}{flags}.f32.f32"), 4, 4));
        }
    }
    probes
}

/// f32 to the narrow formats.
fn narrowing(probes: &mut Vec<Probe>) {
    for to in ["f16", "bf16"] {
        for flags in ["rn", "rz", "rn.relu", "rz.relu"] {
            probes.push(unary(&format!("{flags}.{to}.f32"), 4, 2));
            probes.push(packing(&format!("{flags}.{to}x2.f32"), 4));
        }
        probes.push(packing(&format!("rn.satfinite.{to}x2.f32"), 4));
    }
    for to in ["e4m3x2", "e5m2x2"] {
        for relu in ["", ".relu"] {
            probes.push(packing(&format!("rn.satfinite{relu}.{to}.f32"), 2));
            probes.push(unary(&format!("rn.satfinite{relu}.{to}.f16x2"), 4, 2));
        }
    }
}

fn from_16_bits(probes: &mut Vec<Probe>) {
    for form in ["f32.f16", "f32.bf16", "rn.f16x2.e4m3x2", "rn.f16x2.e5m2x2", "rn.relu.f16x2.e4m3x2"] {
        probes.push(unary(form, 2, 4));
    }
    for rounding in ["rni", "rzi", "rmi", "rpi"] {
        probes.push(unary(&format!("{rounding}.f16.f16"), 2, 2));
    }
    probes.push(unary("f64.f16", 2, 8));
}

fn to_integers(probes: &mut Vec<Probe>) {
    for rounding in ["rni", "rzi", "rmi", "rpi"] {
        for (to, size) in INTEGERS {
            probes.push(unary(&format!("{rounding}.{to}.f32"), 4, size.max(2)));
            probes.push(unary(&format!("{rounding}.{to}.f16"), 2, size.max(2)));
        }
        probes.push(unary(&format!("{rounding}.ftz.s32.f32"), 4, 4));
        probes.push(unary(&format!("{rounding}.s32.bf16"), 2, 4));
    }
    for form in ["rzi.s32.f64", "rni.u32.f64", "rzi.s64.f64", "rn.f32.f64", "rz.f32.f64", "rn.ftz.f32.f64"] {
        let name = format!("cvt/{form}");
        let size = if form.contains("s64") { 8 } else { 4 };
        // From an f32 and random lower bits, so that exponents are where something happens.
        let tuples = f32_tuples(&mut rng(&name), 2, N);
        let inputs = tuples.iter().map(|column| (4, words(column))).collect();
        let code = format!(
            "cvt.f64.f32 %l1, %a;\ncvt.u64.u32 %l2, %b;\nand.b64 %l2, %l2, 0xfffffff;\nxor.b64 %l1, %l1, %l2;\ncvt.{form} %x, %l1;"
        );
        probes.push(Elementwise { name, inputs, outputs: &[size], code: &code }.probe());
    }
    probes.push(unary("f64.f32", 4, 8));
}

fn from_integers(probes: &mut Vec<Probe>) {
    for (from, size) in INTEGERS.into_iter().filter(|(_, size)| *size > 1) {
        for rounding in ["rn", "rz", "rm", "rp"] {
            probes.push(unary_integer(&format!("{rounding}.f32.{from}"), size, 4));
        }
        probes.push(unary_integer(&format!("rn.f16.{from}"), size, 2));
        probes.push(unary_integer(&format!("rz.f16.{from}"), size, 2));
        probes.push(unary_integer(&format!("rn.bf16.{from}"), size, 2));
        probes.push(unary_integer(&format!("rn.f64.{from}"), size, 8));
    }
}

fn between_integers(probes: &mut Vec<Probe>) {
    for (from, from_size) in INTEGERS {
        for (to, to_size) in INTEGERS.into_iter().filter(|(to, _)| *to != from) {
            for sat in ["", "sat."] {
                let saturates = sat.is_empty() || to_size <= from_size || to.as_bytes()[0] != from.as_bytes()[0];
                // ptxas refuses `.sat` where nothing can be out of range.
                if saturates
                    && (sat.is_empty() || !(from.starts_with('u') && to.starts_with('s') && to_size > from_size))
                {
                    probes.push(unary_integer(&format!("{sat}{to}.{from}"), from_size.max(2), to_size.max(2)));
                }
            }
        }
    }
}

/// Inputs are drawn as f32, or are all patterns of 16 bits.
fn unary(form: &str, from: usize, to: usize) -> Probe {
    let name = format!("cvt/{form}");
    let data = if from == 2 { all16() } else { words(&f32s(&mut rng(&name), N)) };
    // A pair of halves: any bits.
    let data = if form.ends_with("f16x2") { cut(&integers(&mut rng(&name), N), 4) } else { data };
    Elementwise { name, inputs: vec![(from, data)], outputs: &[to], code: &format!("cvt.{form} %x, %a;") }.probe()
}

fn unary_integer(form: &str, from: usize, to: usize) -> Probe {
    let name = format!("cvt/{form}");
    let data = if from == 2 { all16() } else { cut(&integers(&mut rng(&name), N), from) };
    Elementwise { name, inputs: vec![(from, data)], outputs: &[to], code: &format!("cvt.{form} %x, %a;") }.probe()
}

/// Two f32 to a packed pair.
fn packing(form: &str, to: usize) -> Probe {
    let name = format!("cvt/{form}");
    let inputs = f32_tuples(&mut rng(&name), 2, N).iter().map(|column| (4, words(column))).collect();
    Elementwise { name, inputs, outputs: &[to], code: &format!("cvt.{form} %x, %a, %b;") }.probe()
}
