//! The end of a tile of [`super::stream`]: from f32 sums in shared memory, \[row of out, column\], to rows of the output.
//! The teams' sums are added in their order, which makes results the same from run to run, and go through the epilogue 8
//! columns at a time.
use crate::prim::{
    math::rcp,
    memory::{load_v4, load_v4_streaming, store_v4},
    shared,
    warp::lane_id,
};
use crate::tile::Elem;
use crate::tile::epilogue::{F32, GATED, activation, gate, gelu_erf};

/// Where and how the sums are stored; made from a kernel's parameters, which mean what
/// [`Epilogue`](crate::tile::epilogue::Epilogue)'s do.
#[derive(Clone, Copy)]
pub(super) struct Store {
    /// \[n\] or null.
    pub bias: *const u16,
    /// \[m, n\], \[m, n / 2\] when gated.
    pub out: *mut u16,
    /// Elements of out from row to row.
    pub out_stride: u32,
    /// Columns of the product.
    pub n: u32,
    /// One of the kinds of [`epilogue`](crate::tile::epilogue).
    pub kind: u32,
    /// One of [`activation`].
    pub activation: u32,
    /// Not 0: add what out holds.
    pub accumulate: u32,
}

/// A tile's sums, in shared memory.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// Where they start, 16-byte aligned.
    pub at: u32,
    /// f32 from row to row, a multiple of 4.
    pub pitch: u32,
    /// Rows.
    pub rows: u32,
    /// Columns: a multiple of 8, of 16 when gated.
    pub cols: u32,
    /// The first one's column of the product.
    pub col: u32,
    /// Of groups of [`COLS`] columns this block finishes that of place `part`, and each 2^`split` further.
    pub split: u32,
    /// See `split`.
    pub part: u32,
    /// Sums of each, to be added: those of warpgroups that share the tile's K.
    pub teams: u32,
    /// Bytes from one's to the next one's.
    pub team_bytes: u32,
}

/// Columns whose sums a warp has.
const COLS: u32 = 16;

impl Sums {
    /// Groups of [`COLS`] columns that this block finishes.
    #[inline(always)]
    fn groups(&self) -> u32 {
        let all = self.cols.div_ceil(COLS);
        (all + (1 << self.split) - 1 - self.part) >> self.split
    }
    /// Column of the tile that is `col` of those that this block finishes.
    #[inline(always)]
    fn column(&self, col: u32) -> u32 {
        (((col / COLS) << self.split) + self.part) * COLS + col % COLS
    }

    /// Of two times 8 columns, where they exist, the sum over the teams, in their order. What is loaded of a team's is in
    /// flight at once.
    #[inline(always)]
    unsafe fn add(&self, at: [u32; 2], exists: [bool; 2]) -> [[f32; 8]; 2] {
        let mut x = [[0.0; 8]; 2];
        // Of 8 lanes, which load 16 bytes each at once from every other 16, half begin with their second: 8 banks of 16.
        let second = lane_id() / 4 % 2 * 16;
        let mut team = 0;
        while team < self.teams {
            let mut loaded = [[[0; 4]; 2]; 2];
            for item in 0..2 {
                if exists[item] {
                    let at = at[item] + team * self.team_bytes;
                    let [x, y] = [shared::load_v4(at + second), shared::load_v4(at + (16 - second))];
                    loaded[item] = if second == 0 { [x, y] } else { [y, x] };
                }
            }
            for item in 0..2 {
                for i in 0..8 {
                    x[item][i] += f32::from_bits(loaded[item][i / 4][i % 4]);
                }
            }
            team += 1;
        }
        x
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

/// Adds the teams' sums, applies the epilogue and stores: as thread `index` of `threads`.
#[inline(always)]
pub(super) unsafe fn finish<E: Elem>(store: &Store, sums: &Sums, index: u32, threads: u32) {
    let gated = store.kind == GATED;
    let span = if gated { 16 } else { 8 };
    let groups = sums.groups() * (COLS / span);
    if groups == 0 {
        return;
    }
    // Divisions would take longer than the rest. Dividends are at most 512, divisors 32: with a half added, a quotient is
    // 1/64 from an integer at least, and rcp's error is 1e-4 of it.
    let inverse = rcp(groups as f32);
    let divide = |n: u32| {
        let quotient = ((n as f32 + 0.5) * inverse) as u32;
        (quotient, n - quotient * groups)
    };
    let (row, group) = divide(index);
    let mut items = Items { row, group, step: divide(threads), rows: sums.rows, groups, span };
    while items.row < sums.rows {
        // Two at once, or gate and up, which alternate by 8 columns.
        let (row, col, _) = items.take();
        let (next_row, next_col, more) = if gated { (row, col + 8, true) } else { items.take() };
        let [col, next_col] = [col, next_col].map(|col| sums.column(col));
        let (n, next_n) = (sums.col + col, sums.col + next_col);
        let exists = [col < sums.cols && n < store.n, more && next_col < sums.cols && next_n < store.n];
        let at = [(row, col), (next_row, next_col)].map(|(row, col)| sums.at + (row * sums.pitch + col) * 4);
        let [mut x, mut next] = sums.add(at, exists);
        if gated {
            if exists[0] {
                add_bias::<E>(store, &mut x, n, store.n - n);
                add_bias::<E>(store, &mut next, next_n, store.n - next_n);
                for i in 0..8 {
                    x[i] = gate(store.activation, x[i]) * next[i];
                }
                store_8::<E>(store, x, row, n / 2, 8);
            }
        } else {
            if exists[0] {
                plain::<E>(store, x, row, n);
            }
            if exists[1] {
                plain::<E>(store, next, next_row, next_n);
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
