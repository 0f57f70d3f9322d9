//! Philox4x32, the counter-based random numbers of Salmon et al., "Parallel random numbers: as easy as
//! 1, 2, 3" (SC 2011). A value depends on its counter and key only, so neither batch nor launch geometry can
//! change it. Pure integer arithmetic, the same on host and device.

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// Rounds of the standard generator. Seven pass BigCrush as well (table 2 of the paper).
pub const ROUNDS: u32 = 10;

/// 128 random bits for a counter and a key.
#[inline(always)]
pub const fn philox4x32<const ROUNDS: u32>(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k0, mut k1] = key;
    let mut round = 0;
    while round < ROUNDS {
        let p = a as u64 * MULTIPLIERS[0] as u64;
        let q = c as u64 * MULTIPLIERS[1] as u64;
        (a, b, c, d) = ((q >> 32) as u32 ^ b ^ k0, q as u32, (p >> 32) as u32 ^ d ^ k1, p as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
        round += 1;
    }
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::philox4x32;

    const PI: ([u32; 4], [u32; 2]) = ([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);

    // The known answers that the authors publish with Random123.
    #[test]
    fn ten_rounds_match_the_published_vectors() {
        let zeros = [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
        assert_eq!(philox4x32::<10>([0; 4], [0; 2]), zeros);
        let ones = [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd];
        assert_eq!(philox4x32::<10>([!0; 4], [!0; 2]), ones);
        assert_eq!(philox4x32::<10>(PI.0, PI.1), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn seven_rounds_match_the_published_vectors() {
        let zeros = [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48];
        assert_eq!(philox4x32::<7>([0; 4], [0; 2]), zeros);
        let ones = [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662];
        assert_eq!(philox4x32::<7>([!0; 4], [!0; 2]), ones);
        assert_eq!(philox4x32::<7>(PI.0, PI.1), [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a]);
    }
}
