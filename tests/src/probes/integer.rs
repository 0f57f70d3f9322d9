//! Integer arithmetic, logic, shifts and bit fields.
use super::Probe;
use super::draw::{cut, integers, rng};
use super::template::Elementwise;

const N: usize = 8192;

/// The group.
pub(super) fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for ty in ["u16", "s16", "u32", "s32", "u64", "s64"] {
        let size = ty[1..].parse::<usize>().unwrap_or(32) / 8;
        for op in ["add", "sub", "mul.lo", "mul.hi", "min", "max", "shr"] {
            probes.push(same(&format!("{op}.{ty}"), size, 2));
        }
        // A divisor of zero has no defined result: 1 takes its place.
        for op in ["div", "rem"] {
            let code = format!("setp.eq.u{0} %p0, %b, 0;\nselp.b{0} %b, 1, %b, %p0;\n{op}.{ty} %x, %a, %b;", 8 * size);
            probes.push(coded(&format!("{op}.{ty}"), &[size, size], size, &code));
        }
        for op in ["mad.lo", "mad.hi"] {
            probes.push(same(&format!("{op}.{ty}"), size, 3));
        }
        if size < 8 {
            probes.push(coded(
                &format!("mul.wide.{ty}"),
                &[size, size],
                2 * size,
                &format!("mul.wide.{ty} %x, %a, %b;"),
            ));
            let code = format!("mad.wide.{ty} %x, %a, %b, %c;");
            probes.push(coded(&format!("mad.wide.{ty}"), &[size, size, 2 * size], 2 * size, &code));
        }
        if ty.starts_with('s') {
            probes.push(same(&format!("neg.{ty}"), size, 1));
            probes.push(same(&format!("abs.{ty}"), size, 1));
        }
    }
    for size in [2, 4, 8] {
        for op in ["and", "or", "xor", "shl"] {
            probes.push(same(&format!("{op}.b{}", 8 * size), size, 2));
        }
        probes.push(same(&format!("not.b{}", 8 * size), size, 1));
    }
    bits(&mut probes);
    comparisons(&mut probes);
    probes
}

fn bits(probes: &mut Vec<Probe>) {
    for size in [4, 8] {
        let bits = 8 * size;
        for op in ["popc", "clz"] {
            probes.push(coded(&format!("{op}.b{bits}"), &[size], 4, &format!("{op}.b{bits} %x, %a;")));
        }
        probes.push(same(&format!("brev.b{bits}"), size, 1));
        for sign in ["u", "s"] {
            let form = format!("bfe.{sign}{bits}");
            probes.push(coded(&form, &[size, 4, 4], size, &format!("{form} %x, %a, %b, %c;")));
        }
        probes.push(coded(
            &format!("bfi.b{bits}"),
            &[size, size, 4, 4],
            size,
            &format!("bfi.b{bits} %x, %a, %b, %c, %d;"),
        ));
    }
    probes.push(same("prmt.b32", 4, 3));
    for mode in ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"] {
        probes.push(same(&format!("prmt.b32.{mode}"), 4, 3));
    }
    for direction in ["l", "r"] {
        for mode in ["wrap", "clamp"] {
            probes.push(same(&format!("shf.{direction}.{mode}.b32"), 4, 3));
        }
    }
    for table in [0x00, 0x1b, 0x80, 0x96, 0xe8, 0xca, 0xfe, 0xff] {
        probes.push(coded(&format!("lop3.b32-{table:02x}"), &[4; 3], 4, &format!("lop3.b32 %x, %a, %b, %c, {table};")));
    }
    for form in ["u32.u32", "s32.s32", "u32.s32"] {
        probes.push(same(&format!("dp4a.{form}"), 4, 3));
    }
}

fn comparisons(probes: &mut Vec<Probe>) {
    for (ty, size) in [("u16", 2), ("s16", 2), ("u32", 4), ("s32", 4), ("u64", 8), ("s64", 8)] {
        let mut code = "mov.u32 %x, 0;\n".to_owned();
        for (bit, cmp) in ["eq", "ne", "lt", "le", "gt", "ge"].into_iter().enumerate() {
            code +=
                &format!("setp.{cmp}.{ty} %p0, %a, %b;\nselp.u32 %r1, {}, 0, %p0;\nor.b32 %x, %x, %r1;\n", 1 << bit);
        }
        probes.push(coded(&format!("setp.{ty}"), &[size, size], 4, &code));
    }
}

/// Operands and result of one size; the shifts' second operand is a word.
fn same(form: &str, size: usize, arity: usize) -> Probe {
    let operands = ["%a", "%a, %b", "%a, %b, %c"][arity - 1];
    let mut sizes = vec![size; arity];
    if form.starts_with("sh") && arity == 2 {
        sizes[1] = 4;
    }
    coded(form, &sizes, size, &format!("{form} %x, {operands};"))
}

fn coded(form: &str, inputs: &[usize], output: usize, code: &str) -> Probe {
    let name = format!("integer/{form}");
    let mut rng = rng(&name);
    let mut columns: Vec<Vec<u64>> = inputs.iter().map(|_| integers(&mut rng, N)).collect();
    // Special values meet: later columns' start is rotated.
    for (at, column) in columns.iter_mut().enumerate() {
        column.rotate_right(5 * at);
    }
    let inputs = inputs.iter().zip(&columns).map(|(&size, column)| (size, cut(column, size))).collect();
    Elementwise { name, inputs, outputs: &[output], code }.probe()
}
