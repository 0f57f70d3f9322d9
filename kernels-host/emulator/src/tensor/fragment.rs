//! `mma.sync.m16n8k*`: which lane holds what, and the product.
//!
//! All shapes follow one rule. With g = lane / 4, t = lane % 4 and e elements to a register (4 bytes):
//!
//! | operand | registers | element i of register r is at |
//! |---|---|---|
//! | a \[16, k\] | k·bytes / 8 | row g + 8·(r % 2), column e·t + i + 4e·(r / 2) |
//! | b \[k, 8\] | k·bytes / 16 | row e·t + i + 4e·r, column g |
//! | c, d \[16, 8\] (f32, s32) | 4 | row g + 8·(r / 2), column 2t + r % 2 |
//!
//! Not here: accumulators of f16, f64, `.sp` (sparse a), m8n8 shapes, sub-byte types, `.b1`.
use super::accumulate::{Accumulate, multiply_add};
use super::element::{Element, Matrix};
use super::{MatrixError, Register, check_registers};

/// Rows of the fragment of a, and of the accumulators of one warp.
pub const M: usize = 16;
/// Columns of b.
pub const N: usize = 8;

/// One form of `mma.sync.aligned.m16n8k*.row.col`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mma {
    k: usize,
    a: Element,
    b: Element,
    accumulate: Accumulate,
    saturate: bool,
}

impl Mma {
    /// The form with `k` columns of a. 16-bit types: 8 or 16; 8-bit: 16 or 32; tf32: 4 or 8.
    pub fn new(k: usize, a: Element, b: Element) -> Result<Mma, MatrixError> {
        let bytes = k * a.bytes();
        if !a.multiplies(b) || !(bytes == 16 || bytes == 32) {
            return Err(MatrixError::Shape { instruction: "mma.sync", m: M, n: N, k, a, b });
        }
        Ok(Mma { k, a, b, accumulate: Accumulate::default(), saturate: false })
    }
    /// The same, adding up as `accumulate` says.
    pub fn accumulate(self, accumulate: Accumulate) -> Mma {
        Mma { accumulate, ..self }
    }
    /// The same with `.satfinite`: s32 sums stop at the ends of their range.
    pub fn saturate(self) -> Mma {
        Mma { saturate: true, ..self }
    }
    /// The type of the elements of a.
    pub fn element(&self) -> Element {
        self.a
    }
    /// Multiplications and additions of one instruction.
    pub fn operations(&self) -> u64 {
        (2 * M * N * self.k) as u64
    }
    /// Registers of the fragment of a: 2 or 4.
    pub fn a_registers(&self) -> usize {
        self.k * self.a.bytes() / 8
    }
    /// Registers of the fragment of b: 1 or 2.
    pub fn b_registers(&self) -> usize {
        self.k * self.b.bytes() / 16
    }
}

/// d = a · b + c of one warp.
pub fn mma_sync(mma: &Mma, a: &[Register], b: &[Register], c: &[Register; 4]) -> Result<[Register; 4], MatrixError> {
    check_registers('a', mma.a_registers(), a.len())?;
    check_registers('b', mma.b_registers(), b.len())?;
    let mut rows = Matrix::zeros(mma.a, M, mma.k);
    unpack_a(a, &mut rows, 0);
    let mut columns = Matrix::zeros(mma.b, N, mma.k);
    unpack_b(b, &mut columns);
    let mut sums = [0; M * N];
    for_accumulators(|lane, r, row, column| sums[row * N + column] = c[r][lane]);
    multiply_add(&mut sums, &rows, &columns, mma.accumulate, mma.saturate);
    let mut d = [[0; 32]; 4];
    for_accumulators(|lane, r, row, column| d[r][lane] = sums[row * N + column]);
    Ok(d)
}

/// Calls `f` with lane, register, row and column of each of a warp's 16 × 8 accumulators.
pub(super) fn for_accumulators(mut f: impl FnMut(usize, usize, usize, usize)) {
    for lane in 0..32 {
        for r in 0..4 {
            f(lane, r, lane / 4 + 8 * (r / 2), 2 * (lane % 4) + r % 2);
        }
    }
}

/// Puts a warp's fragment of a, 16 rows, into `matrix` from row `first` on.
pub(super) fn unpack_a(registers: &[Register], matrix: &mut Matrix, first: usize) {
    let (element, k) = (matrix.element, matrix.k);
    let per = 4 / element.bytes();
    for (r, register) in registers.iter().enumerate() {
        for (lane, &word) in register.iter().enumerate() {
            let row = first + lane / 4 + 8 * (r % 2);
            let column = per * (lane % 4) + 4 * per * (r / 2);
            for i in 0..per {
                matrix.codes[row * k + column + i] = element.extract(word, i);
            }
        }
    }
}

/// Puts a warp's fragment of b into `matrix`, whose rows are b's columns.
fn unpack_b(registers: &[Register], matrix: &mut Matrix) {
    let (element, k) = (matrix.element, matrix.k);
    let per = 4 / element.bytes();
    for (r, register) in registers.iter().enumerate() {
        for (lane, &word) in register.iter().enumerate() {
            let from = lane / 4 * k + per * (lane % 4) + 4 * per * r;
            for i in 0..per {
                matrix.codes[from + i] = element.extract(word, i);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A register from the bytes of `row_of(lane)` at `byte_of(lane)`: memory's view of the manual's figures.
    fn gather(rows: &[Vec<u8>], at: impl Fn(usize) -> (usize, usize)) -> Register {
        std::array::from_fn(|lane| {
            let (row, byte) = at(lane);
            u32::from_le_bytes(std::array::from_fn(|i| rows[row][byte + i]))
        })
    }

    /// Patterns of small whole numbers, so that any order of adding gives the same.
    fn code(element: Element, x: i32) -> u32 {
        match element.format() {
            Some(format) => format.from_f32(x as f32, crate::formats::Narrowing::RN),
            None => x as u8 as u32,
        }
    }
    fn bytes(element: Element, row: &[i32]) -> Vec<u8> {
        let wide = row.iter().map(|&x| match element {
            Element::Tf32 => code(element, x) << 13 | 0x1fff,
            _ => code(element, x),
        });
        wide.flat_map(|code| code.to_le_bytes()[..element.bytes()].to_vec()).collect()
    }

    fn shapes() -> impl Strategy<Value = (Element, usize)> {
        use Element::*;
        prop::sample::select(vec![
            (F16, 8),
            (F16, 16),
            (Bf16, 8),
            (Bf16, 16),
            (Tf32, 4),
            (Tf32, 8),
            (E4m3, 16),
            (E4m3, 32),
            (E5m2, 32),
            (S8, 16),
            (S8, 32),
            (U8, 32),
        ])
    }

    proptest! {
        #[test]
        fn products_are_those_of_the_matrices(
            (element, k) in shapes(),
            numbers in prop::collection::vec(0i32..4, (M + N) * 32),
            c in prop::collection::vec(-100i32..100, M * N),
        ) {
            let a: Vec<Vec<i32>> = (0..M).map(|i| numbers[i * 32..][..k].to_vec()).collect();
            let b: Vec<Vec<i32>> = (M..M + N).map(|i| numbers[i * 32..][..k].to_vec()).collect();
            let (a_bytes, b_bytes): (Vec<_>, Vec<_>) = (
                a.iter().map(|row| bytes(element, row)).collect(),
                b.iter().map(|row| bytes(element, row)).collect(),
            );
            let mma = Mma::new(k, element, element).unwrap();
            // The manual's figures in bytes, the same for all types: lane's words 4t and 16 + 4t of rows g, g + 8.
            let a_fragment: Vec<Register> = (0..mma.a_registers())
                .map(|r| gather(&a_bytes, |lane| (lane / 4 + r % 2 * 8, lane % 4 * 4 + r / 2 * 16)))
                .collect();
            let b_fragment: Vec<Register> = (0..mma.b_registers())
                .map(|r| gather(&b_bytes, |lane| (lane / 4, lane % 4 * 4 + r * 16)))
                .collect();
            let pattern = |x: i32| if element.is_integer() { x as u32 } else { (x as f32).to_bits() };
            let at = |r: usize, lane: usize| (lane / 4 + r / 2 * 8) * N + lane % 4 * 2 + r % 2;
            let c_fragment: [Register; 4] =
                std::array::from_fn(|r| std::array::from_fn(|lane| pattern(c[at(r, lane)])));
            for accumulate in [Accumulate::Rounded, Accumulate::of_mma(80, element), Accumulate::of_mma(90, element)] {
                let d = mma_sync(&mma.accumulate(accumulate), &a_fragment, &b_fragment, &c_fragment).unwrap();
                for r in 0..4 {
                    for lane in 0..32 {
                        let (row, column) = (at(r, lane) / N, at(r, lane) % N);
                        let sum: i32 = a[row].iter().zip(&b[column]).map(|(x, y)| x * y).sum();
                        prop_assert_eq!(d[r][lane], pattern(c[at(r, lane)] + sum));
                    }
                }
            }
        }
    }

    #[test]
    fn forms_that_do_not_exist_are_errors() {
        assert!(Mma::new(32, Element::F16, Element::F16).is_err());
        assert!(Mma::new(16, Element::F16, Element::Bf16).is_err());
        assert!(Mma::new(32, Element::E4m3, Element::E5m2).is_ok());
        let mma = Mma::new(16, Element::F16, Element::F16).unwrap();
        let error = mma_sync(&mma, &[[0; 32]; 2], &[[0; 32]; 2], &[[0; 32]; 4]).unwrap_err();
        assert_eq!(error.to_string(), "operand a has 2 registers where the instruction's shape takes 4");
    }
}
