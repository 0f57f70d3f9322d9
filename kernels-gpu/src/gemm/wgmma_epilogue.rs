//! The end of a tile of [`super::wgmma`]: from a thread's accumulators of a band to its rows of the output.
use crate::prim::{
    memory::{load_pair, load_v4, store_pair, store_v4},
    opaque,
    thread::thread_idx_x,
};
use crate::tile::epilogue::{Epilogue, F32, GATED, activation, gate, gated_column, gelu_erf};
use crate::tile::{Elem, quad};

/// Bias, activation, residual and store of a thread's accumulators: of row `row` and 8 further, in the tile whose first
/// column is `col`. Pass by pass over all of them, loads first, so that their latencies overlap.
#[inline(always)]
pub(super) unsafe fn finish<E: Elem, const REGS: usize>(
    epilogue: &Epilogue,
    kind: u32,
    d: &mut [f32; REGS],
    row: u32,
    col: u32,
) {
    let n = epilogue.n;
    let own = col + thread_idx_x() % 4 * 2;
    if !epilogue.bias.is_null() {
        let pairs: [u32; REGS] = load_pairs(epilogue.bias.add(own as usize), REGS / 4, n as i32 - own as i32);
        for i in 0..REGS / 4 {
            let (x, y) = E::unpack(pairs[i]);
            (d[4 * i], d[4 * i + 1]) = (d[4 * i] + x, d[4 * i + 1] + y);
            (d[4 * i + 2], d[4 * i + 3]) = (d[4 * i + 2] + x, d[4 * i + 3] + y);
        }
    }
    if kind == F32 {
        for half in 0..2 {
            let row = row + 8 * half as u32;
            if row < epilogue.m {
                store_f32(epilogue, d, half, row, own, n as i32 - own as i32);
            }
        }
    } else if kind == GATED {
        // Gating leaves half as many groups of 8 columns, from half as far.
        for group in 0..REGS / 8 {
            for i in 0..4 {
                d[4 * group + i] = gate(epilogue.activation, d[8 * group + i]) * d[8 * group + 4 + i];
            }
        }
        store_half::<E, REGS>(epilogue, d, REGS / 8, row, gated_column(col), n / 2);
    } else {
        activate(d, epilogue.activation);
        store_half::<E, REGS>(epilogue, d, REGS / 4, row, col, n);
    }
}

/// Adds the residual and stores the first `groups` groups of 8 columns from column `col` on, of
/// `width`, 16 bytes a lane.
#[inline(always)]
unsafe fn store_half<E: Elem, const REGS: usize>(
    epilogue: &Epilogue,
    d: &mut [f32; REGS],
    groups: usize,
    row: u32,
    col: u32,
    width: u32,
) {
    // Of every four groups this lane has the one of its place in the row; of the last maybe half are there.
    let place = thread_idx_x() % 4;
    let col = col + place * 8;
    let there = |i: usize, left: i32| if place as usize >= groups - 4 * i { 0 } else { left - 32 * i as i32 };
    for half in 0..2 {
        let row = row + 8 * half as u32;
        // Rows are a multiple of 8 elements apart (or there is one), so groups are aligned.
        let line = epilogue.out.add(row as usize * epilogue.out_stride as usize + col as usize);
        let left = if row < epilogue.m { width as i32 - col as i32 } else { 0 };
        if epilogue.accumulate != 0 {
            let left = opaque(left);
            let mut old = [[0; 4]; REGS];
            for i in 0..groups.div_ceil(4) {
                old[i] = load_8(line.add(32 * i), there(i, left));
            }
            for i in 0..groups.div_ceil(4) {
                quad::transpose(&mut old[i]);
                for j in 0..4 {
                    let at = 16 * i + 4 * j + 2 * half;
                    if at < REGS {
                        let (x, y) = E::unpack(old[i][j]);
                        (d[at], d[at + 1]) = (d[at] + x, d[at + 1] + y);
                    }
                }
            }
        }
        let left = opaque(left);
        for i in 0..groups.div_ceil(4) {
            let at = |j: usize| 16 * i + 4 * j + 2 * half;
            let pair = |j: usize| if at(j) < REGS { E::pack(d[at(j)], d[at(j) + 1]) } else { 0 };
            let mut new = [pair(0), pair(1), pair(2), pair(3)];
            quad::transpose(&mut new);
            store_8(line.add(32 * i), there(i, left), new);
        }
    }
}

/// The 8 elements at `p` (16-byte aligned), of which `left` are there: zeros in place of the others.
#[inline(always)]
unsafe fn load_8(p: *const u16, left: i32) -> [u32; 4] {
    let mut x = [0; 4];
    if left >= 8 {
        x = load_v4(p.cast());
    } else if left > 0 {
        for i in 0..4 {
            x[i] = load_pair(p.add(2 * i), left - 2 * i as i32);
        }
    }
    x
}

/// Stores the first `left` of 8 elements at `p` (16-byte aligned).
#[inline(always)]
unsafe fn store_8(p: *mut u16, left: i32, x: [u32; 4]) {
    if left >= 8 {
        store_v4(p.cast(), x);
    } else if left > 0 {
        for i in 0..4 {
            store_pair(p.add(2 * i), left - 2 * i as i32, x[i]);
        }
    }
}

/// The pairs of elements at `p[8i]` for i < `groups`, zeros from `p[left]` on.
#[inline(always)]
unsafe fn load_pairs<const REGS: usize>(p: *const u16, groups: usize, left: i32) -> [u32; REGS] {
    // Else the compiler keeps 32 differences in registers from pass to pass, and spills.
    let left = opaque(left);
    let mut pairs = [0; REGS];
    for i in 0..groups {
        pairs[i] = load_pair(p.add(8 * i), left - 8 * i as i32);
    }
    pairs
}

#[inline(always)]
unsafe fn store_f32<const REGS: usize>(
    epilogue: &Epilogue,
    d: &[f32; REGS],
    half: usize,
    row: u32,
    col: u32,
    left: i32,
) {
    for i in 0..REGS / 4 {
        let left = left - 8 * i as i32;
        if left > 0 {
            let pair = [d[4 * i + 2 * half], d[4 * i + 2 * half + 1]];
            epilogue.store_f32(row, col + 8 * i as u32, pair, left > 1);
        }
    }
}

#[inline(always)]
fn activate<const REGS: usize>(d: &mut [f32; REGS], code: u32) {
    if code == activation::GELU_ERF {
        for x in d {
            *x = gelu_erf(*x);
        }
    } else if code != activation::IDENTITY {
        for x in d {
            *x = gate(code, *x);
        }
    }
}
