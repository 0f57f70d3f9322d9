//! The permutation of shared memory that keeps columns of a tile off the same banks.

/// A swizzle, named by the bytes of a row that it permutes.
///
/// Bits 4 to 6 of an address (the 16-byte chunk in a 128-byte line) are xored with bits 7 to 9 (the line in a
/// group of eight), of which the narrower modes use fewer. It works on absolute addresses: a tile looks as
/// it should only where its start is aligned to [`Swizzle::period`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// No permutation.
    #[default]
    None,
    /// 32 bytes: bit 4 ^= bit 7.
    B32,
    /// 64 bytes: bits 4, 5 ^= bits 7, 8.
    B64,
    /// 128 bytes: bits 4, 5, 6 ^= bits 7, 8, 9.
    B128,
}

impl Swizzle {
    /// Bytes of a row; 16, a chunk, where nothing is permuted.
    pub const fn width(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
    /// Bytes after which the pattern repeats: eight rows.
    pub const fn period(self) -> u32 {
        8 * self.width()
    }
    /// Where the byte that an unpermuted tile has at `address` is.
    #[inline]
    pub const fn apply(self, address: u32) -> u32 {
        self.apply_from(address, 0)
    }
    /// As [`Swizzle::apply`] where line `first_line` (0 to 7) of 128 bytes is the pattern's first: the base
    /// offset of a matrix descriptor.
    #[inline]
    pub const fn apply_from(self, address: u32, first_line: u32) -> u32 {
        let line = (address >> 7).wrapping_sub(first_line) & (self.width() / 16 - 1);
        address ^ (line << 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_128_bytes_xor_their_chunk_with_the_row() {
        for row in 0..64u32 {
            for chunk in 0..8 {
                // What kernels that write tiles by hand compute.
                assert_eq!(Swizzle::B128.apply(row * 128 + chunk * 16), (row * 8 + (chunk ^ (row & 7))) * 16);
            }
        }
    }

    #[test]
    fn swizzles_permute_and_undo_themselves() {
        for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
            let mut seen = vec![false; 4096];
            for address in 0..4096 {
                let to = swizzle.apply(address);
                assert_eq!(swizzle.apply(to), address);
                assert_eq!(to / 128, address / 128);
                assert!(!std::mem::replace(&mut seen[to as usize], true));
            }
        }
        assert_eq!(Swizzle::B64.apply(0x80), 0x90);
        assert_eq!(Swizzle::B64.apply(0x200), 0x200, "bit 9 does not count");
        assert_eq!(Swizzle::B32.apply(0x100), 0x100, "bit 8 does not count");
        assert_eq!(Swizzle::B128.apply_from(0x480, 1), 0x480);
    }
}
