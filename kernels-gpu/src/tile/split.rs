//! The end of a product whose K is split among the blocks of a cluster, or whose tile lies transposed in registers:
//! every block has its f32 sums in shared memory, \[row of out, column\]; they are added across the blocks in the order
//! of ranks, which makes results the same from run to run, and go through the epilogue 8 columns at a time.
use crate::prim::{
    cluster,
    memory::{load_v4, load_v4_streaming, store_v4},
    shared,
};
use crate::tile::Elem;
use crate::tile::epilogue::{F32, GATED, activation, gate, gelu_erf};

/// Most blocks that share a K.
pub const MAX_SPLIT: u32 = 4;

/// Where and how the sums are stored; made from a kernel's parameters, which mean what
/// [`Epilogue`](super::epilogue::Epilogue)'s do.
#[derive(Clone, Copy)]
pub struct Store {
    /// \[n\] or null.
    pub bias: *const u16,
    /// \[m, n\], \[m, n / 2\] when gated.
    pub out: *mut u16,
    /// Elements of out from row to row.
    pub out_stride: u32,
    /// Rows.
    pub m: u32,
    /// Columns of the product.
    pub n: u32,
    /// One of the kinds of [`epilogue`](super::epilogue).
    pub kind: u32,
    /// One of [`activation`].
    pub activation: u32,
    /// Not 0: add what out holds.
    pub accumulate: u32,
}

/// A tile's sums, in shared memory at the same place in every block.
#[derive(Clone, Copy)]
pub struct Sums {
    /// Where they start, 16-byte aligned.
    pub at: u32,
    /// f32 from row to row, a multiple of 4.
    pub pitch: u32,
    /// Rows of the tile.
    pub rows: u32,
    /// Columns of the tile: a multiple of 8, of 16 when gated.
    pub cols: u32,
    /// Its first row of out, and column of the product.
    pub origin: (u32, u32),
    /// The blocks that share the tile have the ranks `first`, `first + step`, … in the cluster.
    pub first: u32,
    /// See `first`.
    pub step: u32,
}

impl Sums {
    /// Of 8 columns at `at` of every block, added in the order of ranks.
    #[inline(always)]
    unsafe fn add<const SPLIT: u32>(&self, at: u32) -> [f32; 8] {
        let mut parts = [[[0; 4]; 2]; MAX_SPLIT as usize];
        for part in 0..SPLIT {
            for half in 0..2 {
                let at = at + 16 * half as u32;
                parts[part as usize][half] = if SPLIT == 1 {
                    shared::load_v4(at)
                } else {
                    cluster::load_v4(cluster::shared_of(self.first + part * self.step, at))
                };
            }
        }
        let mut x = [0.0; 8];
        for i in 0..8 {
            x[i] = f32::from_bits(parts[0][i / 4][i % 4]);
            for part in 1..SPLIT as usize {
                x[i] += f32::from_bits(parts[part][i / 4][i % 4]);
            }
        }
        x
    }
}

/// Adds the sums of `SPLIT` blocks, applies the epilogue and stores. An item is 8 columns of a row of the tile; this
/// thread, `index` of all of the tile's `threads`, takes every `threads`-th.
#[inline(always)]
pub unsafe fn finish<E: Elem, const SPLIT: u32>(store: &Store, sums: &Sums, index: u32, threads: u32) {
    // Gate rows and up rows of 8 columns alternate.
    let span = if store.kind == GATED { 16 } else { 8 };
    let groups = sums.cols / span;
    let below = store.m - sums.origin.0;
    let rows = if below < sums.rows { below } else { sums.rows };
    let mut item = index;
    while item < groups * rows {
        let (row, col) = (item / groups, item % groups * span);
        let n = sums.origin.1 + col;
        if n < store.n {
            let at = sums.at + (row * sums.pitch + col) * 4;
            let row = sums.origin.0 + row;
            let mut x = sums.add::<SPLIT>(at);
            let left = store.n - n;
            add_bias::<E>(store, &mut x, n, left);
            if store.kind == GATED {
                let mut up = sums.add::<SPLIT>(at + 8 * 4);
                add_bias::<E>(store, &mut up, n + 8, left - 8);
                for i in 0..8 {
                    x[i] = gate(store.activation, x[i]) * up[i];
                }
                store_8::<E>(store, x, row, n / 2, 8);
            } else {
                activate(&mut x, store.activation);
                store_8::<E>(store, x, row, n, left);
            }
        }
        item += threads;
    }
}

/// Adds the bias of columns n.., of which `left` are there.
#[inline(always)]
unsafe fn add_bias<E: Elem>(store: &Store, x: &mut [f32; 8], n: u32, left: u32) {
    if store.bias.is_null() {
        return;
    }
    let bias = store.bias.add(n as usize);
    if left >= 8 {
        let bias = E::unpack8(load_v4_streaming(bias.cast()));
        for i in 0..8 {
            x[i] += bias[i];
        }
    } else {
        for i in 0..7 {
            if (i as u32) < left {
                x[i] += E::to_f32(*bias.add(i));
            }
        }
    }
}

#[inline(always)]
fn activate(x: &mut [f32; 8], code: u32) {
    if code == activation::GELU_ERF {
        for x in x {
            *x = gelu_erf(*x);
        }
    } else if code != activation::IDENTITY {
        for x in x {
            *x = gate(code, *x);
        }
    }
}

/// Stores the first `left` of 8 columns from `col` (a multiple of 8) on, with the residual where there is one.
#[inline(always)]
unsafe fn store_8<E: Elem>(store: &Store, mut x: [f32; 8], row: u32, col: u32, left: u32) {
    let at = row as usize * store.out_stride as usize + col as usize;
    if store.kind == F32 {
        return store_8_f32(store.out.cast::<f32>().add(at), x, left, store.out_stride.is_multiple_of(4));
    }
    // Rows are a multiple of 8 elements apart, or there is one: vectors are aligned.
    let out = store.out.add(at);
    if left >= 8 {
        if store.accumulate != 0 {
            let residual = E::unpack8(load_v4(out.cast()));
            for i in 0..8 {
                x[i] += residual[i];
            }
        }
        store_v4(out.cast(), E::pack8(x));
    } else {
        for i in 0..7 {
            if (i as u32) < left {
                let out = out.add(i);
                *out = E::from_f32(if store.accumulate != 0 { x[i] + E::to_f32(*out) } else { x[i] });
            }
        }
    }
}

#[inline(always)]
unsafe fn store_8_f32(out: *mut f32, x: [f32; 8], left: u32, aligned: bool) {
    if left >= 8 && aligned {
        for half in 0..2 {
            let bits = [0, 1, 2, 3].map(|i: usize| x[4 * half + i].to_bits());
            store_v4(out.add(4 * half).cast(), bits);
        }
    } else {
        for i in 0..8 {
            if (i as u32) < left {
                *out.add(i) = x[i];
            }
        }
    }
}
