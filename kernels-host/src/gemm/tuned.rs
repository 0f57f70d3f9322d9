//! Which kernel computes a product, as measured: the table `tuned.txt`, and what `wootz bench tune` makes it with.
use super::stream::{self, Cut, Room};
use super::wgmma::Tile;
use super::{Gemm, Path, Shape};
use crate::{Device, Error, Stream, Target};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

/// `# ` comments say where it was measured; then a line a product: `n k m kernel parameters | microseconds`.
const TABLE: &str = include_str!("tuned.txt");
/// Up to here a product with fewer rows is as fast as one of the next measured number of them, the same way.
const MOST_ROUNDED: usize = 128;

/// One of the ways to compute a product on a GPU. Its text is the tuning table's, such as "wgmma cols=256
/// bands=1 share=2 split=1".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice(pub(crate) Path);

impl Choice {
    /// The kernel's name.
    pub fn kernel(self) -> &'static str {
        match self.0 {
            Path::Gemv => "gemv",
            Path::Narrow => "narrow",
            Path::Skinny => "skinny",
            Path::Mma => "mma",
            Path::Stream(_) => "stream",
            Path::Wgmma(_) => "wgmma",
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kernel())?;
        match self.0 {
            Path::Stream(Some(Cut { rows, split, depth, teams, stages })) => {
                write!(f, " rows={rows} split={split} depth={depth} teams={teams} stages={stages}")
            }
            Path::Wgmma(Some(Tile { cols, bands, share, split })) => {
                write!(f, " cols={cols} bands={bands} share={share} split={split}")
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let kernel = words.next().unwrap_or_default();
        let mut value = |name: &str| {
            let word = words.next().and_then(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.and_then(|word| word.parse().ok()).ok_or_else(|| format!("{text:?}: expected {name}=number"))
        };
        let path = match kernel {
            "gemv" => Path::Gemv,
            "narrow" => Path::Narrow,
            "skinny" => Path::Skinny,
            "mma" => Path::Mma,
            "stream" if text.trim() == "stream" => Path::Stream(None),
            "stream" => Path::Stream(Some(Cut {
                rows: value("rows")?,
                split: value("split")?,
                depth: value("depth")?,
                teams: value("teams")?,
                stages: value("stages")?,
            })),
            "wgmma" if text.trim() == "wgmma" => Path::Wgmma(None),
            "wgmma" => Path::Wgmma(Some(Tile {
                cols: value("cols")?,
                bands: value("bands")?,
                share: value("share")?,
                split: value("split")?,
            })),
            _ => return Err(format!("{text:?}: no such kernel")),
        };
        Ok(Choice(path))
    }
}

impl Gemm<'_> {
    /// As [`Gemm::launch`], by `choice`: for measuring. On the CPU the reference.
    pub fn launch_as(self, stream: &Stream, choice: Choice) -> Result<(), Error> {
        self.launch_with(stream, Some(choice.0))
    }

    /// The choices that may be the fastest for a product of \[m, k\] by \[n, k\]: for measuring. None on the CPU.
    pub fn choices(m: usize, n: usize, k: usize, gated: bool, stream: &Stream) -> Result<Vec<Choice>, Error> {
        let shape = Shape { m, n, k };
        let Some(target) = stream.device().target() else { return Ok(Vec::new()) };
        let mut paths = vec![Path::Gemv, Path::Narrow];
        if target == Target::Sm90a {
            if m <= stream::MAX_TOKENS {
                paths.push(Path::Stream(None));
                let cuts = stream::candidates(&shape, gated, stream)?;
                paths.extend(cuts.into_iter().map(|cut| Path::Stream(Some(cut))));
            }
            if m > 32 {
                let room = Room::of(stream)?;
                paths.push(Path::Wgmma(None));
                paths.extend(Tile::all().filter(|tile| tile.fits(&shape, room)).map(|tile| Path::Wgmma(Some(tile))));
            }
        } else {
            paths.extend([Path::Skinny, Path::Mma]);
        }
        Ok(paths.into_iter().filter(|path| path.supports(&shape, target)).map(Choice).collect())
    }
}

/// A table: for every \[n, k\] the numbers of rows, ascending, with their kernels.
struct Table {
    /// Of the GPU that it holds for.
    multiprocessors: usize,
    products: HashMap<(usize, usize), Vec<(usize, Path)>>,
}

impl FromStr for Table {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut table = Table { multiprocessors: 0, products: HashMap::new() };
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix('#') {
                if let Some(count) = comment.trim().strip_prefix("multiprocessors ") {
                    table.multiprocessors = count.parse().map_err(|_| format!("{line:?}: expected a number"))?;
                }
                continue;
            }
            let entry = line.split('|').next().unwrap_or_default();
            let mut words = entry.splitn(4, ' ');
            let mut number = || {
                let word = words.next().and_then(|word| word.parse::<usize>().ok());
                word.ok_or_else(|| format!("{line:?}: expected \"n k m kernel\""))
            };
            let (n, k, m) = (number()?, number()?, number()?);
            let Choice(path) = words.next().unwrap_or_default().parse()?;
            let rows = table.products.entry((n, k)).or_default();
            rows.push((m, path));
            rows.sort_by_key(|&(m, _)| m);
        }
        Ok(table)
    }
}

impl Table {
    fn find(&self, shape: &Shape) -> Option<Path> {
        let rows = self.products.get(&(shape.n, shape.k))?;
        let &(m, path) = rows.get(rows.partition_point(|&(m, _)| m < shape.m))?;
        (m == shape.m || m <= MOST_ROUNDED).then_some(path)
    }
}

/// What the table says of a shape on that device, if it was measured on such a one.
pub(super) fn find(shape: &Shape, gated: bool, device: &Device) -> Option<Path> {
    static PARSED: LazyLock<Option<Table>> = LazyLock::new(|| TABLE.parse().ok());
    let table = PARSED.as_ref()?;
    let fits = device.target() == Some(Target::Sm90a) && device.multiprocessors() == table.multiprocessors;
    let path = table.find(shape).filter(|_| fits)?;
    match path {
        // Tiles of gated products are whole groups of gate and up rows.
        Path::Stream(Some(cut)) if gated && !cut.rows.is_multiple_of(16) => None,
        path => Some(path),
    }
}

#[cfg(test)]
mod tests {
    use super::{Choice, Shape, TABLE, Table};

    #[test]
    fn the_table_is_well_formed() {
        let table: Table = TABLE.parse().unwrap();
        for (&(n, k), rows) in &table.products {
            assert!(rows.windows(2).all(|pair| pair[0].0 < pair[1].0), "{n} x {k} has a number of rows twice");
            for &(m, path) in rows {
                assert_eq!(table.find(&Shape { m, n, k }), Some(path));
                assert!(path.supports(&Shape { m, n, k }, crate::Target::Sm90a), "{m} x {n} x {k}: {path:?}");
            }
        }
    }

    #[test]
    fn rows_between_the_measured_ones_are_rounded_up_where_weights_decide() {
        let text = "# multiprocessors 132\n64 128 1 gemv | 1.5\n64 128 16 stream rows=16 split=1 depth=2 teams=1 stages=9 | 2\n\
                    64 128 512 wgmma cols=128 bands=2 share=2 split=1 | 3";
        let table: Table = text.parse().unwrap();
        let find = |m, n| table.find(&Shape { m, n, k: 128 }).map(|path| Choice(path).to_string());
        assert_eq!(find(1, 64).as_deref(), Some("gemv"));
        assert_eq!(find(9, 64).as_deref(), Some("stream rows=16 split=1 depth=2 teams=1 stages=9"));
        assert_eq!(find(512, 64).as_deref(), Some("wgmma cols=128 bands=2 share=2 split=1"));
        assert_eq!((find(17, 64), find(513, 64), find(1, 72)), (None, None, None));
        assert_eq!(table.multiprocessors, 132);
    }

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in [
            "gemv",
            "skinny",
            "mma",
            "stream",
            "stream rows=48 split=1 depth=4 teams=2 stages=4",
            "wgmma",
            "wgmma cols=160 bands=1 share=1 split=4",
        ] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        for text in ["", "magic", "stream rows=48", "wgmma cols=x bands=1 share=2 split=1"] {
            assert!(text.parse::<Choice>().is_err(), "{text:?}");
        }
    }
}
