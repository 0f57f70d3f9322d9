//! Where draft tokens come from, and what became of them.
use crate::model::ModelArgs;
use crate::parse;
use anyhow::{Result, ensure};
use clap::Args;
use engine::engine::{DraftModel, EngineConfig};
use engine::scheduler::{MAX_DRAFTS, SchedulerMetrics, Speculation};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Draft tokens a step where nobody says.
const DRAFTS: usize = 3;

/// Flags of speculative decoding. It changes no answer.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Speculative decoding")]
pub struct SpeculationArgs {
    /// A smaller model of the same family that drafts tokens for MODEL to check: a directory, or tiny-draft
    #[arg(long, value_name = "MODEL")]
    pub draft_model: Option<PathBuf>,
    /// Draft tokens from what followed the last tokens where they occurred before
    #[arg(long, visible_alias = "prompt-lookup", conflicts_with = "draft_model")]
    pub spec_ngram: bool,
    /// Draft tokens a step, 1 to 7 [default: 3]
    #[arg(long, visible_alias = "num-speculative-tokens", value_name = "K", value_parser = parse::count_in(1..=MAX_DRAFTS))]
    pub num_draft_tokens: Option<usize>,
    /// With --spec-ngram: longest run of tokens to look for
    #[arg(long, value_name = "N", default_value = "4", value_parser = parse::count_in(1..=64))]
    pub prompt_lookup_max: usize,
    /// With --spec-ngram: shortest run of tokens to look for
    #[arg(long, value_name = "N", default_value = "2", value_parser = parse::count_in(1..=64))]
    pub prompt_lookup_min: usize,
    /// For benchmarks with random weights: accept every draft with this probability, whatever the model says
    #[arg(long, value_name = "P", value_parser = parse::probability)]
    pub spec_synthetic_acceptance: Option<f32>,
}

impl SpeculationArgs {
    /// Writes it into an engine's configuration. `draft`: a draft model that other flags ask for.
    pub fn apply(&self, draft: Option<DraftModel>, config: &mut EngineConfig) -> Result<()> {
        let draft = match (draft, &self.draft_model) {
            (None, Some(path)) => Some(DraftModel::Model(ModelArgs { model: Some(path.clone()) }.source()?)),
            (draft, _) => draft,
        };
        let drafts = self.num_draft_tokens.unwrap_or(DRAFTS);
        let (max_n, min_n) = (self.prompt_lookup_max, self.prompt_lookup_min);
        ensure!(min_n <= max_n, "--prompt-lookup-min {min_n} is above --prompt-lookup-max {max_n}");
        config.speculation = match &draft {
            Some(_) => Speculation::Draft { drafts },
            None if self.spec_ngram => Speculation::Ngram { drafts, max_n, min_n },
            None => {
                let asked = self.num_draft_tokens.is_some() || self.spec_synthetic_acceptance.is_some();
                ensure!(!asked, "nothing drafts tokens: give --draft-model or --spec-ngram");
                Speculation::Off
            }
        };
        config.synthetic_acceptance = self.spec_synthetic_acceptance;
        config.draft = draft;
        Ok(())
    }
}

/// What became of drafts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Acceptance {
    /// Steps with drafts, over all sequences.
    steps: u64,
    drafted: u64,
    accepted: u64,
    /// By position: of the steps that had a draft there, those in which it and all before it came true.
    shares: Vec<f64>,
}

impl Acceptance {
    /// Between two counts; `None` if there were no drafts.
    pub fn between(before: &SchedulerMetrics, after: &SchedulerMetrics) -> Option<Self> {
        let count = |after: &[u64; MAX_DRAFTS], before: &[u64; MAX_DRAFTS]| -> Vec<u64> {
            after.iter().zip(before).map(|(after, before)| after - before).collect()
        };
        let (drafted, accepted) = (count(&after.drafted, &before.drafted), count(&after.accepted, &before.accepted));
        let tried = drafted.iter().zip(&accepted).filter(|(drafted, _)| **drafted > 0);
        let shares = tried.map(|(drafted, accepted)| *accepted as f64 / *drafted as f64).collect();
        let (steps, drafted, accepted) = (drafted[0], drafted.iter().sum(), accepted.iter().sum());
        (steps > 0).then_some(Acceptance { steps, drafted, accepted, shares })
    }

    /// Tokens that a step with drafts gives.
    fn length(&self) -> f64 {
        1.0 + self.accepted as f64 / self.steps as f64
    }

    /// A line for people.
    pub fn line(&self) -> String {
        let shares: Vec<_> = self.shares.iter().map(|share| format!("{:.1}", share * 100.0)).collect();
        format!("{:.2} tokens a step; drafts accepted by position {} %", self.length(), shares.join(", "))
    }

    /// Into a JSON object, with vLLM's names.
    pub fn write(&self, value: &mut Value) {
        value["spec_decode_acceptance_rate"] = json!(self.accepted as f64 / self.drafted as f64 * 100.0);
        value["spec_decode_acceptance_length"] = json!(self.length());
        value["spec_decode_num_drafts"] = json!(self.steps);
        value["spec_decode_draft_tokens"] = json!(self.drafted);
        value["spec_decode_accepted_tokens"] = json!(self.accepted);
        value["spec_decode_per_position_acceptance_rates"] = json!(self.shares);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::source::ModelSource;

    #[test]
    fn acceptance_is_counted_by_position() {
        let mut before = SchedulerMetrics::default();
        assert_eq!(Acceptance::between(&before, &before), None);
        before.drafted[0] = 10;
        let mut after = before;
        (after.drafted[0], after.drafted[1], after.accepted[0], after.accepted[1]) = (18, 4, 6, 1);
        let acceptance = Acceptance::between(&before, &after).unwrap();
        assert_eq!(acceptance.line(), "1.88 tokens a step; drafts accepted by position 75.0, 25.0 %");
        let mut json = json!({});
        acceptance.write(&mut json);
        assert_eq!(json["spec_decode_num_drafts"], 8);
        assert_eq!(json["spec_decode_per_position_acceptance_rates"], json!([0.75, 0.25]));
    }

    #[test]
    fn flags_say_where_drafts_come_from() {
        let args = SpeculationArgs { prompt_lookup_max: 3, prompt_lookup_min: 1, ..SpeculationArgs::default() };
        let apply = |args: &SpeculationArgs| {
            let mut config = EngineConfig::default();
            args.apply(None, &mut config).map(|()| config)
        };
        assert_eq!(apply(&args).unwrap().speculation, Speculation::Off);
        let ngram = SpeculationArgs { spec_ngram: true, num_draft_tokens: Some(5), ..args.clone() };
        assert_eq!(apply(&ngram).unwrap().speculation, Speculation::Ngram { drafts: 5, max_n: 3, min_n: 1 });
        let tiny = SpeculationArgs { draft_model: Some("tiny-draft".into()), ..args.clone() };
        let config = apply(&tiny).unwrap();
        assert_eq!(config.speculation, Speculation::Draft { drafts: DRAFTS });
        assert!(matches!(config.draft, Some(DraftModel::Model(ModelSource::Embedded(_)))));
        for wrong in [
            SpeculationArgs { num_draft_tokens: Some(2), ..args.clone() },
            SpeculationArgs { prompt_lookup_min: 4, ..args.clone() },
            SpeculationArgs { draft_model: Some("no/such/folder".into()), ..args },
        ] {
            assert!(apply(&wrong).is_err(), "{wrong:?}");
        }
    }
}
