//! `wgmma.mma_async`: matrix products of a warpgroup, with operands in shared memory.
//!
//! The product is in parts, because the instruction is asynchronous: [`Wgmma::load_a`] and [`Wgmma::load_b`] read
//! operands (once at issue and once at the wait, say, to see whether someone wrote in between),
//! [`Wgmma::a_from_registers`] takes a from a fragment, [`Wgmma::multiply`] updates the accumulators.
//!
//! Shapes are m64nNk(32 bytes). Warp w of the four has rows 16w to 16w + 16 as `mma.sync` lays them out (see
//! [`super::fragment`]): register 4j + r holds what register r of an m16n8 accumulator does, of columns 8j on.
//!
//! Not here: accumulators of f16, `.sp` (sparse a), `.b1`.
use super::accumulate::{Accumulate, Prepared, multiply_add, multiply_prepared};
pub use super::descriptor::{Descriptor, Major};
use super::element::{Element, Matrix};
use super::fragment::{for_accumulators, unpack_a};
use super::{MatrixError, Register, check_registers};

/// Rows of a and d.
pub const M: usize = 64;
/// Bytes of K that one instruction multiplies.
pub const K_BYTES: usize = 32;

/// One form of `wgmma.mma_async.sync.aligned.m64nNk*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wgmma {
    n: usize,
    a: Element,
    b: Element,
    major_a: Major,
    major_b: Major,
    negate_a: bool,
    negate_b: bool,
    accumulate: Accumulate,
    saturate: bool,
}

impl Wgmma {
    /// The form with `n` columns: multiples of 8 to 256; of 8-bit integers 8, 24 and multiples of 16.
    pub fn new(n: usize, a: Element, b: Element) -> Result<Wgmma, MatrixError> {
        let fits = match a.is_integer() {
            true => n == 8 || n == 24 || n.is_multiple_of(16),
            false => n.is_multiple_of(8),
        };
        if !a.multiplies(b) || !fits || !(8..=256).contains(&n) {
            let k = K_BYTES / a.bytes();
            return Err(MatrixError::Shape { instruction: "wgmma", m: M, n, k, a, b });
        }
        Ok(Wgmma {
            n,
            a,
            b,
            major_a: Major::K,
            major_b: Major::K,
            negate_a: false,
            negate_b: false,
            accumulate: Accumulate::default(),
            saturate: false,
        })
    }
    /// The same with operands in shared memory lying as `a` and `b` say (`imm-trans-a`, `imm-trans-b`).
    pub fn majors(self, a: Major, b: Major) -> Result<Wgmma, MatrixError> {
        for (operand, element, major) in [('a', self.a, a), ('b', self.b, b)] {
            if major == Major::Mn && element.bytes() != 2 {
                return Err(MatrixError::Transposed { operand, element });
            }
        }
        Ok(Wgmma { major_a: a, major_b: b, ..self })
    }
    /// The same with signs flipped (`imm-scale-a`, `imm-scale-b` of -1), floating point only.
    pub fn negate(self, a: bool, b: bool) -> Wgmma {
        Wgmma { negate_a: a, negate_b: b, ..self }
    }
    /// The same, adding up as `accumulate` says.
    pub fn accumulate(self, accumulate: Accumulate) -> Wgmma {
        Wgmma { accumulate, ..self }
    }
    /// The same with `.satfinite`: s32 sums stop at the ends of their range.
    pub fn saturate(self) -> Wgmma {
        Wgmma { saturate: true, ..self }
    }
    /// The type of the elements of a.
    pub fn element(&self) -> Element {
        self.a
    }
    /// Multiplications and additions of one of the warpgroup's four warps.
    pub fn warp_operations(&self) -> u64 {
        (2 * M / 4 * self.n * K_BYTES / self.a.bytes()) as u64
    }
    /// Accumulator registers of each thread: n / 2.
    pub fn d_registers(&self) -> usize {
        self.n / 2
    }

    /// Reads a from shared memory.
    pub fn load_a<E>(
        &self,
        descriptor: Descriptor,
        mut read: impl FnMut(u32) -> Result<[u8; 16], E>,
    ) -> Result<Matrix, E> {
        let mut a = descriptor.load(self.a, 0..M, self.major_a, &mut read)?;
        if self.negate_a {
            a.negate();
        }
        Ok(a)
    }
    /// Reads b from shared memory.
    pub fn load_b<E>(
        &self,
        descriptor: Descriptor,
        mut read: impl FnMut(u32) -> Result<[u8; 16], E>,
    ) -> Result<Matrix, E> {
        let mut b = descriptor.load(self.b, 0..self.n, self.major_b, &mut read)?;
        if self.negate_b {
            b.negate();
        }
        Ok(b)
    }
    /// Takes a from the four warps' registers.
    pub fn a_from_registers(&self, warps: &[[Register; 4]; 4]) -> Matrix {
        let mut a = Matrix::zeros(self.a, M, K_BYTES / self.a.bytes());
        for (w, registers) in warps.iter().enumerate() {
            unpack_a(registers, &mut a, 16 * w);
        }
        if self.negate_a {
            a.negate();
        }
        a
    }

    /// Addresses of the 16-byte chunks of warp `warp`'s rows of a, as [`Wgmma::load_a_of_warp`] reads them.
    pub fn places_of_a(&self, descriptor: Descriptor, warp: usize) -> impl Iterator<Item = u32> + use<> {
        descriptor.places(self.a, warp * 16..warp * 16 + 16, self.major_a).map(|place| place.address)
    }
    /// Addresses of the 16-byte chunks of b, as [`Wgmma::load_b`] reads them.
    pub fn places_of_b(&self, descriptor: Descriptor) -> impl Iterator<Item = u32> + use<> {
        descriptor.places(self.b, 0..self.n, self.major_b).map(|place| place.address)
    }
    /// Reads the 16 rows of a that warp `warp` of the four multiplies.
    pub fn load_a_of_warp<E>(
        &self,
        descriptor: Descriptor,
        warp: usize,
        mut read: impl FnMut(u32) -> Result<[u8; 16], E>,
    ) -> Result<Matrix, E> {
        let mut a = descriptor.load(self.a, warp * 16..warp * 16 + 16, self.major_a, &mut read)?;
        if self.negate_a {
            a.negate();
        }
        Ok(a)
    }
    /// Takes one warp's 16 rows of a from its registers.
    pub fn a_from_warp(&self, registers: &[Register; 4]) -> Matrix {
        let mut a = Matrix::zeros(self.a, 16, K_BYTES / self.a.bytes());
        unpack_a(registers, &mut a, 0);
        if self.negate_a {
            a.negate();
        }
        a
    }
    /// Makes b ready for [`Wgmma::multiply_warp`].
    pub fn prepare(&self, b: Matrix) -> Prepared {
        Prepared::new(b, self.accumulate)
    }
    /// One warp's part of [`Wgmma::multiply`]: its registers of d, its 16 rows of a.
    ///
    /// # Panics
    /// If `a` or `b` come from a form of other types or shape.
    pub fn multiply_warp(&self, d: &mut [Register], a: &Matrix, b: &Prepared, keep: bool) -> Result<(), MatrixError> {
        check_registers('d', self.d_registers(), d.len())?;
        let mut sums = vec![0; 16 * self.n];
        let n = self.n;
        let at = |r: usize, lane: usize| (lane / 4 + 8 * (r / 2 % 2)) * n + 8 * (r / 4) + 2 * (lane % 4) + r % 2;
        if keep {
            for (r, register) in d.iter().enumerate() {
                register.iter().enumerate().for_each(|(lane, x)| sums[at(r, lane)] = *x);
            }
        }
        multiply_prepared(&mut sums, a, b, self.saturate);
        for (r, register) in d.iter_mut().enumerate() {
            register.iter_mut().enumerate().for_each(|(lane, x)| *x = sums[at(r, lane)]);
        }
        Ok(())
    }

    /// d = a · b + d, or a · b where `keep` (`scale-d`) is false, of the four warps' registers.
    ///
    /// # Panics
    /// If `a` or `b` come from a form of other types or shape.
    pub fn multiply(
        &self,
        d: &mut [&mut [Register]; 4],
        a: &Matrix,
        b: &Matrix,
        keep: bool,
    ) -> Result<(), MatrixError> {
        for registers in d.iter() {
            check_registers('d', self.d_registers(), registers.len())?;
        }
        assert!(a.element == self.a && b.element == self.b && a.rows() == M && b.rows() == self.n);
        let mut sums = vec![0; M * self.n];
        if keep {
            self.for_accumulators(|w, lane, r, at| sums[at] = d[w][r][lane]);
        }
        multiply_add(&mut sums, a, b, self.accumulate, self.saturate);
        self.for_accumulators(|w, lane, r, at| d[w][r][lane] = sums[at]);
        Ok(())
    }
    /// Calls `f` with warp, lane, register and place in d of each accumulator.
    fn for_accumulators(&self, mut f: impl FnMut(usize, usize, usize, usize)) {
        for (w, j) in (0..4).flat_map(|w| (0..self.n / 8).map(move |j| (w, j))) {
            for_accumulators(|lane, r, row, column| f(w, lane, 4 * j + r, (16 * w + row) * self.n + 8 * j + column));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Narrowing;
    use crate::tensor::swizzle::Swizzle;
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// Small whole numbers as patterns of `element`, as many bytes as it has.
    fn bytes(element: Element, x: i32) -> Vec<u8> {
        let code = match element.format() {
            Some(format) => format.from_f32(x as f32, Narrowing::RN) << if element == Element::Tf32 { 13 } else { 0 },
            None => x as u8 as u32,
        };
        code.to_le_bytes()[..element.bytes()].to_vec()
    }
    fn reader(memory: &[u8]) -> impl FnMut(u32) -> Result<[u8; 16], Infallible> + '_ {
        |address| Ok(std::array::from_fn(|i| memory[address as usize + i]))
    }

    /// A tile of `rows` × `width` bytes, rows next to each other, under `swizzle`: what TMA writes.
    fn write_rows(memory: &mut [u8], start: u32, rows: &[Vec<u8>], swizzle: Swizzle) {
        for (r, row) in rows.iter().enumerate() {
            for (i, &byte) in row.iter().enumerate() {
                memory[swizzle.apply(start + (r * row.len() + i) as u32) as usize] = byte;
            }
        }
    }

    fn value(element: Element, bits: u32) -> i32 {
        if element.is_integer() { bits as i32 } else { f32::from_bits(bits) as i32 }
    }
    fn check(op: &Wgmma, d: &[Vec<Register>], expected: impl Fn(usize, usize) -> i32) {
        for (row, column) in (0..M).flat_map(|row| (0..op.n).map(move |column| (row, column))) {
            // The layout as kernels-gpu/src/prim/wgmma.rs words it.
            let (w, lane) = (row / 16, row % 8 * 4 + column % 8 / 2);
            let register = column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
            assert_eq!(value(op.a, d[w][register][lane]), expected(row, column), "({row}, {column})");
        }
    }
    fn multiply(op: &Wgmma, d: &mut [Vec<Register>], a: &Matrix, b: &Matrix, keep: bool) {
        let mut parts = d.iter_mut().map(|d| d.as_mut_slice());
        let mut warps: [&mut [Register]; 4] = std::array::from_fn(|_| parts.next().unwrap());
        op.multiply(&mut warps, a, b, keep).unwrap();
    }

    /// As the GEMM kernels go: boxes of 128 bytes of K under the 128-byte swizzle, the descriptor advanced by 2.
    #[test]
    fn steps_of_k_inside_of_a_swizzled_row() {
        let (a, b) =
            (|r: usize, k: usize| (r * 5 + k * 3) as i32 % 7 - 3, |c: usize, k: usize| (c + k * 11) as i32 % 5 - 2);
        for (element, n) in
            [(Element::Bf16, 256), (Element::F16, 128), (Element::E4m3, 128), (Element::S8, 64), (Element::Tf32, 8)]
        {
            let per_row = 128 / element.bytes();
            let tile = |rows: usize, f: &dyn Fn(usize, usize) -> i32| -> Vec<Vec<u8>> {
                (0..rows).map(|r| (0..per_row).flat_map(|k| bytes(element, f(r, k))).collect()).collect()
            };
            let (a_start, b_start) = (0x400, 0x2c00);
            let mut memory = vec![0; 0x10000];
            write_rows(&mut memory, a_start, &tile(64, &a), Swizzle::B128);
            write_rows(&mut memory, b_start, &tile(n, &b), Swizzle::B128);
            // Bit for bit as kernels-gpu/src/prim/wgmma.rs builds it.
            let descriptor = |address: u64| ((address & 0x3_ffff) >> 4) | 1 << 16 | (1024 >> 4) << 32 | 1 << 62;
            let op = Wgmma::new(n, element, element).unwrap();
            let mut d = vec![vec![[0x7fc0_0000u32; 32]; n / 2]; 4];
            for step in 0..4 {
                let a = Descriptor::decode(descriptor(a_start as u64) + step * 2);
                let b = Descriptor::decode(descriptor(b_start as u64) + step * 2);
                let a = op.load_a(a, reader(&memory)).unwrap();
                let b = op.load_b(b, reader(&memory)).unwrap();
                multiply(&op, &mut d, &a, &b, step > 0);
            }
            check(&op, &d, |row, column| (0..per_row).map(|k| a(row, k) * b(column, k)).sum());
        }
    }

    fn numbers(rows: usize, k: usize, seed: usize) -> Vec<Vec<i32>> {
        (0..rows).map(|r| (0..k).map(|k| (r * 31 + k * 17 + r * k * seed) as i32 % 9 - 4).collect()).collect()
    }

    /// Lays `rows` [m or n][k] of 16-bit elements down by the canonical layouts of CUTLASS, in units of elements.
    fn lay_down(memory: &mut [u8], d: &Descriptor, rows: &[Vec<i32>], major: Major, element: Element) {
        let t = 16 / element.bytes();
        let (w, leading, stride) = (d.swizzle.width() as usize / 16, d.leading as usize, d.stride as usize);
        for (r, k) in (0..rows.len()).flat_map(|r| (0..rows[r].len()).map(move |k| (r, k))) {
            let offset = match (major, d.swizzle) {
                // ((8, m), (T, 2)) : ((1T, SBO), (1, LBO))
                (Major::K, Swizzle::None) => r % 8 * 16 + r / 8 * stride + k / t * leading,
                // ((8, m), (T, 2)) : ((wT, SBO), (1, T))
                (Major::K, _) => r % 8 * w * 16 + r / 8 * stride + k / t * 16,
                // ((T, 1, m), (8, k)) : ((1, T, SBO), (1T, LBO))
                (Major::Mn, Swizzle::None) => r / t * stride + k % 8 * 16 + k / 8 * leading,
                // ((T, w, m), (8, k)) : ((1, T, LBO), (wT, SBO))
                (Major::Mn, _) => r / t % w * 16 + r / t / w * leading + k % 8 * w * 16 + k / 8 * stride,
            };
            let within = if major == Major::K { k % t } else { r % t } * element.bytes();
            let at = d.swizzle.apply(d.start + (offset + within) as u32) as usize;
            memory[at..at + element.bytes()].copy_from_slice(&bytes(element, rows[r][k]));
        }
    }
    /// Strides with which no two core matrices of an operand of `rows` share memory.
    fn described(start: u32, rows: usize, swizzle: Swizzle, major: Major) -> Descriptor {
        let width = swizzle.width();
        let (leading, stride) = match (major, swizzle) {
            (Major::K, Swizzle::None) => (128 * rows as u32 / 8 + 128, 128),
            (Major::K, _) => (16, swizzle.period()),
            (Major::Mn, Swizzle::None) => (128, 256),
            (Major::Mn, _) => (2 * swizzle.period(), 8 * width),
        };
        Descriptor { start, leading, stride, base_offset: 0, swizzle }
    }

    fn any_swizzle() -> impl Strategy<Value = Swizzle> {
        prop::sample::select(vec![Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128])
    }
    fn any_major() -> impl Strategy<Value = Major> {
        prop::sample::select(vec![Major::K, Major::Mn])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn operands_by_descriptor_multiply(
            swizzles in (any_swizzle(), any_swizzle()),
            majors in (any_major(), any_major()),
            n in (1usize..=32).prop_map(|n| n * 8),
            seed in 0usize..9,
            negate in any::<(bool, bool)>(),
            keep in any::<bool>(),
            from_registers in any::<bool>(),
        ) {
            let element = Element::Bf16;
            let (a, b) = (numbers(64, 16, seed), numbers(n, 16, seed + 1));
            let a_at = described(0x1000, 64, swizzles.0, majors.0);
            let b_at = described(0x8000, n, swizzles.1, majors.1);
            let mut memory = vec![0; 0x20000];
            lay_down(&mut memory, &a_at, &a, majors.0, element);
            lay_down(&mut memory, &b_at, &b, majors.1, element);
            let op = Wgmma::new(n, element, element).unwrap().majors(majors.0, majors.1).unwrap();
            let op = op.negate(negate.0, negate.1).accumulate(Accumulate::of_wgmma(element));
            prop_assert_eq!(Descriptor::decode(a_at.encode()), a_at);
            let a_matrix = if from_registers {
                let pair = |row: usize, k: usize| {
                    let [x, y] = [0, 1].map(|i| bytes(element, a[row][k + i]));
                    u32::from_le_bytes([x[0], x[1], y[0], y[1]])
                };
                op.a_from_registers(&std::array::from_fn(|w| std::array::from_fn(|r| std::array::from_fn(|lane| {
                    pair(16 * w + lane / 4 + r % 2 * 8, lane % 4 * 2 + r / 2 * 8)
                }))))
            } else {
                op.load_a(a_at, reader(&memory)).unwrap()
            };
            let b_matrix = op.load_b(b_at, reader(&memory)).unwrap();
            let mut d = vec![vec![[100f32.to_bits(); 32]; n / 2]; 4];
            multiply(&op, &mut d, &a_matrix, &b_matrix, keep);
            let sign = if negate.0 == negate.1 { 1 } else { -1 };
            check(&op, &d, |row, column| {
                let dot: i32 = a[row].iter().zip(&b[column]).map(|(x, y)| x * y).sum();
                sign * dot + if keep { 100 } else { 0 }
            });
        }
    }

    #[test]
    fn a_tile_off_its_period_is_found_by_its_base_offset() {
        // A pattern that starts on line 3 of eight: row r has its chunks xored with r, not with r + 3.
        let d = Descriptor { start: 0x180, leading: 16, stride: 1024, base_offset: 3, swizzle: Swizzle::B128 };
        for row in 0..8 {
            assert_eq!(d.k_major(row, 16), 0x180 + row * 128 + (1 ^ row) * 16);
        }
    }

    #[test]
    fn forms_that_do_not_exist_are_errors() {
        assert!(Wgmma::new(12, Element::F16, Element::F16).is_err());
        assert!(Wgmma::new(264, Element::F16, Element::F16).is_err());
        assert!(Wgmma::new(40, Element::S8, Element::S8).is_err());
        assert!(Wgmma::new(24, Element::S8, Element::U8).is_ok());
        let fp8 = Wgmma::new(128, Element::E4m3, Element::E5m2).unwrap();
        let error = fp8.majors(Major::K, Major::Mn).unwrap_err();
        assert_eq!(
            error.to_string(),
            "operand b of e5m2 cannot be MN-major: only 16-bit types can, so lay it out K-major"
        );
    }
}
