//! Rotary position embeddings: the scaling in `config.json` and the frequencies that follow from it.

use super::fields::Fields;
use crate::error::Result;

/// How the frequencies are changed for contexts longer than the pre-training's.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Plain rotary embeddings.
    None,
    /// All frequencies divided by `factor` (position interpolation).
    Linear {
        /// Context extension factor, at least 1.
        factor: f64,
    },
    /// Llama 3.1's: long wavelengths divided by `factor`, short ones kept, a smooth ramp between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_position / low_freq` are divided in full.
        low_freq: f64,
        /// Wavelengths below `original_max_position / high_freq` are kept.
        high_freq: f64,
        /// Context length of the pre-training, in tokens.
        original_max_position: usize,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// Context extension factor.
        factor: f64,
        /// Context length of the pre-training, in tokens.
        original_max_position: usize,
        /// Rotations over the pre-training context from which a dimension is kept; 32 by default.
        beta_fast: f64,
        /// Rotations below which a dimension is interpolated in full; 1 by default.
        beta_slow: f64,
        /// Explicit factor on cos and sin; by default it follows from `factor` or the mscales.
        attention_factor: Option<f64>,
        /// DeepSeek's numerator of the attention factor.
        mscale: Option<f64>,
        /// DeepSeek's denominator of the attention factor.
        mscale_all_dim: Option<f64>,
        /// Whether the ramp's bounds are rounded to whole dimensions; true by default.
        truncate: bool,
    },
}

/// Rotary embedding of one attention layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Leading dimensions of a head that are rotated: even, at most head_dim.
    pub rotary_dim: usize,
    /// Long-context scaling.
    pub scaling: RopeScaling,
}

/// What the RoPE kernel consumes: angle of pair `i` at position `p` is `p * inv_freq[i]`, cos and sin
/// are multiplied by `attention_scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    /// `rotary_dim / 2` inverse frequencies, radians per token.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin; 1 except for YaRN.
    pub attention_scale: f32,
}

impl RopeTable {
    /// cos and sin of every pair at `position`, `inv_freq.len()` each, scaled, in f32 throughout as transformers does.
    pub fn cos_sin(&self, position: usize) -> (Vec<f32>, Vec<f32>) {
        let angle = |f: &f32| position as f32 * f;
        let scale = self.attention_scale;
        (
            self.inv_freq
                .iter()
                .map(|f| angle(f).cos() * scale)
                .collect(),
            self.inv_freq
                .iter()
                .map(|f| angle(f).sin() * scale)
                .collect(),
        )
    }
}

impl Rope {
    /// The inverse frequencies and the attention scale, computed in f32 in transformers' order of operations.
    pub fn table(&self) -> RopeTable {
        let dim = self.rotary_dim as f32;
        // pos_freqs[i] = theta^(2i/dim); the power in f64 rounds to what any good f32 pow returns.
        let pos_freqs: Vec<f32> = (0..self.rotary_dim / 2)
            .map(|i| self.theta.powf(f64::from((2 * i) as f32 / dim)) as f32)
            .collect();
        let plain = || pos_freqs.iter().map(|p| 1.0 / p);
        let mut attention_scale = 1.0;
        let inv_freq = match &self.scaling {
            RopeScaling::None => plain().collect(),
            RopeScaling::Linear { factor } => plain().map(|f| f / *factor as f32).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq,
                high_freq,
                original_max_position,
            } => {
                let context = *original_max_position as f64;
                plain()
                    .map(|f| llama3(f, *factor as f32, *low_freq, *high_freq, context))
                    .collect()
            }
            RopeScaling::Yarn {
                factor,
                attention_factor,
                mscale,
                mscale_all_dim,
                ..
            } => {
                attention_scale = attention_factor
                    .unwrap_or_else(|| yarn_attention_factor(*factor, *mscale, *mscale_all_dim))
                    as f32;
                self.yarn(&pos_freqs)
            }
        };
        RopeTable {
            inv_freq,
            attention_scale,
        }
    }

    fn yarn(&self, pos_freqs: &[f32]) -> Vec<f32> {
        let RopeScaling::Yarn {
            factor,
            original_max_position,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } = self.scaling
        else {
            return Vec::new();
        };
        let dim = self.rotary_dim as f64;
        // The dimension that turns `rotations` times over the pre-training context.
        let correction_dim = |rotations: f64| {
            let turns = original_max_position as f64 / (rotations * 2.0 * std::f64::consts::PI);
            dim * turns.ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (correction_dim(beta_fast), correction_dim(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let low = low.max(0.0);
        let mut high = high.min(dim - 1.0);
        if low == high {
            high += 0.001; // a step instead of a ramp, without dividing by zero
        }
        pos_freqs
            .iter()
            .enumerate()
            .map(|(i, p)| {
                let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let keep = 1.0 - ramp;
                (1.0 / (factor as f32 * p)) * (1.0 - keep) + (1.0 / p) * keep
            })
            .collect()
    }

    /// Reads `rope_parameters` (transformers 5) or `rope_scaling` with a top-level `rope_theta`.
    pub(crate) fn parse(f: &Fields, head_dim: usize, max_position: usize) -> Result<Rope> {
        let nested = Self::parameters(f)?;
        // transformers' priority: inside the dict, then beside it, then the class default.
        let float = |key: &str, min, max| -> Result<Option<f64>> {
            match nested
                .map(|n| n.float_in(key, min, max))
                .transpose()?
                .flatten()
            {
                Some(x) => Ok(Some(x)),
                None => f.float_in(key, min, max),
            }
        };
        let theta = float("rope_theta", 1.0 + 1e-6, 1e15)?.unwrap_or(10_000.0);
        let partial = float("partial_rotary_factor", 0.0, 1.0)?.unwrap_or(1.0);
        let rotary_dim = (head_dim as f64 * partial) as usize;
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            return Err(f.error(
                "partial_rotary_factor",
                format!("rotates {rotary_dim} of {head_dim} dimensions; must be an even number of at least 2"),
            ));
        }
        let scaling = match nested {
            None => RopeScaling::None,
            Some(n) => parse_scaling(f, &n, max_position)?,
        };
        Ok(Rope {
            theta,
            rotary_dim,
            scaling,
        })
    }

    /// The dict with the parameters; where they are given per layer type, all types must agree.
    fn parameters<'a>(f: &Fields<'a>) -> Result<Option<Fields<'a>>> {
        let field = if f.get("rope_scaling").is_some() {
            "rope_scaling"
        } else {
            "rope_parameters"
        };
        let Some(outer) = f.object(field)? else {
            return Ok(None);
        };
        let full = outer.object_if_object("full_attention");
        let sliding = outer.object_if_object("sliding_attention");
        match (full, sliding) {
            (Some(a), Some(b)) if !a.same_as(&b) => Err(f.error(
                field,
                "differs between full and sliding attention layers, which is not supported",
            )),
            (Some(a), _) | (None, Some(a)) => Ok(Some(a)),
            (None, None) => Ok(Some(outer)),
        }
    }
}

fn parse_scaling(f: &Fields, n: &Fields, max_position: usize) -> Result<RopeScaling> {
    const MAX_FACTOR: f64 = 1e6;
    let kind = match n.str("rope_type")? {
        Some(kind) => kind,
        None => n.str("type")?.unwrap_or("default"),
    };
    let need = |key: &str, min: f64| -> Result<f64> {
        n.float_in(key, min, MAX_FACTOR)?.ok_or_else(|| {
            n.error(
                key,
                format!("is missing from the rope parameters of type {kind}"),
            )
        })
    };
    let original = || -> Result<usize> {
        let key = "original_max_position_embeddings";
        let outer = f.int(key, 1, super::MAX_POSITION)?;
        let inner = n.int(key, 1, super::MAX_POSITION)?;
        Ok(outer.or(inner).unwrap_or(max_position))
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear {
            factor: need("factor", 1e-6)?,
        }),
        "llama3" => {
            let (low_freq, high_freq) = (
                need("low_freq_factor", 1e-6)?,
                need("high_freq_factor", 1e-6)?,
            );
            if high_freq <= low_freq {
                return Err(n.error("high_freq_factor", "must be greater than low_freq_factor"));
            }
            Ok(RopeScaling::Llama3 {
                factor: need("factor", 1e-6)?,
                low_freq,
                high_freq,
                original_max_position: original()?,
            })
        }
        "yarn" => {
            let original_max_position = original()?;
            // 0 means "default" in transformers (`or 32`), so it does here.
            let beta = |key, default| -> Result<f64> {
                Ok(n.float_in(key, 0.0, MAX_FACTOR)?
                    .filter(|b| *b != 0.0)
                    .unwrap_or(default))
            };
            Ok(RopeScaling::Yarn {
                factor: n
                    .float_in("factor", 1e-6, MAX_FACTOR)?
                    .unwrap_or(max_position as f64 / original_max_position as f64),
                original_max_position,
                beta_fast: beta("beta_fast", 32.0)?,
                beta_slow: beta("beta_slow", 1.0)?,
                attention_factor: n.float_in("attention_factor", 0.0, MAX_FACTOR)?,
                mscale: n.float_in("mscale", 0.0, MAX_FACTOR)?,
                mscale_all_dim: n.float_in("mscale_all_dim", 0.0, MAX_FACTOR)?,
                truncate: n.bool("truncate")?.unwrap_or(true),
            })
        }
        other => Err(n.error(
            "rope_type",
            format!("{other:?} is not supported; supported are default, linear, llama3 and yarn"),
        )),
    }
}

fn llama3(f: f32, factor: f32, low: f64, high: f64, context: f64) -> f32 {
    let wavelength = 2.0 * std::f32::consts::PI / f;
    if wavelength > (context / low) as f32 {
        return f / factor;
    }
    if wavelength < (context / high) as f32 {
        return f;
    }
    let smooth = (context as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * f / factor + smooth * f
}

fn yarn_attention_factor(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let scale = |m: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * m * factor.ln() + 1.0
        }
    };
    match (mscale.unwrap_or(0.0), mscale_all_dim.unwrap_or(0.0)) {
        (a, b) if a != 0.0 && b != 0.0 => scale(a) / scale(b),
        _ => scale(1.0),
    }
}

#[cfg(test)]
#[path = "rope_tests.rs"]
mod tests;
