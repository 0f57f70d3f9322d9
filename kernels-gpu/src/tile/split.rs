//! The end of a product whose K is split among the blocks of a cluster, or whose tile lies transposed in registers:
//! every block has its f32 sums in shared memory, \[row of out, column\]; they are added across the blocks in the order
//! of ranks, which makes results the same from run to run, and go through the epilogue 8 columns at a time.
use crate::prim::{
    cluster,
    math::rcp,
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
    /// Sums of every block, to be added too: those of warpgroups that share the tile's K.
    pub teams: u32,
    /// Bytes from one's to the next one's.
    pub team_bytes: u32,
}

impl Sums {
    /// Of two times 8 columns, where they exist, those of every team of every block: added in the order of teams, of each in
    /// the order of ranks. What is loaded of a team's is in flight at once.
    #[inline(always)]
    unsafe fn add<const SPLIT: u32>(&self, at: [u32; 2], exists: [bool; 2]) -> [[f32; 8]; 2] {
        let mut x = [[0.0; 8]; 2];
        let mut team = 0;
        while team < self.teams {
            let offset = team * self.team_bytes;
            let mut parts = [[[0; 4]; 2 * MAX_SPLIT as usize]; 2];
            // Of four blocks there are not the registers for both.
            if exists[0] {
                parts[0] = self.load::<SPLIT>(at[0] + offset);
            }
            if SPLIT == 4 {
                add_parts::<SPLIT>(&mut x[0], &parts[0]);
            }
            if exists[1] {
                parts[1] = self.load::<SPLIT>(at[1] + offset);
            }
            if SPLIT != 4 {
                add_parts::<SPLIT>(&mut x[0], &parts[0]);
            }
            add_parts::<SPLIT>(&mut x[1], &parts[1]);
            team += 1;
        }
        x
    }

    /// 8 columns of every block.
    #[inline(always)]
    unsafe fn load<const SPLIT: u32>(&self, at: u32) -> [[u32; 4]; 2 * MAX_SPLIT as usize] {
        let mut parts = [[0; 4]; 2 * MAX_SPLIT as usize];
        for part in 0..2 * SPLIT {
            let at = at + 16 * (part % 2);
            parts[part as usize] = if SPLIT == 1 {
                shared::load_v4(at)
            } else {
                cluster::load_v4(cluster::shared_of(self.first + part / 2 * self.step, at))
            };
        }
        parts
    }
}

#[inline(always)]
fn add_parts<const SPLIT: u32>(x: &mut [f32; 8], parts: &[[u32; 4]; 2 * MAX_SPLIT as usize]) {
    for part in 0..SPLIT as usize {
        for i in 0..8 {
            x[i] += f32::from_bits(parts[2 * part + i / 4][i % 4]);
        }
    }
}

/// The items of a thread: 8 columns of a row of out each, 16 of a gated product.
struct Items {
    row: u32,
    group: u32,
    /// From an item to the thread's next.
    step: (u32, u32),
    rows: u32,
    groups: u32,
    span: u32,
}

impl Items {
    /// The next one: its row and column in the tile, and whether there is one.
    #[inline(always)]
    fn take(&mut self) -> (u32, u32, bool) {
        let item = (self.row, self.group * self.span, self.row < self.rows);
        self.row += self.step.0;
        self.group += self.step.1;
        if self.group >= self.groups {
            self.group -= self.groups;
            self.row += 1;
        }
        item
    }
}

/// Adds the sums of `split` blocks (1, 2 or 4), applies the epilogue and stores: as thread `index` of all of the tile's
/// `threads`.
#[inline(always)]
pub unsafe fn finish<E: Elem>(store: &Store, sums: &Sums, split: u32, index: u32, threads: u32) {
    let gated = store.kind == GATED;
    let span = if gated { 16 } else { 8 };
    let groups = sums.cols / span;
    let below = store.m - sums.origin.0;
    let rows = if below < sums.rows { below } else { sums.rows };
    // Divisions would take longer than the rest: at most a few thousand by at most 32, so that a half is far from the
    // next integer's rounding.
    let inverse = rcp(groups as f32);
    let divide = |n: u32| {
        let quotient = ((n as f32 + 0.5) * inverse) as u32;
        (quotient, n - quotient * groups)
    };
    let (row, group) = divide(index);
    let mut items = Items { row, group, step: divide(threads), rows, groups, span };
    while items.row < rows {
        // Two at once, or gate and up, which alternate by 8 columns: each waits for other blocks' memory.
        let (row, col, _) = items.take();
        let (next_row, next_col, more) = if gated { (row, col + 8, true) } else { items.take() };
        let n = sums.origin.1 + col;
        let next_n = sums.origin.1 + next_col;
        let exists = [n < store.n, more && next_n < store.n];
        let at = [(row, col), (next_row, next_col)].map(|(row, col)| sums.at + (row * sums.pitch + col) * 4);
        let [mut x, mut next] = match split {
            1 => sums.add::<1>(at, exists),
            2 => sums.add::<2>(at, exists),
            _ => sums.add::<4>(at, exists),
        };
        if gated {
            if exists[0] {
                add_bias::<E>(store, &mut x, n, store.n - n);
                add_bias::<E>(store, &mut next, next_n, store.n - next_n);
                for i in 0..8 {
                    x[i] = gate(store.activation, x[i]) * next[i];
                }
                store_8::<E>(store, x, sums.origin.0 + row, n / 2, 8);
            }
        } else {
            if exists[0] {
                plain::<E>(store, x, sums.origin.0 + row, n);
            }
            if exists[1] {
                plain::<E>(store, next, sums.origin.0 + next_row, next_n);
            }
        }
    }
}

#[inline(always)]
unsafe fn plain<E: Elem>(store: &Store, mut x: [f32; 8], row: u32, n: u32) {
    add_bias::<E>(store, &mut x, n, store.n - n);
    activate(&mut x, store.activation);
    store_8::<E>(store, x, row, n, store.n - n);
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
