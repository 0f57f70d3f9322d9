//! Approximate functions of f32: held to the bounds of the PTX manual, hardware and emulator alike.
use super::draw::{f32s, rng, words};
use super::template::Elementwise;
use super::{Compare, Probe};

const N: usize = 1024;

/// A function with its manual's bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    kind: Kind,
    ftz: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Ex2,
    Lg2,
    Rcp,
    Rsqrt,
    Sqrt,
    Sin,
    Cos,
    Tanh,
    Div,
}

const KINDS: [(Kind, &str); 10] = [
    (Kind::Ex2, "ex2.approx"),
    (Kind::Lg2, "lg2.approx"),
    (Kind::Rcp, "rcp.approx"),
    (Kind::Rsqrt, "rsqrt.approx"),
    (Kind::Sqrt, "sqrt.approx"),
    (Kind::Sin, "sin.approx"),
    (Kind::Cos, "cos.approx"),
    (Kind::Tanh, "tanh.approx"),
    (Kind::Div, "div.approx"),
    (Kind::Div, "div.full"),
];

/// The group.
pub(super) fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for (kind, op) in KINDS {
        for ftz in [false, true] {
            // tanh has no `.ftz`.
            if !(ftz && kind == Kind::Tanh) {
                probes.push(probe(kind, op, ftz));
            }
        }
    }
    probes
}

fn probe(kind: Kind, op: &str, ftz: bool) -> Probe {
    let op = format!("{op}{}.f32", if ftz { ".ftz" } else { "" });
    let name = format!("approximate/{op}");
    let mut rng = rng(&name);
    let mut inputs = vec![f32s(&mut rng, N)];
    if kind == Kind::Div {
        let mut divisors = f32s(&mut rng, N);
        divisors.rotate_left(7);
        inputs.push(divisors);
    }
    for x in inputs.iter_mut().flatten() {
        let value = f32::from_bits(*x);
        match kind {
            // Beyond, no bound is given.
            Kind::Sin | Kind::Cos if value.is_finite() && value.abs() > 314.0 => *x = (value % 314.0).to_bits(),
            // Most exponents of 2 that have a result.
            Kind::Ex2 if value.abs() > 200.0 && value.is_finite() => *x = (value % 160.0).to_bits(),
            // Outside of 2^±126 a quotient is refused by the manual.
            Kind::Div if op.contains("approx") && value.abs() > 8e37 && value.is_finite() => *x = 1.0f32.to_bits(),
            _ => {}
        }
    }
    let operands = if kind == Kind::Div { "%a, %b" } else { "%a" };
    let inputs = inputs.iter().map(|column| (4, words(column))).collect();
    let probe = Elementwise { name, inputs, outputs: &[4], code: &format!("{op} %x, {operands};") }.probe();
    Probe { compare: Compare::Approximate(Function { kind, ftz }), ..probe }
}

fn flushed(ftz: bool, x: f32) -> f32 {
    if ftz && x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

impl Function {
    /// The true value for an element's inputs.
    fn truth(self, inputs: &[f32]) -> f64 {
        let x = f64::from(flushed(self.ftz, inputs[0]));
        match self.kind {
            Kind::Ex2 => x.exp2(),
            Kind::Lg2 => x.log2(),
            Kind::Rcp => 1.0 / x,
            Kind::Rsqrt => 1.0 / x.sqrt(),
            Kind::Sqrt => x.sqrt(),
            Kind::Sin => x.sin(),
            Kind::Cos => x.cos(),
            Kind::Tanh => x.tanh(),
            Kind::Div => x / f64::from(flushed(self.ftz, inputs[1])),
        }
    }

    /// The nearest result, from which recorded ones are counted in units of the last place.
    pub(super) fn nearest(self, inputs: &[f32]) -> f32 {
        flushed(self.ftz, self.truth(inputs) as f32)
    }

    /// How far a result may be from the true value.
    fn bound(self, inputs: &[f32], truth: f64) -> f64 {
        let relative = |exponent: f64| truth.abs() * exponent.exp2();
        let bound = match self.kind {
            Kind::Lg2 if (0.5..2.0).contains(&inputs[0]) => (-22f64).exp2(),
            Kind::Sin | Kind::Cos if inputs[0].abs() <= std::f32::consts::TAU => (-20.5f64).exp2(),
            Kind::Sin | Kind::Cos => (-14.7f64).exp2(),
            Kind::Ex2 | Kind::Lg2 | Kind::Div => relative(-22.0),
            Kind::Rcp | Kind::Sqrt => relative(-23.0),
            Kind::Rsqrt => relative(-22.9),
            Kind::Tanh => relative(-11.0),
        };
        // What is below the normal numbers has fewer digits, or none.
        bound + if self.ftz { f64::from(f32::MIN_POSITIVE) } else { (-148f64).exp2() }
    }

    /// Whether `found` is a result that the manual allows for these inputs.
    pub(super) fn allows(self, inputs: &[f32], found: f32) -> bool {
        let truth = self.truth(inputs);
        let nearest = truth as f32;
        if nearest.is_nan() || found.is_nan() {
            return nearest.is_nan() && found.is_nan();
        }
        if nearest.is_infinite() || found.is_infinite() {
            // Just below the end of the range either is right.
            return nearest == found || (truth.abs() > 3.4028e38 && truth.signum() == f64::from(found).signum());
        }
        (f64::from(found) - truth).abs() <= self.bound(inputs, truth)
    }

    /// How far, as a share of what is allowed.
    pub(super) fn share(self, inputs: &[f32], found: f32) -> f64 {
        let truth = self.truth(inputs);
        let share = (f64::from(found) - truth).abs() / self.bound(inputs, truth);
        if share.is_finite() { share } else { 0.0 }
    }
}
