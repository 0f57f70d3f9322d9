//! Branches, barriers, warp collectives and what changes nothing here.

use super::Decoder;
use super::memory::SCOPES;
use crate::ParseError;
use crate::instruction::{AtomicOp, ClusterOp, Collective, Guard, Op, Operand, Scope, ShuffleMode, Type, VoteMode};
use crate::syntax::raw::RawOperand;

const SHUFFLES: &[(&str, ShuffleMode)] =
    &[("up", ShuffleMode::Up), ("down", ShuffleMode::Down), ("bfly", ShuffleMode::Bfly), ("idx", ShuffleMode::Idx)];

const VOTES: &[(&str, VoteMode)] =
    &[("all", VoteMode::All), ("any", VoteMode::Any), ("uni", VoteMode::Uni), ("ballot", VoteMode::Ballot)];

const REDUCTIONS: &[(&str, AtomicOp)] = &[
    ("add", AtomicOp::Add),
    ("min", AtomicOp::Min),
    ("max", AtomicOp::Max),
    ("and", AtomicOp::And),
    ("or", AtomicOp::Or),
    ("xor", AtomicOp::Xor),
];

/// The scopes of `membar`, which is an old name of `fence.sc`.
const MEMBAR_SCOPES: &[(&str, Scope)] = &[("cta", Scope::Block), ("gl", Scope::Device), ("sys", Scope::Device)];

impl Decoder<'_, '_> {
    pub(super) fn control(&mut self, name: &str) -> Result<Option<Op>, ParseError> {
        Ok(Some(match name {
            "bra" => {
                let _ = self.has("uni");
                let RawOperand::Word(label) = self.next()? else {
                    return self.wrong("the target must be a label".into());
                };
                match self.entry.label(self.statement.scope, label) {
                    Some(target) => Op::Branch { target },
                    None => return self.wrong(format!("label `{label}` is not in this scope")),
                }
            }
            "ret" | "exit" => {
                let _ = self.has("uni");
                Op::Exit
            }
            "trap" => Op::Trap,
            "bar" if self.has("warp") => self.warp_barrier()?,
            "barrier" if self.has("cluster") => self.cluster_barrier()?,
            "mapa" | "getctarank" => self.cluster_address(name == "mapa")?,
            "bar" | "barrier" => self.barrier(name == "bar")?,
            "shfl" => self.shuffle()?,
            "vote" => self.vote()?,
            "redux" => self.redux()?,
            "match" => self.match_lanes()?,
            "elect" => self.elect()?,
            "activemask" => {
                let ty = self.ty()?;
                Op::ActiveMask { dst: self.dst(ty)? }
            }
            "membar" => Op::Fence { scope: self.required(MEMBAR_SCOPES)? },
            "fence" => self.fence()?,
            "griddepcontrol" => {
                let wait = self.required(&[("wait", true), ("launch_dependents", false)])?;
                Op::GridDependency { wait }
            }
            "nanosleep" => {
                let ty = self.ty()?;
                self.src(ty)?;
                Op::Nothing
            }
            _ => return Ok(None),
        }))
    }

    /// Fences of memory order.
    fn fence(&mut self) -> Result<Op, ParseError> {
        // One that only acquires or releases orders less than this does: no race is made up.
        let _ = self.choice(&[("sc", ()), ("acq_rel", ()), ("acquire", ()), ("release", ())]);
        Ok(Op::Fence { scope: self.required(SCOPES)? })
    }

    fn warp_barrier(&mut self) -> Result<Op, ParseError> {
        if !self.has("sync") {
            return self.wrong("only bar.warp.sync exists".into());
        }
        Ok(Op::Collective { what: Collective::Barrier, mask: self.src(Type::U(32))? })
    }

    /// `bar.sync id{, count}`, `bar.arrive id, count`, and `barrier.…`, which must be `.aligned`.
    fn barrier(&mut self, always_aligned: bool) -> Result<Op, ParseError> {
        let _ = self.has("cta");
        let wait = self.required(&[("sync", true), ("arrive", false)])?;
        if !(self.has("aligned") || always_aligned) {
            return self.wrong("only .aligned barriers are supported".into());
        }
        let id = self.src(Type::U(32))?;
        let count = if self.left() > 0 { Some(self.src(Type::U(32))?) } else { None };
        if count.is_none() && !wait {
            return self.wrong("an arrival needs the number of threads".into());
        }
        Ok(Op::Barrier { wait, id, count })
    }

    fn cluster_barrier(&mut self) -> Result<Op, ParseError> {
        let arrive = self.required(&[("arrive", true), ("wait", false)])?;
        let what = match arrive {
            true if self.has("relaxed") => ClusterOp::Arrive { release: false },
            true => {
                let _ = self.has("release");
                ClusterOp::Arrive { release: true }
            }
            false => {
                let _ = self.has("acquire");
                ClusterOp::Wait
            }
        };
        Ok(Op::Cluster { what, aligned: self.has("aligned") })
    }

    /// `mapa{.shared::cluster}.type d, a, rank` and `getctarank{.shared::cluster}.type d, a`.
    fn cluster_address(&mut self, map: bool) -> Result<Op, ParseError> {
        let _ = self.has("shared::cluster");
        let ty = self.ty()?;
        let word = Type::U(32);
        let what = match map {
            true => {
                let dst = self.dst(ty)?;
                ClusterOp::Map { ty, dst, a: self.wide_src(ty)?, rank: self.src(word)? }
            }
            false => ClusterOp::Rank { dst: self.dst(word)?, a: self.wide_src(ty)? },
        };
        Ok(Op::Cluster { what, aligned: false })
    }

    fn synchronised(&mut self) -> Result<(), ParseError> {
        if self.has("sync") {
            return Ok(());
        }
        self.wrong("only the .sync form is supported".into())
    }

    fn shuffle(&mut self) -> Result<Op, ParseError> {
        self.synchronised()?;
        let mode = self.required(SHUFFLES)?;
        let ty = self.ty()?;
        let (dst, valid) = match self.next()? {
            RawOperand::Word(dst) => (*dst, "_"),
            RawOperand::Pair(dst, valid) => (*dst, *valid),
            _ => return self.wrong("the destination must be a register".into()),
        };
        let dst = self.fits(self.register(dst)?, ty, false, dst)?;
        let valid = self.optional_dst(&RawOperand::Word(valid), Type::Pred)?;
        let word = Type::U(32);
        let (a, b, clamp) = (self.src(ty)?, self.src(word)?, self.src(word)?);
        let mask = self.src(word)?;
        Ok(Op::Collective { what: Collective::Shuffle { mode, dst, valid, a, b, clamp }, mask })
    }

    fn vote(&mut self) -> Result<Op, ParseError> {
        self.synchronised()?;
        let mode = self.required(VOTES)?;
        let ty = self.ty()?;
        let dst = self.dst(ty)?;
        let a: Guard = self.guard()?;
        let mask = self.src(Type::U(32))?;
        Ok(Op::Collective { what: Collective::Vote { mode, dst, a }, mask })
    }

    fn redux(&mut self) -> Result<Op, ParseError> {
        self.synchronised()?;
        let op = self.required(REDUCTIONS)?;
        let ty = self.ty()?;
        if ty.bits() != 32 || ty == Type::F32 {
            return self.wrong("only 32-bit integers are supported".into());
        }
        let (dst, a) = (self.dst(ty)?, self.src(ty)?);
        let mask = self.src(Type::U(32))?;
        Ok(Op::Collective { what: Collective::Reduce { op, ty, dst, a }, mask })
    }

    fn match_lanes(&mut self) -> Result<Op, ParseError> {
        let all = self.required(&[("all", true), ("any", false)])?;
        self.synchronised()?;
        let ty = self.ty()?;
        let (dst, pred) = match self.next()? {
            RawOperand::Word(dst) => (*dst, "_"),
            RawOperand::Pair(dst, pred) => (*dst, *pred),
            _ => return self.wrong("the destination must be a register".into()),
        };
        let dst = self.fits(self.register(dst)?, Type::B(32), false, dst)?;
        let pred = self.optional_dst(&RawOperand::Word(pred), Type::Pred)?;
        let a: Operand = self.src(ty)?;
        let mask = self.src(Type::U(32))?;
        let what = Collective::Match { ty, dst, a, all: all.then_some(pred) };
        Ok(Op::Collective { what, mask })
    }

    fn elect(&mut self) -> Result<Op, ParseError> {
        self.synchronised()?;
        let RawOperand::Pair(leader, dst) = *self.next()? else {
            return self.wrong("the destination must be `register|predicate`".into());
        };
        let leader = self.optional_dst(&RawOperand::Word(leader), Type::B(32))?;
        let dst = self.register(dst)?;
        let mask = self.src(Type::U(32))?;
        Ok(Op::Collective { what: Collective::Elect { leader, dst }, mask })
    }
}
