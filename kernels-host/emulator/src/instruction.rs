//! What the decoder produces: instructions whose modifiers are resolved, whose registers are
//! indices and whose labels are positions.

mod half;
mod warpgroup;

use crate::asynchronous::Async;
use crate::tensor::fragment::Mma;
pub(crate) use half::{Half, HalfOp};
pub(crate) use warpgroup::{OperandA, Product, TensorRegister, TensorRegisters, TensorUse, WarpgroupOp};

/// One decoded instruction.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub op: Op,
    /// Lanes for which the guard is false skip the instruction.
    pub guard: Option<Guard>,
    pub line: u32,
    /// Index among the entry's source lines.
    pub source: Option<u32>,
    /// Index of the full opcode (`ld.global.v4.b32`) in the entry's list of kinds.
    pub kind: u32,
}

/// A predicate register read as it is or negated: `@%p1`, `@!%p1`, or an operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub pred: u32,
    pub negated: bool,
}

/// Register files: predicates are one mask per warp, 16-bit registers share the file of the
/// 32-bit ones, 64-bit registers have their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Pred,
    B16,
    B32,
    B64,
}

/// A register: its index in the file that its class lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reg {
    pub class: Class,
    pub index: u32,
}

/// What an instruction reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand {
    Reg(Reg),
    /// Bits, already in the format of the instruction's type.
    Imm(u64),
    Special(Special),
    /// Address of a module variable in global memory, known when the module is loaded.
    Global(u32),
}

/// Special registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(u8),
    NTid(u8),
    CtaId(u8),
    NCtaId(u8),
    LaneId,
    WarpId,
    NWarpId,
    /// Instructions so far, as many bits as are asked for.
    Clock,
    ClockHigh,
    ClusterCtaId(u8),
    ClusterNCtaId(u8),
    ClusterId(u8),
    NClusterId(u8),
    ClusterCtaRank,
    ClusterNCtaRank,
    LaneMask(Cmp),
    DynamicSharedBytes,
    TotalSharedBytes,
    /// `%smid`, `%nsmid`: one value for all.
    Constant(u32),
}

/// Fundamental types; `Bits` types compare and move without interpretation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Pred,
    B(u8),
    U(u8),
    S(u8),
    F16,
    BF16,
    F16x2,
    BF16x2,
    F32,
    F64,
    E4M3x2,
    E5M2x2,
}

impl Type {
    /// Width in bits; a predicate has one.
    pub fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::B(bits) | Self::U(bits) | Self::S(bits) => u32::from(bits),
            Self::F16 | Self::BF16 | Self::E4M3x2 | Self::E5M2x2 => 16,
            Self::F16x2 | Self::BF16x2 | Self::F32 => 32,
            Self::F64 => 64,
        }
    }

    /// Width in memory.
    pub fn bytes(self) -> usize {
        self.bits() as usize / 8
    }

    pub fn is_signed(self) -> bool {
        matches!(self, Self::S(_))
    }

    pub fn is_integer(self) -> bool {
        matches!(self, Self::U(_) | Self::S(_))
    }
}

/// `.ftz` and `.sat` of a floating-point operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FloatFlags {
    pub ftz: bool,
    pub sat: bool,
}

/// Operations of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    Abs,
    Neg,
    Not,
    Popc,
    Clz,
    Brev,
    Sqrt,
    Rcp,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

/// Operations of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    MulHi,
    MulWide,
    Div,
    Rem,
    Min,
    Max,
    MinNan,
    MaxNan,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    CopySign,
}

/// Operations of three operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ternary {
    Fma,
    Mad,
    MadHi,
    MadWide,
    Bfe,
    Prmt,
    /// A mode of `prmt` as the four selectors that each of its four counts stands for.
    PrmtMode([u16; 4]),
    /// Four products of bytes; whether those of a and b are signed.
    Dp4a(bool, bool),
    /// The truth table.
    Lop3(u8),
    /// Funnel shift to the left; the amount wraps at 32 if true, else it is clamped to it.
    ShfLeft(bool),
    ShfRight(bool),
}

/// Comparisons; the `U` forms are also true when an operand is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    EqU,
    NeU,
    LtU,
    LeU,
    GtU,
    GeU,
    Num,
    Nan,
}

/// How predicates combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BoolOp {
    And,
    Or,
    Xor,
}

/// Rounding of a conversion; the integer forms round to an integral value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

/// `cvt`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cvt {
    pub to: Type,
    pub from: Type,
    pub rounding: Option<Rounding>,
    /// The rounding is to an integral value (`.rni`, `.rzi`, …).
    pub integral: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    pub dst: Reg,
    pub a: Operand,
    /// The second source of a conversion to a packed type; it lands in the lower half.
    pub b: Option<Operand>,
}

/// State spaces of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    /// `shared::cluster`: the block's own or another's of the cluster.
    Cluster,
    Param,
}

/// Threads among which an access or a fence orders: those of the block, of the cluster, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Block,
    Cluster,
    /// `.gpu` and `.sys`: there is one GPU.
    Device,
}

/// What an access says about its place among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// Not weak: relaxed or stronger, volatile, or a read-modify-write operation.
    pub strong: bool,
    pub acquire: bool,
    pub release: bool,
    pub scope: Scope,
    /// It is a read-modify-write operation.
    pub modifies: bool,
    /// `.nc`: the bytes must not change while the kernel runs.
    pub constant: bool,
    /// Through the async proxy.
    pub copies: bool,
}

impl Order {
    /// A reduction that says nothing of its order.
    pub const REDUCTION: Self = Self { strong: true, modifies: true, ..Self::WEAK };
    /// A plain load or store.
    pub const WEAK: Self = Self {
        strong: false,
        acquire: false,
        release: false,
        scope: Scope::Device,
        modifies: false,
        constant: false,
        copies: false,
    };
    /// A bulk copy or a tensor copy.
    pub const COPY: Self = Self { copies: true, ..Self::WEAK };
    /// One that reduces.
    pub const COPY_REDUCTION: Self = Self { copies: true, ..Self::REDUCTION };
}

/// What blocks of a cluster do together.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ClusterOp {
    /// `mapa`: the address at which the block `rank` has what this one has at `a`.
    Map { ty: Type, dst: Reg, a: Operand, rank: Operand },
    /// `getctarank`: the rank of the block that `a` is in.
    Rank { dst: Reg, a: Operand },
    /// `barrier.cluster.arrive`, `.release` unless it is relaxed.
    Arrive { release: bool },
    /// `barrier.cluster.wait`.
    Wait,
}

/// `[base + offset]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub space: Space,
    pub base: Operand,
    pub offset: i64,
}

/// Read-modify-write operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// How a shuffle picks its source lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// `vote.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// What the lanes of a member mask do together.
#[derive(Clone, Debug)]
pub(crate) enum Collective {
    Barrier,
    Shuffle {
        mode: ShuffleMode,
        dst: Reg,
        valid: Option<Reg>,
        a: Operand,
        b: Operand,
        clamp: Operand,
    },
    Vote {
        mode: VoteMode,
        dst: Reg,
        a: Guard,
    },
    Reduce {
        op: AtomicOp,
        ty: Type,
        dst: Reg,
        a: Operand,
    },
    Match {
        ty: Type,
        dst: Reg,
        a: Operand,
        /// `match.all`: the predicate that says whether all agreed.
        all: Option<Option<Reg>>,
    },
    Elect {
        leader: Option<Reg>,
        dst: Reg,
    },
}

/// Where the rows of `ldmatrix` and `stmatrix` lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatrixRows {
    pub address: Address,
    pub transpose: bool,
}

/// `mma.sync`: d = a · b + c.
#[derive(Clone, Debug)]
pub(crate) struct MmaOp {
    pub form: Mma,
    pub d: Vec<Reg>,
    pub a: Vec<Operand>,
    pub b: Vec<Operand>,
    pub c: Vec<Operand>,
}

/// Operations; names follow the PTX manual.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Unary {
        op: Unary,
        ty: Type,
        flags: FloatFlags,
        dst: Reg,
        a: Operand,
    },
    Binary {
        op: Binary,
        ty: Type,
        flags: FloatFlags,
        dst: Reg,
        a: Operand,
        b: Operand,
    },
    Half(Half),
    Ternary {
        op: Ternary,
        ty: Type,
        flags: FloatFlags,
        dst: Reg,
        args: [Operand; 3],
    },
    /// `bfi`: insert `length` bits of `a` into `b` at `start`.
    Bfi {
        ty: Type,
        dst: Reg,
        a: Operand,
        b: Operand,
        start: Operand,
        length: Operand,
    },
    Setp(Setp),
    Selp {
        ty: Type,
        dst: Reg,
        a: Operand,
        b: Operand,
        pred: Guard,
    },
    PredBinary {
        op: BoolOp,
        dst: Reg,
        a: Guard,
        b: Guard,
    },
    PredMov {
        dst: Reg,
        a: PredSource,
    },
    Mov {
        ty: Type,
        dst: Reg,
        a: Operand,
    },
    Pack {
        ty: Type,
        dst: Reg,
        parts: Vec<Operand>,
    },
    Unpack {
        ty: Type,
        parts: Vec<Option<Reg>>,
        a: Operand,
    },
    Cvt(Cvt),
    /// `cvta`: adds the window of `space` to an address in it.
    ToGeneric {
        space: Space,
        ty: Type,
        dst: Reg,
        a: Operand,
    },
    /// `cvta.to`.
    FromGeneric {
        space: Space,
        ty: Type,
        dst: Reg,
        a: Operand,
    },
    Load {
        ty: Type,
        dst: Vec<Option<Reg>>,
        address: Address,
        order: Order,
    },
    Store {
        ty: Type,
        src: Vec<Operand>,
        address: Address,
        order: Order,
    },
    Atomic {
        op: AtomicOp,
        ty: Type,
        dst: Option<Reg>,
        address: Address,
        order: Order,
        b: Operand,
        c: Option<Operand>,
    },
    CopyAsync {
        bytes: u32,
        to: Address,
        from: Address,
        from_bytes: Option<Operand>,
    },
    CopyCommit,
    /// Waits until at most `pending` of the newest groups are in flight; `None` waits for all,
    /// committed or not.
    CopyWait {
        pending: Option<u32>,
    },
    LoadMatrix {
        dst: Vec<Reg>,
        rows: MatrixRows,
    },
    StoreMatrix {
        src: Vec<Operand>,
        rows: MatrixRows,
    },
    Mma(Box<MmaOp>),
    /// `bar.sync` (wait) and `bar.arrive`.
    Barrier {
        wait: bool,
        id: Operand,
        count: Option<Operand>,
    },
    Collective {
        what: Collective,
        mask: Operand,
    },
    ActiveMask {
        dst: Reg,
    },
    Branch {
        target: u32,
    },
    Exit,
    Trap,
    /// `fence.sc`, `fence.acq_rel` and `membar`.
    Fence {
        scope: Scope,
    },
    /// `griddepcontrol.wait`, or `griddepcontrol.launch_dependents`.
    GridDependency {
        wait: bool,
    },
    /// An instruction of clusters; with `aligned`, of all lanes of the warp at once.
    Cluster {
        what: ClusterOp,
        aligned: bool,
    },
    /// Prefetches, hints, fences of proxies: nothing to do on a machine without caches.
    Nothing,
    Warpgroup(WarpgroupOp),
    /// Mbarriers, bulk copies and proxy fences.
    Async(Box<Async>),
}

/// `setp`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setp {
    pub cmp: Cmp,
    pub ty: Type,
    pub ftz: bool,
    /// `setp.lt.and …, c`: the result combined with another predicate.
    pub join: Option<(BoolOp, Guard)>,
    pub dst: Option<Reg>,
    /// `p|q`: q receives the negated comparison.
    pub inverse: Option<Reg>,
    pub a: Operand,
    pub b: Operand,
}

/// Source of `mov.pred` and `not.pred`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PredSource {
    Reg(Guard),
    Const(bool),
}
