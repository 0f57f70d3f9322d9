//! Matrix descriptors: where the operands of `wgmma` are in shared memory.
use super::element::{Element, Matrix};
use super::swizzle::Swizzle;
use super::wgmma::K_BYTES;
use std::ops::Range;

/// Shared memory that a descriptor can reach: 18 bits of address.
const ADDRESS_MASK: u32 = 0x3_ffff;

/// Which way an operand lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Major {
    /// Elements of K next to each other: `imm-trans` 0.
    K,
    /// Elements of M or N next to each other: `imm-trans` 1, of 16-bit types only.
    Mn,
}

/// A shared-memory matrix descriptor, taken apart.
///
/// Memory is made of core matrices: 8 rows of 16 bytes, rows along M or N (K-major) or along K (MN-major). A
/// swizzle puts 2, 4 or 8 of them side by side, so that rows are [`Swizzle::width`] apart; without one, rows
/// follow each other directly. The strides lead to the next core matrices:
///
/// | | next 16 bytes | next group of 8 rows |
/// |---|---|---|
/// | K-major, no swizzle | of K: leading | of M, N: stride |
/// | K-major, swizzled | of K: adjacent | of M, N: stride |
/// | MN-major, no swizzle | of M, N: stride | of K: leading |
/// | MN-major, swizzled | of M, N: adjacent, then leading | of K: stride |
///
/// The swizzle permutes absolute addresses, after the offset is added, which is why advancing the start by 32
/// bytes inside of a swizzled row addresses the next 16 elements of K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Shared address of the first element, bits 0 to 13 of the descriptor times 16.
    pub start: u32,
    /// Leading dimension byte offset, bits 16 to 29 times 16.
    pub leading: u32,
    /// Stride dimension byte offset, bits 32 to 45 times 16.
    pub stride: u32,
    /// Bits 49 to 51: the 128-byte line, of 8, on which the swizzle's pattern starts; 0 where the tile is aligned to
    /// the swizzle's period. The manual defines the field but not the arithmetic: taken here as subtracted from
    /// the line number.
    pub base_offset: u32,
    /// Bits 62, 63: 0 none, 1 of 128 bytes, 2 of 64, 3 of 32.
    pub swizzle: Swizzle,
}

impl Descriptor {
    /// Takes `bits` apart. All patterns are descriptors; unused bits are ignored, as by the hardware.
    pub fn decode(bits: u64) -> Descriptor {
        let field = |shift: u32| ((bits >> shift) as u32 & 0x3fff) << 4;
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        let base_offset = (bits >> 49) as u32 & 7;
        Descriptor { start: field(0), leading: field(16), stride: field(32), base_offset, swizzle }
    }
    /// The bits that [`Descriptor::decode`] takes apart.
    pub fn encode(&self) -> u64 {
        let field = |bytes: u32| (bytes as u64 & ADDRESS_MASK as u64) >> 4;
        let swizzle = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3u64,
        };
        field(self.start)
            | field(self.leading) << 16
            | field(self.stride) << 32
            | (self.base_offset as u64 & 7) << 49
            | swizzle << 62
    }

    /// Shared address of the 16 bytes that start with element (`row`, byte `k_byte` of K) of a K-major operand.
    /// `k_byte` is a multiple of 16.
    pub fn k_major(&self, row: u32, k_byte: u32) -> u32 {
        let (group, row) = (row / 8, row % 8);
        let along_k = if self.swizzle == Swizzle::None { k_byte / 16 * self.leading } else { k_byte };
        self.locate(row * self.swizzle.width() + group * self.stride + along_k)
    }
    /// Shared address of the 16 bytes that start with element (`mn`, `k`) of an MN-major operand of 16-bit elements.
    /// `mn` is a multiple of 8.
    pub fn mn_major(&self, mn: u32, k: u32) -> u32 {
        let (chunk, group, row) = (mn / 8, k / 8, k % 8);
        let per_row = self.swizzle.width() / 16;
        let offset = if self.swizzle == Swizzle::None {
            chunk * self.stride + group * self.leading
        } else {
            chunk % per_row * 16 + chunk / per_row * self.leading + group * self.stride
        };
        self.locate(offset + row * self.swizzle.width())
    }
    fn locate(&self, offset: u32) -> u32 {
        self.swizzle.apply_from((self.start + offset) & ADDRESS_MASK, self.base_offset)
    }

    /// Where `rows` of the operand are, [`K_BYTES`] of each: 16 bytes at a time, those of one line after another.
    pub(super) fn places(self, element: Element, rows: Range<usize>, major: Major) -> impl Iterator<Item = Place> {
        let (bytes, per_chunk) = (element.bytes(), 16 / element.bytes());
        let k_length = K_BYTES / bytes;
        let (outer, inner) = match major {
            Major::K => (rows.len(), k_length / per_chunk),
            Major::Mn => (k_length, rows.len() / per_chunk),
        };
        let lines = (0..outer).flat_map(move |line| (0..inner).map(move |chunk| (line, chunk * per_chunk)));
        lines.map(move |(line, along)| match major {
            Major::K => {
                let address = self.k_major((rows.start + line) as u32, (along * bytes) as u32);
                Place { address, first: line * k_length + along, step: 1 }
            }
            Major::Mn => {
                let address = self.mn_major((rows.start + along) as u32, line as u32);
                Place { address, first: along * k_length + line, step: k_length }
            }
        })
    }

    /// Reads `rows` of the operand, [`K_BYTES`] of each. `read` gets the address of each 16 bytes once.
    pub(super) fn load<E>(
        &self,
        element: Element,
        rows: Range<usize>,
        major: Major,
        read: &mut impl FnMut(u32) -> Result<[u8; 16], E>,
    ) -> Result<Matrix, E> {
        let mut matrix = Matrix::zeros(element, rows.len(), K_BYTES / element.bytes());
        for Place { address, first, step } in self.places(element, rows, major) {
            let chunk = read(address)?;
            let codes = matrix.codes[first..].iter_mut().step_by(step);
            match element.bytes() {
                1 => codes.zip(chunk).for_each(|(code, byte)| *code = u32::from(byte)),
                2 => codes
                    .zip(chunk.chunks_exact(2))
                    .for_each(|(code, b)| *code = u32::from(b[0]) | u32::from(b[1]) << 8),
                _ => codes.zip(chunk.chunks_exact(4)).for_each(|(code, bytes)| {
                    *code = element.extract(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), 0);
                }),
            }
        }
        Ok(matrix)
    }
}

/// 16 bytes of an operand.
pub(super) struct Place {
    pub address: u32,
    /// Where its first element is in the matrix, and how far apart they are there.
    first: usize,
    step: usize,
}
