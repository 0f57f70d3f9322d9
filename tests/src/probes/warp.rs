//! Shuffles, votes, matches and reductions of a warp.
use super::Probe;
use super::draw::{integers, rng, words};
use super::template::Elementwise;
use kernels_host::case::Rng;

const N: usize = 8192;

/// The group.
pub(super) fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for mode in ["up", "down", "bfly", "idx"] {
        probes.push(shuffle(mode));
    }
    for mode in ["all", "any", "uni"] {
        let code = format!(
            "setp.lt.u32 %p0, %a, %b;\nvote.sync.{mode}.pred %p1, %p0, -1;\nselp.u32 %x, 1, 0, %p1;\n\
             vote.sync.{mode}.pred %p1, !%p0, -1;\nselp.u32 %y, 1, 0, %p1;"
        );
        probes.push(probe(&format!("vote.{mode}"), thresholds, &[4, 4], &code));
    }
    let code = "setp.lt.u32 %p0, %a, %b;\nvote.sync.ballot.b32 %x, %p0, -1;\nmov.u32 %y, 0;\n\
                @%p0 vote.sync.ballot.b32 %y, !%p0, %x;";
    probes.push(probe("vote.ballot", thresholds, &[4, 4], code));
    for bits in [32, 64] {
        let wide = if bits == 64 { "mov.b64 %l1, {%a, %b};\n" } else { "mov.b32 %r1, %a;\n" };
        let source = if bits == 64 { "%l1" } else { "%r1" };
        let code = format!(
            "{wide}match.any.sync.b{bits} %x, {source}, -1;\nmatch.all.sync.b{bits} %y|%p0, {source}, -1;\nselp.u32 %z, 1, 0, %p0;"
        );
        probes.push(probe(&format!("match.b{bits}"), few, &[4, 4, 4], &code));
    }
    for ty in ["u32", "s32"] {
        for op in ["add", "min", "max"] {
            probes.push(redux(&format!("{op}.{ty}")));
        }
    }
    for op in ["and", "or", "xor"] {
        probes.push(redux(&format!("{op}.b32")));
    }
    let code = "setp.lt.u32 %p0, %a, %b;\nvote.sync.ballot.b32 %r1, %p0, -1;\nmov.u32 %x, 77;\nmov.u32 %y, 77;\n\
                elect.sync %r2|%p1, -1;\nselp.u32 %z, %r2, 99, %p1;\n\
                @%p0 elect.sync %x|%p1, %r1;\n@%p0 selp.u32 %y, 1, 0, %p1;";
    probes.push(probe("elect", thresholds, &[4, 4, 4], code));
    let code = "mov.u32 %x, %lanemask_lt;\nmov.u32 %r1, %lanemask_ge;\nxor.b32 %x, %x, %r1;\nmov.u32 %y, %lanemask_eq;\n\
                mov.u32 %r1, %lanemask_le;\nadd.u32 %y, %y, %r1;\nmov.u32 %z, %lanemask_gt;";
    probes.push(probe("lanemask", few, &[4, 4, 4], code));
    probes
}

/// Every lane its own offset and clamp.
fn shuffle(mode: &str) -> Probe {
    let offsets = |rng: &mut Rng, column: usize| {
        let masks = [0x1f, 0, 0x101f, 0x181f, 0x1c1f, 0x1e1f, 0x1800, 0x1c03, 0x0f0f];
        let value = |rng: &mut Rng| match column {
            1 => rng.below(40) as u32,
            2 => masks[rng.below(masks.len())],
            _ => rng.bits() as u32,
        };
        // Uniform in half of the warps, as compilers emit it.
        let mut values: Vec<u32> = (0..N).map(|_| value(rng)).collect();
        if column > 0 {
            values.chunks_mut(32).step_by(2).for_each(|warp| warp.fill(warp[0]));
        }
        values
    };
    let code = format!("shfl.sync.{mode}.b32 %x|%p0, %a, %b, %c, -1;\nselp.u32 %y, 1, 0, %p0;");
    probe(&format!("shfl.{mode}"), offsets, &[4, 4], &code)
}

fn redux(form: &str) -> Probe {
    let code = format!(
        "redux.sync.{form} %x, %a, -1;\nsetp.lt.u32 %p0, %b, %c;\nvote.sync.ballot.b32 %r1, %p0, -1;\nmov.u32 %y, 0;\n\
         @%p0 redux.sync.{form} %y, %a, %r1;"
    );
    probe(&format!("redux.{form}"), |rng, _| integers(rng, N).iter().map(|&v| v as u32).collect(), &[4, 4], &code)
}

/// Numbers of which all, some or none of a warp's are below each other.
fn thresholds(rng: &mut Rng, column: usize) -> Vec<u32> {
    let value = |rng: &mut Rng, warp: usize| match warp % 4 {
        0 => rng.bits() as u32,
        1 => column as u32,
        2 => 1 - (column as u32).min(1),
        _ => rng.below(33) as u32,
    };
    (0..N).map(|i| value(rng, i / 32)).collect()
}

/// Numbers of which a warp has few different ones, or one.
fn few(rng: &mut Rng, _: usize) -> Vec<u32> {
    (0..N).map(|i| rng.below([1, 2, 5, 1000][i / 32 % 4]) as u32).collect()
}

fn probe(form: &str, draw: impl Fn(&mut Rng, usize) -> Vec<u32>, outputs: &[usize], code: &str) -> Probe {
    let name = format!("warp/{form}");
    let mut rng = rng(&name);
    let inputs = (0..3).map(|column| (4, words(&draw(&mut rng, column)))).collect();
    Elementwise { name, inputs, outputs, code }.probe()
}
