//! Whole tiles, as kernels move and multiply them: TMA boxes under the 128-byte swizzle, then `wgmma` by descriptor,
//! against a product in three loops.
use proptest::prelude::*;
use ptx_emulator::formats::{BF16, Narrowing};
use ptx_emulator::tensor::accumulate::Accumulate;
use ptx_emulator::tensor::element::Element;
use ptx_emulator::tensor::mbarrier::Mbarrier;
use ptx_emulator::tensor::swizzle::Swizzle;
use ptx_emulator::tensor::tensor_map::{DataType, Fill, TensorMap, Tiled};
use ptx_emulator::tensor::tma::copy_plan;
use ptx_emulator::tensor::wgmma::{Descriptor, Major, Wgmma};
use ptx_emulator::tensor::{Register, element::Matrix};
use std::convert::Infallible;

const ADDRESS: u64 = 0x7f12_3400_0000;
const SWIZZLE: Swizzle = Swizzle::B128;

/// A matrix of bf16 in "global memory", rows `stride` elements apart, of small whole numbers.
struct Tensor {
    rows: usize,
    columns: usize,
    stride: usize,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(rows: usize, columns: usize, seed: usize) -> Tensor {
        let stride = columns.next_multiple_of(8) + 8 * (seed % 3);
        // What lies between the rows would show in any sum.
        let mut bytes: Vec<u8> = [0x80, 0x7f].repeat(rows * stride);
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            let value = ((row * 7 + column * 5 + row * column * seed) % 9) as f32 - 4.0;
            let code = BF16.from_f32(value, Narrowing::RN) as u16;
            bytes[2 * (row * stride + column)..][..2].copy_from_slice(&code.to_le_bytes());
        }
        Tensor { rows, columns, stride, bytes }
    }
    /// The element, or zero outside.
    fn at(&self, row: usize, column: usize) -> f32 {
        if row >= self.rows || column >= self.columns {
            return 0.0;
        }
        let at = 2 * (row * self.stride + column);
        BF16.to_f32(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]) as u32)
    }
    /// Boxes of 64 columns and `box_rows` rows.
    fn map(&self, box_rows: u32) -> TensorMap {
        TensorMap::new(&Tiled {
            data_type: DataType::Bf16,
            address: ADDRESS,
            dims: &[self.columns as u64, self.rows as u64],
            strides: &[self.stride as u64 * 2],
            box_dims: &[64, box_rows],
            element_strides: &[1, 1],
            swizzle: SWIZZLE,
            fill: Fill::Zero,
        })
        .unwrap()
    }
    /// `cp.async.bulk.tensor.2d`: the box at (`column`, `row`), counted on `barrier` piece by piece.
    fn load(&self, map: &TensorMap, column: i32, row: i32, memory: &mut [u8], shared: u32, barrier: &mut Mbarrier) {
        for piece in copy_plan(map, &[column, row], shared).unwrap() {
            let bytes = &mut memory[piece.shared as usize..][..piece.bytes as usize];
            match piece.global {
                Some(global) => bytes.copy_from_slice(&self.bytes[(global - ADDRESS) as usize..][..bytes.len()]),
                None => map.fill(bytes),
            }
            barrier.complete_tx(piece.bytes).unwrap();
        }
    }
}

fn reader(memory: &[u8]) -> impl FnMut(u32) -> Result<[u8; 16], Infallible> + '_ {
    |address| Ok(std::array::from_fn(|i| memory[address as usize + i]))
}
fn multiply(op: &Wgmma, d: &mut [Vec<Register>; 4], a: &Matrix, b: &Matrix, keep: bool) {
    op.multiply(&mut d.each_mut().map(|d| d.as_mut_slice()), a, b, keep).unwrap();
}
/// Row and column of the accumulator `register` of lane `lane` of warp `w`.
fn place(w: usize, lane: usize, register: usize) -> (usize, usize) {
    let (group, r) = (register / 4, register % 4);
    (16 * w + lane / 4 + r / 2 * 8, 8 * group + lane % 4 * 2 + r % 2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// A consumer warpgroup of the GEMM: a ring of one stage, 64 columns of K a step, tiles over the edges.
    #[test]
    fn products_of_boxes(
        (m, n, k) in (1usize..150, 1usize..200, (1usize..25).prop_map(|k| k * 8)),
        (tile_m, tile_n) in (0i32..3, 0i32..2),
        tile_columns in prop::sample::select(vec![128usize, 256]),
        truncate in any::<bool>(),
    ) {
        let (a, w) = (Tensor::new(m, k, m), Tensor::new(n, k, n + 1));
        let (row, column) = (tile_m * 64, tile_n * tile_columns as i32);
        let (a_map, w_map) = (a.map(64), w.map(tile_columns as u32));
        prop_assert_eq!(a_map.box_bytes(), 64 * 128);
        let (a_at, w_at) = (1024, 1024 + 64 * 128);
        let mut memory = vec![0xff; 64 << 10];
        let mut full = Mbarrier::default();
        full.init(1).unwrap();
        let accumulate = if truncate { Accumulate::of_wgmma(Element::Bf16) } else { Accumulate::Rounded };
        let op = Wgmma::new(tile_columns, Element::Bf16, Element::Bf16).unwrap().accumulate(accumulate);
        let mut d: [Vec<Register>; 4] = std::array::from_fn(|_| vec![[u32::MAX; 32]; op.d_registers()]);
        for step in 0..k.div_ceil(64) {
            let token = full.arrive_expect_tx(a_map.box_bytes() + w_map.box_bytes()).unwrap();
            a.load(&a_map, step as i32 * 64, row, &mut memory, a_at, &mut full);
            prop_assert!(!full.test_wait(token).unwrap());
            w.load(&w_map, step as i32 * 64, column, &mut memory, w_at, &mut full);
            prop_assert!(full.test_wait_parity(step as u32 % 2).unwrap());
            let describe = |start| Descriptor { start, leading: 16, stride: 1024, base_offset: 0, swizzle: SWIZZLE };
            for sixteen in 0..4 {
                // The kernel adds 2 to the descriptor's bits: 32 bytes.
                let [a, b] = [a_at, w_at].map(|at| Descriptor::decode(describe(at).encode() + 2 * sixteen));
                let (a, b) = (op.load_a(a, reader(&memory)).unwrap(), op.load_b(b, reader(&memory)).unwrap());
                multiply(&op, &mut d, &a, &b, step as u64 + sixteen > 0);
            }
        }
        for (w_index, registers) in d.iter().enumerate() {
            for (r, register) in registers.iter().enumerate() {
                for (lane, &bits) in register.iter().enumerate() {
                    let (i, j) = place(w_index, lane, r);
                    let (i, j) = (i + row as usize, j + column as usize);
                    let expected: f32 = (0..k).map(|x| a.at(i, x) * w.at(j, x)).sum();
                    prop_assert_eq!(f32::from_bits(bits), expected, "({}, {})", i, j);
                }
            }
        }
    }
}

/// P·V of attention: P from registers, V's boxes of 64 keys and 64 dims read N-major, 16 keys (2048 bytes) a step,
/// 64 dims to a box, the leading offset between boxes.
#[test]
fn probabilities_times_values_read_n_major() {
    let (p, v) = (Tensor::new(64, 64, 1), Tensor::new(64, 128, 2));
    let mut memory = vec![0; 32 << 10];
    let mut full = Mbarrier::default();
    full.init(1).unwrap();
    let map = v.map(64);
    full.arrive_expect_tx(2 * map.box_bytes()).unwrap();
    v.load(&map, 0, 0, &mut memory, 1024, &mut full);
    v.load(&map, 64, 0, &mut memory, 1024 + 8192, &mut full);
    assert!(full.test_wait_parity(0).unwrap());
    let op = Wgmma::new(128, Element::Bf16, Element::Bf16).unwrap().majors(Major::K, Major::Mn).unwrap();
    let mut d: [Vec<Register>; 4] = std::array::from_fn(|_| vec![[0; 32]; 64]);
    for step in 0..4usize {
        let descriptor = Descriptor { start: 1024, leading: 8192, stride: 1024, base_offset: 0, swizzle: SWIZZLE };
        let b = op.load_b(Descriptor::decode(descriptor.encode() + 128 * step as u64), reader(&memory)).unwrap();
        let a = op.a_from_registers(&std::array::from_fn(|w| {
            std::array::from_fn(|r| {
                std::array::from_fn(|lane| {
                    let (row, key) = (16 * w + lane / 4 + r % 2 * 8, 16 * step + lane % 4 * 2 + r / 2 * 8);
                    BF16.pack2(p.at(row, key + 1), p.at(row, key), Narrowing::RN)
                })
            })
        }));
        multiply(&op, &mut d, &a, &b, true);
    }
    for (w, registers) in d.iter().enumerate() {
        for (r, register) in registers.iter().enumerate() {
            for (lane, &bits) in register.iter().enumerate() {
                let (row, dim) = place(w, lane, r);
                let expected: f32 = (0..64).map(|key| p.at(row, key) * v.at(key, dim)).sum();
                assert_eq!(f32::from_bits(bits), expected, "({row}, {dim})");
            }
        }
    }
}
