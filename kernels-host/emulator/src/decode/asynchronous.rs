//! `mbarrier`, `cp.async.bulk`, `cp.reduce.async.bulk` and the fences of the async proxy.

use super::Decoder;
use crate::ParseError;
use crate::asynchronous::{Arrive, Async, Far, Reduce, Route, Transfer, Wait};
use crate::instruction::{Address, Op, Operand, Space, Type};
use crate::syntax::raw::RawOperand;
use crate::tensor::reduce::Reduction;
use crate::tensor::tensor_map::DataType;

const WORD: Type = Type::B(32);

const REDUCTIONS: &[(&str, Reduction)] = &[
    ("add", Reduction::Add),
    ("min", Reduction::Min),
    ("max", Reduction::Max),
    ("inc", Reduction::Inc),
    ("dec", Reduction::Dec),
    ("and", Reduction::And),
    ("or", Reduction::Or),
    ("xor", Reduction::Xor),
];

const TYPES: &[(&str, DataType)] = &[
    ("b32", DataType::U32),
    ("u32", DataType::U32),
    ("s32", DataType::S32),
    ("b64", DataType::U64),
    ("u64", DataType::U64),
    ("s64", DataType::S64),
    ("f16", DataType::F16),
    ("bf16", DataType::Bf16),
    ("f32", DataType::F32),
    ("f64", DataType::F64),
];

const RANKS: &[(&str, usize)] = &[("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)];

/// Which way a bulk copy goes, by its two state spaces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Load,
    Store,
    Peer,
}

impl Decoder<'_, '_> {
    /// An instruction of this module; `None` if `name` is not one.
    pub(super) fn asynchronous(&mut self, name: &str) -> Result<Option<Op>, ParseError> {
        let op = match name {
            "mbarrier" => self.mbarrier()?,
            "cp" if self.is_bulk() => self.bulk()?,
            "cp" if self.words.get(1) == Some(&"mbarrier") => self.arrive_after_copies()?,
            "st" if self.has("async") => self.store_async()?,
            "prefetch" if self.has("tensormap") => {
                let space = if self.has("param") { Space::Param } else { Space::Generic };
                Async::PrefetchMap { map: self.address(space)? }
            }
            "createpolicy" => return self.ignored().map(Some),
            "fence" if self.has("mbarrier_init") => {
                self.words.clear();
                Async::FenceInit
            }
            "fence" if self.has("proxy") => return self.proxy_fence().map(Some),
            _ => return Ok(None),
        };
        Ok(Some(Op::Async(Box::new(op))))
    }

    /// `async.bulk` or `reduce.async.bulk`.
    fn is_bulk(&self) -> bool {
        self.words.iter().take(3).any(|word| *word == "bulk")
    }

    /// `.proxy.async{.global, .shared::{cta, cluster}}`; the other proxies do not exist here.
    fn proxy_fence(&mut self) -> Result<Op, ParseError> {
        if !self.has("async") {
            return self.ignored();
        }
        let (global, shared) = (self.has("global"), self.has("shared::cta") || self.has("shared::cluster"));
        Ok(Op::Async(Box::new(Async::FenceProxy { shared: shared || !global, global: global || !shared })))
    }

    // Barriers.

    /// The state space of a barrier: generic if it is not named.
    fn barrier_space(&mut self) -> Space {
        let spaces = [("shared", Space::Shared), ("shared::cta", Space::Shared), ("shared::cluster", Space::Cluster)];
        self.choice(&spaces).unwrap_or(Space::Generic)
    }

    /// `.release.cta` and the like; false if `.relaxed`.
    fn ordering(&mut self) -> bool {
        let relaxed = self.has("relaxed");
        let _ = self.has("release") || self.has("acquire");
        let _ = self.has("cta") || self.has("cluster");
        !relaxed
    }

    fn mbarrier(&mut self) -> Result<Async, ParseError> {
        const NAMES: &[&str] = &[
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "expect_tx",
            "complete_tx",
            "test_wait",
            "try_wait",
            "pending_count",
        ];
        let Some(name) = NAMES.iter().find(|name| self.words.first() == Some(name)) else {
            return self.wrong(format!("one of {} is missing", NAMES.join(", ")));
        };
        self.words.remove(0);
        let ordered = self.ordering();
        let space = self.barrier_space();
        let found = match *name {
            "init" => Async::Init { barrier: self.address(space)?, count: self.src(WORD)? },
            "inval" => Async::Invalidate { barrier: self.address(space)? },
            "arrive" | "arrive_drop" => self.arrive(space, *name == "arrive_drop", ordered)?,
            "expect_tx" | "complete_tx" => {
                let (barrier, bytes) = (self.address(space)?, self.src(WORD)?);
                Async::Count { barrier, bytes, complete: *name == "complete_tx" }
            }
            "pending_count" => Async::PendingCount { dst: self.dst(WORD)?, token: self.src(Type::B(64))? },
            _ => self.wait(space, *name == "try_wait", ordered)?,
        };
        let _ = self.has("b64");
        Ok(found)
    }

    fn arrive(&mut self, space: Space, drop: bool, release: bool) -> Result<Async, ParseError> {
        let (announces, no_complete) = (self.has("expect_tx"), self.has("noComplete"));
        let raw = self.next()?;
        let dst = self.optional_dst(raw, Type::B(64))?;
        let barrier = self.address(space)?;
        let bytes = if announces { Some(self.src(WORD)?) } else { None };
        let count = if self.left() > 0 { Some(self.src(WORD)?) } else { None };
        if no_complete && count.is_none() {
            return self.wrong("`.noComplete` needs the number of arrivals".into());
        }
        Ok(Async::Arrive(Arrive { barrier, dst, count, bytes, no_complete, drop, release }))
    }

    fn wait(&mut self, space: Space, suspends: bool, acquire: bool) -> Result<Async, ParseError> {
        let parity = self.has("parity");
        let dst = self.dst(Type::Pred)?;
        let barrier = self.address(space)?;
        let phase = self.src(if parity { WORD } else { Type::B(64) })?;
        if suspends && self.left() > 0 {
            // How long to sleep at most.
            self.src(WORD)?;
        }
        Ok(Async::Wait(Wait { barrier, dst, phase, parity, suspends, acquire }))
    }

    fn arrive_after_copies(&mut self) -> Result<Async, ParseError> {
        for word in ["async", "mbarrier", "arrive"] {
            if !self.has(word) {
                return self.wrong(format!("modifier `.{word}` is missing"));
            }
        }
        let expected = self.has("noinc");
        let space = self.barrier_space();
        let _ = self.has("b64");
        Ok(Async::ArriveAfterCopies { barrier: self.address(space)?, expected })
    }

    /// `st.async.shared::cluster.mbarrier::complete_tx::bytes{.v2, .v4}.type [address], value, [barrier]`.
    fn store_async(&mut self) -> Result<Async, ParseError> {
        let _ = self.has("weak");
        if !self.has("shared::cluster") || !self.has("mbarrier::complete_tx::bytes") {
            return self.wrong("`.shared::cluster.mbarrier::complete_tx::bytes` is missing".into());
        }
        let width = self.choice(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
        let ty = self.ty()?;
        let to = self.address(Space::Cluster)?;
        let elements = self.elements()?;
        if elements.len() != width {
            return self.wrong(format!("{} registers for {width} elements", elements.len()));
        }
        let src = elements.iter().map(|raw| self.source(raw, ty, false)).collect::<Result<_, _>>()?;
        Ok(Async::Store { to, ty, src, barrier: self.address(Space::Cluster)? })
    }

    // Bulk copies.

    fn bulk(&mut self) -> Result<Async, ParseError> {
        let reduced = self.has("reduce");
        let _ = self.has("async") && self.has("bulk");
        if self.has("commit_group") {
            return Ok(Async::Commit);
        }
        if self.has("wait_group") {
            let read = self.has("read");
            return match self.next()? {
                RawOperand::Integer(pending) if u32::try_from(*pending).is_ok() => {
                    Ok(Async::WaitGroups { pending: *pending as u32, read })
                }
                _ => self.wrong("the number of groups must be a constant".into()),
            };
        }
        let rank = if self.has("tensor") { Some(self.required(RANKS)?) } else { None };
        let _ = self.has("tile");
        let hint = self.has("L2::cache_hint");
        let transfer = if self.has("prefetch") {
            let _ = self.has("L2") && self.has("global");
            Transfer { route: Route::Prefetch, far: self.far(rank)? }
        } else {
            let way = self.way()?;
            let reduction = if reduced { Some(self.reduction(rank)?) } else { None };
            self.transfer(way, rank, reduction)?
        };
        if hint {
            self.src(Type::B(64))?;
        }
        Ok(Async::Transfer(transfer))
    }

    fn way(&mut self) -> Result<Way, ParseError> {
        let spaces = [("global", 'g'), ("shared::cluster", 's'), ("shared::cta", 's')];
        let way = match (self.required(&spaces)?, self.required(&spaces)?) {
            ('s', 'g') => Way::Load,
            ('g', 's') => Way::Store,
            ('s', 's') => Way::Peer,
            _ => return self.wrong("the copy must be from or to shared memory".into()),
        };
        let wanted = if way == Way::Store { "bulk_group" } else { "mbarrier::complete_tx::bytes" };
        if !self.has(wanted) {
            return self.wrong(format!("`.{wanted}` is missing"));
        }
        Ok(way)
    }

    fn reduction(&mut self, rank: Option<usize>) -> Result<Reduce, ParseError> {
        let op = self.required(REDUCTIONS)?;
        let _ = self.has("noftz");
        let data_type = if rank.is_none() { Some(self.required(TYPES)?) } else { None };
        Ok(Reduce { op, data_type })
    }

    fn transfer(&mut self, way: Way, rank: Option<usize>, reduction: Option<Reduce>) -> Result<Transfer, ParseError> {
        let shared = Space::Shared;
        Ok(match way {
            Way::Load => {
                let multicast = self.has("multicast::cluster");
                let (to, far) = (self.address(Space::Cluster)?, self.far(rank)?);
                let barrier = self.address(Space::Cluster)?;
                let blocks = if multicast { Some(self.wide_src(Type::B(16))?) } else { None };
                Transfer { route: Route::Load { to, barrier, blocks }, far }
            }
            Way::Store => {
                let (from, far) = match rank {
                    Some(_) => {
                        let far = self.far(rank)?;
                        (self.address(shared)?, far)
                    }
                    None => {
                        let (address, from) = (self.address(Space::Generic)?, self.address(shared)?);
                        (from, Far::Bytes { address, bytes: self.src(WORD)? })
                    }
                };
                Transfer { route: Route::Store { from, reduction }, far }
            }
            Way::Peer => {
                let (to, from) = (self.address(Space::Cluster)?, self.address(shared)?);
                let far = Far::Length { bytes: self.src(WORD)? };
                let barrier = self.address(Space::Cluster)?;
                Transfer { route: Route::Peer { to, from, barrier, reduction }, far }
            }
        })
    }

    /// `[address], bytes` or `[map, {coordinates}]`.
    fn far(&mut self, rank: Option<usize>) -> Result<Far, ParseError> {
        let Some(rank) = rank else {
            return Ok(Far::Bytes { address: self.address(Space::Generic)?, bytes: self.src(WORD)? });
        };
        let (base, offset, more) = match self.next()? {
            RawOperand::Address(base, offset, more) => (base.as_ref(), *offset, more.as_slice()),
            _ => return self.wrong(format!("operand {} must be [map, {{coordinates}}]", self.read)),
        };
        let [RawOperand::Vector(coordinates)] = more else {
            return self.wrong("the coordinates must be one vector; im2col is not supported".into());
        };
        if coordinates.len() != rank {
            return self.wrong(format!("{} coordinates for {rank} dimensions", coordinates.len()));
        }
        let base = self.source(base, WORD, true)?;
        let coordinates: Result<Vec<Operand>, _> =
            coordinates.iter().map(|raw| self.source(raw, Type::S(32), false)).collect();
        let map = Address { space: Space::Generic, base, offset };
        Ok(Far::Box { map, coordinates: coordinates? })
    }
}
