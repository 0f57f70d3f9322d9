//! `ldmatrix` and `stmatrix`: 8 × 8 matrices of 16-bit elements between shared memory and registers.
//!
//! Lane 8i + j gives the address of row j of matrix i, 16 bytes, aligned to 16. Register i of lane l is elements
//! 2(l % 4) and 2(l % 4) + 1 of row l / 4 of matrix i; with `.trans`, of column l / 4.
use super::Register;

/// What went wrong in `ldmatrix` or `stmatrix`: an address, or what the memory says of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError<E> {
    /// An address that is not a multiple of 16.
    #[error("lane {lane} gives row address {address:#x}, which is not a multiple of 16")]
    Misaligned {
        /// The lane.
        lane: usize,
        /// What it gave.
        address: u32,
    },
    /// The memory's own.
    #[error(transparent)]
    Memory(#[from] E),
}

/// Addresses of the rows of `count` matrices, lane by lane.
fn rows<E>(count: usize, addresses: &Register) -> impl Iterator<Item = Result<(usize, u32), RowError<E>>> + '_ {
    addresses.iter().take(8 * count).enumerate().map(|(lane, &address)| {
        if address % 16 == 0 { Ok((lane, address)) } else { Err(RowError::Misaligned { lane, address }) }
    })
}

/// `ldmatrix.x{N}{.trans}`, N of 1, 2 or 4. `read` gets each row's address once, from lane 0's on.
pub fn ldmatrix<const N: usize, E>(
    addresses: &Register,
    transpose: bool,
    mut read: impl FnMut(u32) -> Result<[u8; 16], E>,
) -> Result<[Register; N], RowError<E>> {
    let mut matrices = [[[0u16; 8]; 8]; N];
    for row in rows(N, addresses) {
        let (lane, address) = row?;
        let bytes = read(address)?;
        matrices[lane / 8][lane % 8] = std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
    }
    Ok(std::array::from_fn(|i| {
        std::array::from_fn(|lane| {
            let (row, column) = (lane / 4, lane % 4 * 2);
            let element = |j: usize| {
                if transpose { matrices[i][column + j][row] } else { matrices[i][row][column + j] }
            };
            element(0) as u32 | (element(1) as u32) << 16
        })
    }))
}

/// `stmatrix.x{N}{.trans}`, N of 1, 2 or 4. `write` gets each row's address and bytes, from lane 0's on.
pub fn stmatrix<const N: usize, E>(
    addresses: &Register,
    transpose: bool,
    registers: &[Register; N],
    mut write: impl FnMut(u32, [u8; 16]) -> Result<(), E>,
) -> Result<(), RowError<E>> {
    for row in rows(N, addresses) {
        let (lane, address) = row?;
        let (register, row) = (&registers[lane / 8], lane % 8);
        let mut bytes = [0; 16];
        for i in 0..8 {
            let (r, c) = if transpose { (i, row) } else { (row, i) };
            let element = (register[4 * r + c / 2] >> (16 * (c % 2))) as u16;
            bytes[2 * i..2 * i + 2].copy_from_slice(&element.to_le_bytes());
        }
        write(address, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{BF16, Narrowing};
    use crate::tensor::element::Element;
    use crate::tensor::fragment::{Mma, mma_sync};
    use crate::tensor::swizzle::Swizzle;
    use std::convert::Infallible;

    /// Element (row, column) of a [64, 64] tile of 16-bit elements under the 128-byte swizzle.
    fn place(row: usize, column: usize) -> usize {
        Swizzle::B128.apply((row * 128 + column * 2) as u32) as usize
    }
    /// A tile of bf16 with `value(row, column)`.
    fn tile(value: impl Fn(usize, usize) -> f32) -> Vec<u8> {
        let mut bytes = vec![0; 64 * 128];
        for row in 0..64 {
            for column in 0..64 {
                let code = BF16.from_f32(value(row, column), Narrowing::RN) as u16;
                bytes[place(row, column)..][..2].copy_from_slice(&code.to_le_bytes());
            }
        }
        bytes
    }
    fn reader(memory: &[u8]) -> impl FnMut(u32) -> Result<[u8; 16], Infallible> + '_ {
        |address| Ok(std::array::from_fn(|i| memory[address as usize + i]))
    }
    /// Addresses as the attention kernels compute them: chunk xor row, then column group by xor.
    fn lanes(row_bit: impl Fn(u32) -> u32, chunk_bit: impl Fn(u32) -> u32, first_row: u32, group: u32) -> Register {
        std::array::from_fn(|lane| {
            let (j, r) = (lane as u32 / 8, lane as u32 % 8);
            first_row * 128 + (((row_bit(j) * 8 + r) * 128 + ((chunk_bit(j) ^ r) << 4)) ^ (32 * group))
        })
    }

    /// Q·Kᵀ of 16 queries, 64 keys, 64 dims, then its product with V by `.trans`, as flash attention goes.
    #[test]
    fn swizzled_tiles_times_each_other() {
        let (q, k) = (
            |r: usize, c: usize| ((r * 7 + c * 3) % 5) as f32 - 2.0,
            |r: usize, c: usize| ((r + c * 5) % 7) as f32 - 3.0,
        );
        let v = |r: usize, c: usize| ((r * 3 + c) % 4) as f32;
        let (q_tile, k_tile, v_tile) = (tile(q), tile(k), tile(v));
        let mma = Mma::new(16, Element::Bf16, Element::Bf16).unwrap();
        for keys in (0..64).step_by(16) {
            let mut scores = [[[0u32; 32]; 4]; 2];
            let mut values = [[[0u32; 32]; 4]; 2];
            for group in 0..4 {
                let a = ldmatrix::<4, _>(&lanes(|j| j & 1, |j| j >> 1, 0, group), false, reader(&q_tile)).unwrap();
                let b = ldmatrix::<4, _>(&lanes(|j| j >> 1, |j| j & 1, keys, group), false, reader(&k_tile)).unwrap();
                scores[0] = mma_sync(&mma, &a, &b[..2], &scores[0]).unwrap();
                scores[1] = mma_sync(&mma, &a, &b[2..], &scores[1]).unwrap();
            }
            // Q's columns keys.. times V's rows keys..: columns 0..16 of V.
            let a = ldmatrix::<4, _>(&lanes(|j| j & 1, |j| j >> 1, 0, keys / 16), false, reader(&q_tile)).unwrap();
            let b = ldmatrix::<4, _>(&lanes(|j| j & 1, |j| j >> 1, keys, 0), true, reader(&v_tile)).unwrap();
            values[0] = mma_sync(&mma, &a, &b[..2], &values[0]).unwrap();
            values[1] = mma_sync(&mma, &a, &b[2..], &values[1]).unwrap();
            for (row, column) in (0..16).flat_map(|row| (0..16).map(move |column| (row, column))) {
                let (lane, r) = (row % 8 * 4 + column % 8 / 2, row / 8 * 2 + column % 2);
                let key = keys as usize + column;
                let score: f32 = (0..64).map(|d| q(row, d) * k(key, d)).sum();
                assert_eq!(f32::from_bits(scores[column / 8][r][lane]), score);
                let value: f32 = (0..16).map(|i| q(row, keys as usize + i) * v(keys as usize + i, column)).sum();
                assert_eq!(f32::from_bits(values[column / 8][r][lane]), value);
            }
        }
    }

    #[test]
    fn stores_undo_loads() {
        let memory: Vec<u8> = (0..512).map(|i| (i * 37 % 251) as u8).collect();
        for transpose in [false, true] {
            let addresses = std::array::from_fn(|lane| (lane * 48 % 512) as u32);
            let registers = ldmatrix::<4, _>(&addresses, transpose, reader(&memory)).unwrap();
            let mut copy = vec![0; 512];
            stmatrix(&addresses, transpose, &registers, |address, row| {
                copy[address as usize..][..16].copy_from_slice(&row);
                Ok::<_, Infallible>(())
            })
            .unwrap();
            assert_eq!(copy, memory);
        }
    }

    #[test]
    fn only_the_rows_asked_for_are_read() {
        let mut addresses = [0; 32];
        addresses[9] = 8;
        let mut count = 0;
        let mut read = |_| {
            count += 1;
            Ok::<_, Infallible>([0; 16])
        };
        ldmatrix::<1, _>(&addresses, false, &mut read).unwrap();
        let error = ldmatrix::<2, _>(&addresses, false, &mut read).unwrap_err();
        assert_eq!(error.to_string(), "lane 9 gives row address 0x8, which is not a multiple of 16");
        assert_eq!(count, 8 + 9);
    }
}
