//! What a comparison found, and the bars.
use crate::bench::timing::Samples;

/// Rates of this run that shares are taken of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calibration {
    /// 8192³ in bf16 for two seconds, TFLOP/s.
    pub product_tflop_per_s: f64,
    /// A copy of 2 GiB, bytes read and written, GB/s.
    pub copy_gb_per_s: f64,
    /// A kernel that only reads 2 GiB, GB/s.
    pub read_gb_per_s: f64,
}

/// Rows whose ratios have a geometric mean, and what they must reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Products of 512 rows and more.
    GemmPrefill,
    /// Products of up to 128 rows.
    GemmDecode,
    /// Those whose weights are 100 MB or more: the share of the best bandwidth.
    GemmRead,
    /// The linear layers of a decode step, as one graph.
    Chain,
    /// Products with fused epilogues: the share of the separate kernel's time that the fusion saves.
    Epilogues,
    /// Causal attention of whole prompts.
    PrefillAttention,
    /// Attention of one query per sequence.
    DecodeAttention,
    /// Residual add and RMSNorm.
    Norm,
    /// Decoder layers as one graph: the share of the best bandwidth.
    Layers,
    /// A decoder layer against itself with a fusion switched off.
    Fusions,
}

impl Group {
    /// The bar's name in the summary.
    pub fn name(self) -> &'static str {
        match self {
            Group::GemmPrefill => "bf16 GEMM, M ≥ 512",
            Group::GemmDecode => "bf16 GEMM, M ≤ 128",
            Group::GemmRead => "M ≤ 128, weights ≥ 100 MB (share of best read)",
            Group::Chain => "128 linears of a decode step",
            Group::Epilogues => "GEMM with a fused epilogue (saved share)",
            Group::PrefillAttention => "prefill attention, paged",
            Group::DecodeAttention => "decode attention, paged",
            Group::Norm => "add + RMSNorm",
            Group::Layers => "32 decoder layers (share of best read)",
            Group::Fusions => "a decoder layer, each fusion on and off",
        }
    }
    /// What the geometric mean of the ratios must reach, if that is a bar.
    pub fn mean_bar(self) -> Option<f64> {
        match self {
            Group::GemmPrefill => Some(1.03),
            Group::GemmDecode => Some(1.08),
            _ => None,
        }
    }
    /// What each ratio must reach.
    pub fn bar(self) -> f64 {
        match self {
            Group::GemmPrefill => 0.97,
            Group::GemmDecode | Group::GemmRead => 0.98,
            Group::Chain => 1.13,
            Group::Epilogues => 0.70,
            Group::PrefillAttention | Group::Norm => 1.05,
            Group::DecodeAttention | Group::Fusions => 1.0,
            Group::Layers => 0.80,
        }
    }
}

/// Median and spread of one side, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// The median of the rounds.
    pub median: f64,
    /// The fastest round.
    pub least: f64,
    /// The slowest round.
    pub most: f64,
}

impl From<&Samples> for Time {
    fn from(samples: &Samples) -> Self {
        Time { median: samples.median(), least: samples.at(0.0), most: samples.at(1.0) }
    }
}

/// What ours is compared with.
#[derive(Clone, Debug)]
pub enum Rival {
    /// Something that was timed.
    Timed(Time),
    /// The same work with less of it fused.
    Unfused {
        /// Its time.
        time: Time,
        /// Launches of ours and of its.
        kernels: [u64; 2],
        /// Bytes that its kernels read and write.
        bytes: u64,
    },
    /// The row's bytes at the run's best read bandwidth.
    Floor,
}

/// One comparison.
#[derive(Clone, Debug)]
pub struct Row {
    /// Whose bar it is under.
    pub group: Group,
    /// The problem.
    pub work: String,
    /// Ours.
    pub ours: Time,
    /// The other side.
    pub rival: Rival,
    /// Who that is.
    pub rival_name: String,
    /// What the ratio must reach, if not what the group says.
    pub bar: Option<f64>,
    /// A ratio that is not rival / ours.
    pub value: Option<f64>,
    /// Bytes that must move.
    pub bytes: u64,
    /// Operations that must be done.
    pub flops: u64,
    /// Whether almost all of the bytes are read, and from memory: its bandwidth may be the run's best.
    pub reads: bool,
}

impl Row {
    /// The table's head.
    pub fn heading(part: String) -> String {
        format!("{part:<44}{:>10}{:>10}{:>8}{:>8}{:>9}", "ours µs", "rival µs", "ratio", "GB/s", "TFLOP/s")
    }

    /// The ratio without a floor, which is known at the end only.
    pub fn line(&self) -> String {
        let rival = match &self.rival {
            Rival::Timed(time) | Rival::Unfused { time, .. } => format!("{:.2}", time.median),
            Rival::Floor => "-".into(),
        };
        let ratio = self.ratio(0.0).filter(|ratio| *ratio > 0.0).map_or("-".into(), |ratio| format!("{ratio:.3}"));
        let rate = |amount: u64, unit: f64| match amount {
            0 => "-".to_owned(),
            _ => format!("{:.0}", amount as f64 / self.ours.median / unit),
        };
        format!(
            "{:<44}{:>10.2}{rival:>10}{ratio:>8}{:>8}{:>9}",
            self.work,
            self.ours.median,
            rate(self.bytes, 1e3),
            rate(self.flops, 1e6)
        )
    }

    /// The other side's microseconds, where the best read bandwidth is `read` GB/s.
    pub fn rival_us(&self, read: f64) -> Option<f64> {
        match &self.rival {
            Rival::Timed(time) | Rival::Unfused { time, .. } => Some(time.median),
            Rival::Floor if read > 0.0 => Some(self.bytes as f64 / (read * 1e3)),
            Rival::Floor => None,
        }
    }

    /// What the bar is about.
    pub fn ratio(&self, read: f64) -> Option<f64> {
        self.value.or_else(|| self.rival_us(read).map(|rival| rival / self.ours.median))
    }

    /// What the ratio must reach.
    pub fn bar(&self) -> f64 {
        self.bar.unwrap_or(self.group.bar())
    }
}

/// A run's results.
pub struct Results {
    /// The GPU.
    pub device: String,
    /// The driver's CUDA version.
    pub cuda: String,
    /// The version of cuBLASLt, if it is there.
    pub cublaslt: Option<String>,
    /// The versions of PyTorch and cuDNN, if they are there and were asked.
    pub torch: Option<String>,
    /// Measured first.
    pub calibration: Calibration,
    /// In the order in which they were measured.
    pub rows: Vec<Row>,
}

impl Results {
    /// The best bandwidth at which anything in this run read memory, ours or a rival's, GB/s.
    pub fn best_read(&self) -> f64 {
        let rate = |bytes: u64, us: f64| bytes as f64 / us / 1e3;
        let readers = self.rows.iter().filter(|row| row.reads).flat_map(|row| {
            let rival = row.rival_us(0.0).map(|us| rate(row.bytes, us));
            std::iter::once(rate(row.bytes, row.ours.median)).chain(rival)
        });
        readers.fold(self.calibration.read_gb_per_s, f64::max)
    }

    /// The best rate of a matrix product, ours or a rival's, TFLOP/s.
    pub fn best_product(&self) -> f64 {
        let products = self.rows.iter().filter(|row| row.group == Group::GemmPrefill);
        let rates = products.flat_map(|row| {
            let times = [Some(row.ours.median), row.rival_us(0.0)];
            times.into_iter().flatten().map(|us| row.flops as f64 / us / 1e6)
        });
        rates.fold(self.calibration.product_tflop_per_s, f64::max)
    }

    /// The groups that have rows.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.rows.iter().map(|row| row.group).collect();
        groups.sort();
        groups.dedup();
        groups
    }

    /// A group's rows.
    pub fn of(&self, group: Group) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.group == group)
    }

    /// The geometric mean of a group's ratios.
    pub fn mean(&self, group: Group) -> f64 {
        let read = self.best_read();
        let logs: Vec<f64> = self.of(group).filter_map(|row| row.ratio(read)).map(f64::ln).collect();
        (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp()
    }
}
