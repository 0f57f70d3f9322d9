//! How a token is chosen.
use crate::error::{Error, Result};

/// Sampling parameters of one request; the meaning is that of vLLM and Hugging Face.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 is off.
    pub top_k: u32,
    /// Only the most likely tokens that together have this probability; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one; 0 is off.
    pub min_p: f32,
    /// The same seed gives the same tokens, whatever else is in the batch.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// Greedy.
    fn default() -> Self {
        SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

impl SamplingParams {
    /// Refuses values that mean nothing.
    pub fn validate(&self) -> Result<()> {
        let fail = |problem: String| Err(Error::Request { problem });
        if !(0.0..=100.0).contains(&self.temperature) {
            return fail(format!("temperature is {}, it must be between 0 and 100", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail(format!("top_p is {}, it must be above 0 and at most 1", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return fail(format!("min_p is {}, it must be between 0 and 1", self.min_p));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senseless_values_are_refused() {
        let good = SamplingParams::default();
        assert!(good.validate().is_ok());
        for bad in [
            SamplingParams { temperature: -0.1, ..good },
            SamplingParams { temperature: f32::NAN, ..good },
            SamplingParams { top_p: 0.0, ..good },
            SamplingParams { top_p: f32::NAN, ..good },
            SamplingParams { min_p: 1.5, ..good },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
