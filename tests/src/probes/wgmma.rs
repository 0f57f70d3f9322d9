//! `wgmma.mma_async`: every type and width that kernels use, both sources of a, all layouts of shared memory.
use super::draw::{Spread, elements, rng};
use super::template::{module, vector};
use super::{Compare, Layout, Probe};

/// How an operand lies in shared memory.
#[derive(Clone, Copy, Debug)]
struct Tile {
    /// Bytes of the swizzle: 0 for none, 32, 64, 128.
    swizzle: u32,
    /// Elements of M or N next to each other instead of K.
    transposed: bool,
    leading: u32,
    stride: u32,
    /// Bytes from the tile's aligned start to the first element: a step along K.
    advance: u32,
}

impl Tile {
    /// K-major under a swizzle, groups of eight rows one after another; without one, core matrices in columns.
    fn k_major(swizzle: u32) -> Tile {
        let (leading, stride) = if swizzle == 0 { (128, 256) } else { (16, 8 * swizzle) };
        Tile { swizzle, transposed: false, leading, stride, advance: 0 }
    }

    /// M- or N-major: groups of eight of K one after another, then the next columns.
    fn transposed(swizzle: u32) -> Tile {
        let (leading, stride) = if swizzle == 0 { (128, 256) } else { (16 * swizzle, 8 * swizzle) };
        Tile { swizzle, transposed: true, leading, stride, advance: 0 }
    }

    /// The descriptor without its start.
    fn descriptor(self) -> u64 {
        let swizzle = match self.swizzle {
            0 => 0,
            128 => 1,
            64 => 2,
            _ => 3u64,
        };
        u64::from(self.leading >> 4) << 16 | u64::from(self.stride >> 4) << 32 | swizzle << 62
    }
}

/// One instruction.
struct Form {
    n: usize,
    a: &'static str,
    b: &'static str,
    spread: Spread,
    /// None: a in registers.
    tile_a: Option<Tile>,
    tile_b: Tile,
    /// `scale-d`.
    accumulate: bool,
    /// `imm-scale-a`, `imm-scale-b`.
    scale: [i32; 2],
    /// Instructions one after the other, each 32 bytes of K further.
    steps: u32,
}

/// The group.
pub(super) fn probes() -> Vec<Probe> {
    let base = |n, ty| Form {
        n,
        a: ty,
        b: ty,
        spread: Spread::Normal,
        tile_a: Some(Tile::k_major(128)),
        tile_b: Tile::k_major(128),
        accumulate: true,
        scale: [1, 1],
        steps: 1,
    };
    let mut forms = Vec::new();
    for ty in ["bf16", "f16"] {
        forms.extend([8, 16, 24, 32, 64, 96, 128, 192, 256].map(|n| base(n, ty)));
        forms.extend([16, 64, 128].map(|n| Form { tile_a: None, ..base(n, ty) }));
        forms.extend([Spread::Exact, Spread::Wide, Spread::Any].map(|spread| Form { spread, ..base(64, ty) }));
        forms.push(Form { accumulate: false, ..base(64, ty) });
        forms.push(Form { spread: Spread::Any, accumulate: false, ..base(32, ty) });
        forms.extend([[-1, 1], [1, -1], [-1, -1]].map(|scale| Form { scale, ..base(16, ty) }));
        for swizzle in [0, 32, 64, 128] {
            let (plain, across) = (Tile::k_major(swizzle), Tile::transposed(swizzle));
            forms.push(Form { tile_a: Some(plain), tile_b: plain, ..base(40, ty) });
            forms.push(Form { tile_a: Some(plain), tile_b: across, ..base(128, ty) });
            forms.push(Form { tile_a: Some(across), tile_b: plain, ..base(32, ty) });
            forms.push(Form { tile_a: Some(across), tile_b: across, ..base(192, ty) });
            forms.push(Form { tile_a: None, tile_b: across, ..base(64, ty) });
        }
        for advance in [32, 64, 96] {
            let tile = Tile { advance, ..Tile::k_major(128) };
            forms.push(Form { tile_a: Some(tile), tile_b: tile, ..base(64, ty) });
        }
        forms.push(Form { steps: 4, ..base(128, ty) });
    }
    for ty in ["e4m3", "e5m2"] {
        forms.extend([8, 64, 128, 256].map(|n| base(n, ty)));
        forms.extend([Spread::Exact, Spread::Wide, Spread::Any].map(|spread| Form { spread, ..base(64, ty) }));
        forms.extend([0, 32, 64].map(|s| Form {
            tile_a: Some(Tile::k_major(s)),
            tile_b: Tile::k_major(s),
            ..base(32, ty)
        }));
        forms.push(Form { tile_a: None, ..base(64, ty) });
        forms.push(Form { steps: 4, ..base(64, ty) });
    }
    forms.push(Form { b: "e5m2", ..base(64, "e4m3") });
    for ty in ["s8", "u8"] {
        forms.extend([8, 64, 256].map(|n| Form { spread: Spread::Any, ..base(n, ty) }));
        forms.push(Form { spread: Spread::Any, tile_a: None, ..base(64, ty) });
        forms.push(Form { spread: Spread::Any, tile_b: Tile::k_major(0), ..base(32, ty) });
    }
    for spread in [Spread::Exact, Spread::Normal, Spread::Wide] {
        forms.push(Form { spread, ..base(64, "tf32") });
    }
    forms.push(Form { tile_a: None, ..base(32, "tf32") });
    forms.iter().map(probe).collect()
}

/// Bytes of shared memory for a tile: the farthest is 256 columns of 128 bytes, or as many with gaps.
const TILE: u32 = 48 * 1024;

fn name(form: &Form) -> String {
    let Form { n, a, b, spread, tile_a, tile_b, accumulate, scale, steps } = form;
    let layout = |tile: &Tile| {
        let transposed = if tile.transposed { "t" } else { "" };
        let advance = if tile.advance > 0 { format!("+{}", tile.advance) } else { String::new() };
        format!("{}{transposed}{advance}", tile.swizzle)
    };
    let tile_a = tile_a.as_ref().map_or("registers".to_owned(), layout);
    let mut name = format!("wgmma/n{n}.{a}.{b}.{tile_a}.{}.{spread:?}", layout(tile_b));
    if !accumulate {
        name += ".overwrite";
    }
    if *scale != [1, 1] {
        name += &format!(".scale{}{}", scale[0], scale[1]);
    }
    if *steps > 1 {
        name += &format!(".steps{steps}");
    }
    name
}

fn probe(form: &Form) -> Probe {
    let name = name(form);
    let mut rng = rng(&name);
    let sum = if matches!(form.a, "s8" | "u8") { "s32" } else { "f32" };
    let registers = form.n / 2;
    // Both tiles are filled with elements whatever their layout: descriptors say which are read.
    let shared = [
        elements(&mut rng, form.a, form.spread, TILE as usize),
        elements(&mut rng, form.b, form.spread, TILE as usize),
    ];
    let fragment = elements(&mut rng, form.a, form.spread, 4 * 128 * 4);
    let d = elements(&mut rng, sum, form.spread, registers * 128 * 4);
    let buffers = vec![shared.concat(), fragment, d];
    Probe {
        ptx: module(3, 0, &declarations(registers), &body(form, sum, registers)),
        name,
        blocks: 1,
        threads: 128,
        shared: 2 * TILE,
        output: 2,
        buffers,
        maps: Vec::new(),
        compare: Compare::Exact,
        layout: Layout::Plain(4),
    }
}

fn declarations(registers: usize) -> String {
    format!(".reg .pred %p<4>; .reg .b32 %r<10>, %a<4>, %d<{registers}>; .reg .b64 %l<10>;")
}

fn body(form: &Form, sum: &str, registers: usize) -> String {
    let words = 2 * TILE / 4;
    let mut text = format!(
        "mov.u32 %r2, %tid.x;\nld.param.u64 %l0, [p0];\nmov.u32 %r0, %r2;\nfill:\nmul.wide.u32 %l1, %r0, 4;\n\
         add.u64 %l1, %l1, %l0;\nld.global.b32 %r1, [%l1];\nmov.u32 %r3, smem;\nmad.lo.u32 %r3, %r0, 4, %r3;\n\
         st.shared.b32 [%r3], %r1;\nadd.u32 %r0, %r0, 128;\nsetp.lt.u32 %p0, %r0, {words};\n@%p0 bra fill;\n\
         fence.proxy.async.shared::cta;\nbar.sync 0;\nmul.wide.u32 %l1, %r2, 4;\nld.param.u64 %l0, [p1];\n\
         add.u64 %l0, %l0, %l1;\nld.param.u64 %l2, [p2];\nadd.u64 %l2, %l2, %l1;\n"
    );
    for i in 0..4 {
        text += &format!("ld.global.b32 %a{i}, [%l0+{}];\n", 512 * i);
    }
    for i in 0..registers {
        text += &format!("ld.global.b32 %d{i}, [%l2+{}];\n", 512 * i);
    }
    text += &descriptor("%l3", form.tile_a.unwrap_or(Tile::k_major(128)), 0);
    text += &descriptor("%l4", form.tile_b, TILE);
    text +=
        &format!("mov.u32 %r4, {};\nsetp.ne.b32 %p1, %r4, 0;\nwgmma.fence.sync.aligned;\n", u32::from(form.accumulate));
    for step in 0..form.steps {
        if step > 0 {
            text += "add.u64 %l3, %l3, 2;\nadd.u64 %l4, %l4, 2;\n";
        }
        text += &instruction(form, sum, registers);
    }
    text += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n";
    for i in 0..registers {
        text += &format!("st.global.b32 [%l2+{}], %d{i};\n", 512 * i);
    }
    text
}

/// Puts a tile's descriptor in a register: the address of its start, then the constant fields.
fn descriptor(register: &str, tile: Tile, offset: u32) -> String {
    format!(
        "mov.u32 %r3, smem;\nadd.u32 %r3, %r3, {};\nshr.u32 %r3, %r3, 4;\nand.b32 %r3, %r3, 0x3fff;\n\
         cvt.u64.u32 {register}, %r3;\nor.b64 {register}, {register}, {};\n",
        offset + tile.advance,
        tile.descriptor() as i64
    )
}

fn instruction(form: &Form, sum: &str, registers: usize) -> String {
    let (n, a, b) = (form.n, form.a, form.b);
    let k = match a {
        "f16" | "bf16" => 16,
        "tf32" => 8,
        _ => 32,
    };
    let source = if form.tile_a.is_some() { "%l3".to_owned() } else { vector("%a", 4) };
    let mut text = format!(
        "wgmma.mma_async.sync.aligned.m64n{n}k{k}.{sum}.{a}.{b} {}, {source}, %l4, %p1",
        vector("%d", registers)
    );
    // Integers have neither signs nor transposition.
    if sum == "f32" {
        text += &format!(", {}, {}", form.scale[0], form.scale[1]);
    }
    if k == 16 {
        if let Some(tile) = form.tile_a {
            text += &format!(", {}", u32::from(tile.transposed));
        }
        text += &format!(", {}", u32::from(form.tile_b.transposed));
    }
    text + ";\n"
}
