//! Bulk copies, and copies through tensor maps: boxes that reach over every edge, each type, rank and swizzle.
use super::draw::{Spread, elements, rng};
use super::template::{module, vector};
use super::{Compare, Layout, Probe};
use kernels_host::TiledMap;
use kernels_host::case::Rng;

/// Numbers of `CUtensorMapDataType` with PTX names and sizes.
const TYPES: [(u32, &str, u64); 10] = [
    (0, "u8", 1),
    (1, "u16", 2),
    (2, "u32", 4),
    (3, "s32", 4),
    (4, "u64", 8),
    (5, "s64", 8),
    (6, "f16", 2),
    (7, "f32", 4),
    (8, "f64", 8),
    (9, "bf16", 2),
];

const THREADS: u32 = 128;
/// Boxes of a probe.
const POSITIONS: usize = 16;
const REGISTERS: &str = ".reg .pred %p<4>; .reg .b32 %r<10>, %c<5>; .reg .b64 %l<10>;";

/// A tensor and its box, without the type.
struct Shape {
    dims: &'static [u64],
    box_dims: &'static [u32],
    steps: &'static [u32],
    swizzle: u32,
    nan_fill: bool,
}

const PLAIN: Shape = Shape { dims: &[40, 20], box_dims: &[16, 8], steps: &[1, 1], swizzle: 0, nan_fill: false };

/// The group.
pub(super) fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for data_type in 0..10 {
        probes.push(load("type", data_type, &PLAIN));
        probes.push(store("type", data_type, &PLAIN, None));
    }
    for shape in ranks() {
        probes.push(load("rank", 9, &shape));
        probes.push(store("rank", 9, &shape, None));
    }
    for (data_type, shape) in swizzled() {
        probes.push(load("swizzle", data_type, &shape));
        probes.push(store("swizzle", data_type, &shape, None));
    }
    for shape in stepped() {
        probes.push(load("step", 9, &shape));
    }
    for data_type in [6, 7, 8, 9] {
        probes.push(load("nan", data_type, &Shape { nan_fill: true, ..PLAIN }));
    }
    for (op, types) in REDUCTIONS {
        for &data_type in *types {
            probes.push(store("reduce", data_type, &PLAIN, Some(op)));
        }
    }
    refused(&mut probes);
    bulk(&mut probes);
    probes
}

/// Boxes that begin within 16 bytes of a row, and stores that begin before the tensor.
fn refused(probes: &mut Vec<Probe>) {
    let at = |probe: Probe, x: i32, y: i32| Probe {
        name: format!("{}.at{x},{y}", probe.name),
        buffers: [vec![coordinate_bytes(&[[x, y, 0, 0, 0]; POSITIONS])], probe.buffers[1..].to_vec()].concat(),
        compare: Compare::Refused,
        ..probe
    };
    for (data_type, x) in [(0, 1), (0, 8), (1, 1), (9, 2), (9, 4), (7, 1), (7, 2), (8, 1), (9, -1), (9, 41)] {
        probes.push(at(load("refused", data_type, &PLAIN), x, 0));
        probes.push(at(store("refused", data_type, &PLAIN, None), x, 0));
    }
    for [x, y] in [[-8, 0], [0, -1], [-16, 0], [0, -8], [-(1 << 20), 0], [0, -(1 << 20)]] {
        probes.push(at(store("refused", 9, &PLAIN, None), x, y));
    }
}

/// Operations of tensor reductions, and the types that have them.
const REDUCTIONS: &[(&str, &[u32])] = &[
    ("add", &[2, 3, 4, 6, 7, 9]),
    ("min", &[2, 3, 4, 5, 6, 9]),
    ("max", &[2, 3, 4, 5, 6, 9]),
    ("inc", &[2]),
    ("dec", &[2]),
    ("and", &[2, 4]),
    ("or", &[2, 4]),
    ("xor", &[2, 4]),
];

fn ranks() -> [Shape; 5] {
    [
        Shape { dims: &[1000], box_dims: &[64], steps: &[1], ..PLAIN },
        Shape { dims: &[37, 21], box_dims: &[24, 5], steps: &[1; 2], ..PLAIN },
        Shape { dims: &[17, 9, 5], box_dims: &[8, 4, 3], steps: &[1; 3], ..PLAIN },
        Shape { dims: &[17, 5, 4, 6], box_dims: &[8, 3, 2, 2], steps: &[1; 4], ..PLAIN },
        Shape { dims: &[9, 5, 4, 3, 3], box_dims: &[8, 2, 3, 2, 2], steps: &[1; 5], ..PLAIN },
    ]
}

/// Each swizzle with rows as wide as it, and narrower ones.
fn swizzled() -> Vec<(u32, Shape)> {
    let mut shapes = Vec::new();
    let base = Shape { dims: &[70, 50], steps: &[1, 1], ..PLAIN };
    for (swizzle, boxes) in
        [(1, [&[16u32, 24][..], &[8, 24]]), (2, [&[32, 24], &[16, 24]]), (3, [&[64, 24], &[24, 24]])]
    {
        shapes.extend(boxes.map(|box_dims| (9, Shape { swizzle, box_dims, ..base })));
    }
    for (swizzle, box_dims) in [(1, &[32u32, 16][..]), (2, &[64, 16]), (3, &[128, 16])] {
        shapes.push((0, Shape { swizzle, box_dims, dims: &[200, 30], ..base }));
    }
    let deep = Shape { dims: &[70, 9, 7], box_dims: &[64, 6, 4], steps: &[1; 3], ..PLAIN };
    shapes.extend([1, 2, 3].map(|swizzle| {
        let box_dims: &[u32] = [&[16, 6, 4], &[32, 6, 4], &[64, 6, 4]][swizzle as usize - 1];
        (6, Shape { swizzle, box_dims, ..deep })
    }));
    shapes
}

fn stepped() -> [Shape; 5] {
    let base = Shape { dims: &[40, 30], box_dims: &[16, 9], ..PLAIN };
    [
        Shape { steps: &[1, 2], ..base },
        Shape { steps: &[1, 3], ..base },
        Shape { steps: &[1, 8], ..base },
        Shape { steps: &[2, 1], ..base },
        Shape { dims: &[33, 12, 11], box_dims: &[16, 6, 5], steps: &[1, 2, 3], swizzle: 1, ..PLAIN },
    ]
}

impl Shape {
    fn map(&self, buffer: usize, data_type: u32) -> TiledMap {
        let size = TYPES[data_type as usize].2;
        // Rows have gaps, as stacked slices have.
        let mut stride = (self.dims[0] * size).next_multiple_of(16) + 16;
        let mut strides = Vec::new();
        for dim in &self.dims[1..] {
            strides.push(stride);
            stride = stride * dim + 32;
        }
        TiledMap {
            buffer,
            data_type,
            dims: self.dims.to_vec(),
            strides,
            box_dims: self.box_dims.to_vec(),
            element_strides: self.steps.to_vec(),
            swizzle: self.swizzle,
            nan_fill: self.nan_fill,
        }
    }

    /// Bytes of the tensor with its gaps.
    fn tensor_bytes(&self, map: &TiledMap) -> usize {
        let size = TYPES[map.data_type as usize].2;
        let last = self.dims.len() - 1;
        match map.strides.last() {
            Some(stride) => (stride * self.dims[last]) as usize + 64,
            None => (self.dims[0] * size) as usize + 64,
        }
    }

    /// Bytes that a box's barrier counts, and bytes of shared memory that it may reach over.
    fn box_bytes(&self, data_type: u32) -> (u32, u32) {
        let row = self.box_dims[0] * TYPES[data_type as usize].2 as u32;
        let rows: u32 = (1..self.box_dims.len()).map(|axis| self.box_dims[axis].div_ceil(self.steps[axis])).product();
        let pitch = row.max([0, 32, 64, 128][self.swizzle as usize]);
        (row * rows, (pitch * rows).next_multiple_of(1024))
    }

    /// Positions of boxes: the first element, then for each dimension what `choose` makes of its length, the box's, the
    /// step between positions and the number of the box. In dimension 0 boxes begin at multiples of 16 bytes of a row.
    fn positions(&self, data_type: u32, mut choose: impl FnMut([i32; 3], usize) -> i32) -> [[i32; 5]; POSITIONS] {
        std::array::from_fn(|i| {
            let mut at = [0; 5];
            for (axis, (&dim, &extent)) in self.dims.iter().zip(self.box_dims).enumerate() {
                let unit = if axis == 0 { 16 / TYPES[data_type as usize].2 as i32 } else { 1 };
                let choice = choose([dim as i32, extent as i32, unit], i);
                at[axis] = if i == 0 { 0 } else { choice.div_euclid(unit) * unit };
            }
            at
        })
    }

    /// Of loads: all corners' neighbourhoods, far outside.
    fn load_positions(&self, rng: &mut Rng, data_type: u32) -> [[i32; 5]; POSITIONS] {
        self.positions(data_type, |[dim, extent, unit], i| {
            let last = dim - extent;
            let edges = [0, unit, -unit, unit - extent, -extent, dim - 1, dim, last, last + unit, dim / 2];
            let choices = [&edges[..], &[1 << 20, -(1 << 20)]].concat();
            choices[rng.below(if i < 8 { 10 } else { 12 })]
        })
    }

    /// Of stores, which may not begin before the tensor.
    fn store_positions(&self, rng: &mut Rng, data_type: u32) -> [[i32; 5]; POSITIONS] {
        self.positions(data_type, |[dim, extent, unit], _| {
            let last = (dim - extent).max(0);
            let inside = [0, unit, dim - 1, last, last + unit.min(extent - 1), dim / 2];
            let choices = [&inside[..], &[dim + unit - 1, 1 << 20]].concat();
            choices[rng.below(choices.len())]
        })
    }

    fn name(&self, kind: &str, what: &str, data_type: u32) -> String {
        let list = |values: &[u32]| values.iter().map(u32::to_string).collect::<Vec<_>>().join("x");
        let steps =
            if self.steps.iter().all(|&step| step == 1) { String::new() } else { format!(".by{}", list(self.steps)) };
        let swizzle = ["", ".32B", ".64B", ".128B"][self.swizzle as usize];
        format!("tma/{kind}.{what}.{}.{}{swizzle}{steps}", TYPES[data_type as usize].1, list(self.box_dims))
    }
}

fn coordinate_bytes(coordinates: &[[i32; 5]]) -> Vec<u8> {
    coordinates.iter().flatten().flat_map(|c| c.to_le_bytes()).collect()
}

/// Loads `%c0`–`%c4` from block-dependent or looped index `%r4`.
const LOAD_COORDINATES: &str = "ld.param.u64 %l1, [p0];\nmul.wide.u32 %l2, %r4, 20;\nadd.u64 %l1, %l1, %l2;\n\
    ld.global.b32 %c0, [%l1];\nld.global.b32 %c1, [%l1+4];\nld.global.b32 %c2, [%l1+8];\nld.global.b32 %c3, [%l1+12];\n\
    ld.global.b32 %c4, [%l1+16];\n";

/// `%r2` the thread, `%r3` the shared address.
const START: &str = "mov.u32 %r2, %tid.x;\nmov.u32 %r3, smem;\n";

/// A loop of all threads over `bytes` of shared memory: `%r1` is the word's shared address, `%l1` its offset.
fn over_words(label: &str, bytes: u32, body: &str) -> String {
    format!(
        "mov.u32 %r0, %r2;\n{label}:\nmad.lo.u32 %r1, %r0, 4, %r3;\nmul.wide.u32 %l1, %r0, 4;\n{body}\n\
         add.u32 %r0, %r0, {THREADS};\nsetp.lt.u32 %p0, %r0, {};\n@%p0 bra {label};\n",
        bytes / 4
    )
}

/// Waits for phase 0 of the barrier at `[%r5]`, but not forever: `%r6` says whether it came.
const WAIT: &str = "mov.u32 %r7, 0;\nmov.u32 %r6, 1;\nwait:\n\
    mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r5], 0;\n@%p1 bra.uni arrived;\nadd.u32 %r7, %r7, 1;\n\
    setp.lt.u32 %p1, %r7, 20000;\n@%p1 bra wait;\nmov.u32 %r6, 0;\narrived:\n";

/// One block per position: the box's shared memory afterwards, the gaps of narrow rows included.
fn load(what: &str, data_type: u32, shape: &Shape) -> Probe {
    let name = shape.name("load", what, data_type);
    let mut rng = rng(&name);
    let map = shape.map(1, data_type);
    let tensor: Vec<u8> = (0..shape.tensor_bytes(&map)).map(|_| rng.bits() as u8).collect();
    let positions = shape.load_positions(&mut rng, data_type);
    let (bytes, region) = shape.box_bytes(data_type);
    let rank = shape.dims.len();
    let fill = over_words("fill", region, "st.shared.b32 [%r1], 0x5a5a5a5a;");
    let dump =
        over_words("dump", region, "add.u64 %l2, %l0, %l1;\nld.shared.b32 %r7, [%r1];\nst.global.b32 [%l2], %r7;");
    let block = region + 16;
    let body = format!(
        "{START}{fill}mov.u32 %r4, %ctaid.x;\n{LOAD_COORDINATES}add.u32 %r5, %r3, {region};\nsetp.ne.u32 %p2, %r2, 0;\n\
         @%p2 bra started;\nmbarrier.init.shared::cta.b64 [%r5], 1;\nstarted:\nfence.proxy.async;\nbar.sync 0;\n\
         @%p2 bra issued;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], {bytes};\nmov.b64 %l3, m0;\n\
         cvta.param.u64 %l3, %l3;\n\
         cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r3], [%l3, {}], [%r5];\n\
         issued:\n{WAIT}ld.param.u64 %l0, [p2];\nmul.wide.u32 %l2, %r4, {block};\nadd.u64 %l0, %l0, %l2;\n{dump}\
         @%p2 bra done;\nadd.u64 %l2, %l0, {region};\nst.global.b32 [%l2], %r6;\ndone:\n",
        vector("%c", rank)
    );
    Probe {
        name,
        ptx: module(3, 1, REGISTERS, &body),
        blocks: positions.len() as u32,
        threads: THREADS,
        shared: region + 16,
        output: 2,
        buffers: vec![coordinate_bytes(&positions), tensor, vec![0xee; block as usize * positions.len()]],
        maps: vec![map],
        compare: Compare::Exact,
        layout: Layout::Plain(TYPES[data_type as usize].2 as usize),
    }
}

/// Elements for reductions: numbers that round and overflow, but no NaNs, whose payload says nothing.
fn operand(rng: &mut Rng, ty: &str, bytes: usize) -> Vec<u8> {
    match ty {
        "f16" | "bf16" | "f32" => elements(rng, ty, Spread::Wide, bytes),
        "f64" => (0..bytes / 8).flat_map(|_| f64::from(rng.normal()).to_le_bytes()).collect(),
        // Small and large integers, of either sign.
        _ => (0..bytes / 8).flat_map(|_| (rng.bits() >> rng.below(50)).to_le_bytes()).collect(),
    }
}

/// One thread stores the same box at one position after the other: the tensor afterwards.
fn store(what: &str, data_type: u32, shape: &Shape, reduction: Option<&str>) -> Probe {
    let ty = TYPES[data_type as usize].1;
    let kind = reduction.map_or("store".to_owned(), |op| format!("store.{op}"));
    let name = shape.name(&kind, what, data_type);
    let mut rng = rng(&name);
    let map = shape.map(2, data_type);
    let positions = shape.store_positions(&mut rng, data_type);
    let (_, region) = shape.box_bytes(data_type);
    let rank = shape.dims.len();
    let tensor_bytes = shape.tensor_bytes(&map).next_multiple_of(16);
    let tensor = match reduction {
        Some(_) => operand(&mut rng, ty, tensor_bytes),
        None => vec![0xee; tensor_bytes],
    };
    let source = operand(&mut rng, ty, region as usize);
    let fill =
        over_words("fill", region, "add.u64 %l1, %l1, %l0;\nld.global.b32 %r7, [%l1];\nst.shared.b32 [%r1], %r7;");
    let copy = match reduction {
        Some(op) => format!("cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.{op}.tile.bulk_group"),
        None => format!("cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"),
    };
    let body = format!(
        "{START}ld.param.u64 %l0, [p1];\n{fill}fence.proxy.async;\nbar.sync 0;\nsetp.ne.u32 %p2, %r2, 0;\n@%p2 bra done;\n\
         mov.b64 %l3, m0;\ncvta.param.u64 %l3, %l3;\nmov.u32 %r4, 0;\nnext:\n{LOAD_COORDINATES}\
         {copy} [%l3, {}], [%r3];\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\nadd.u32 %r4, %r4, 1;\n\
         setp.lt.u32 %p0, %r4, {};\n@%p0 bra next;\ndone:\n",
        vector("%c", rank),
        positions.len()
    );
    Probe {
        name,
        ptx: module(3, 1, REGISTERS, &body),
        blocks: 1,
        threads: THREADS,
        shared: region,
        output: 2,
        buffers: vec![coordinate_bytes(&positions), source, tensor],
        maps: vec![map],
        compare: Compare::Exact,
        layout: Layout::Plain(TYPES[data_type as usize].2 as usize),
    }
}

/// Operations of plain bulk reductions.
const BULK: &[&str] = &[
    "add.u32",
    "add.s32",
    "add.u64",
    "add.f32",
    "add.f64",
    "add.noftz.f16",
    "add.noftz.bf16",
    "min.u32",
    "min.s32",
    "min.u64",
    "min.s64",
    "min.f16",
    "min.bf16",
    "max.u32",
    "max.s32",
    "max.u64",
    "max.s64",
    "max.f16",
    "max.bf16",
    "inc.u32",
    "dec.u32",
    "and.b32",
    "or.b32",
    "xor.b32",
    "and.b64",
    "or.b64",
    "xor.b64",
];

/// Copies without a map: there, and back with an operation.
fn bulk(probes: &mut Vec<Probe>) {
    const BYTES: u32 = 2048;
    let forms = std::iter::once(None).chain(BULK.iter().map(|op| Some(*op)));
    for op in forms {
        let name = format!("bulk/{}", op.unwrap_or("copy"));
        let mut rng = rng(&name);
        let ty = op.and_then(|op| op.rsplit('.').next()).unwrap_or("u32");
        let buffers = vec![operand(&mut rng, ty, BYTES as usize), operand(&mut rng, ty, BYTES as usize)];
        let back = op.map_or("cp.async.bulk.global.shared::cta.bulk_group".to_owned(), |op| {
            format!("cp.reduce.async.bulk.global.shared::cta.bulk_group.{op}")
        });
        // Comes in as two copies, goes out shifted by 16 bytes.
        let body = format!(
            "{START}add.u32 %r5, %r3, {BYTES};\nsetp.ne.u32 %p2, %r2, 0;\n@%p2 bra done;\n\
             mbarrier.init.shared::cta.b64 [%r5], 1;\nfence.proxy.async;\n\
             mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], {BYTES};\nld.param.u64 %l0, [p0];\n\
             cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%l0], 16, [%r5];\n\
             cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3+16], [%l0+16], {}, [%r5];\n\
             {WAIT}ld.param.u64 %l0, [p1];\n{back} [%l0+16], [%r3], {};\n\
             cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\ndone:\n",
            BYTES - 16,
            BYTES - 48
        );
        probes.push(Probe {
            name,
            ptx: module(2, 0, REGISTERS, &body),
            blocks: 1,
            threads: 32,
            shared: BYTES + 16,
            buffers,
            output: 1,
            maps: Vec::new(),
            compare: Compare::Exact,
            layout: Layout::Plain(4),
        });
    }
}
