//! What a run tells its observer, and the rows of `metrics.jsonl`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One row of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// `teacher`, or the name of an arm.
    pub arm: String,
    /// Updates done before this row.
    pub step: u64,
    /// What is reported.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Content of an [`Event`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventKind {
    /// A training step.
    Step {
        /// Weighted sum of the terms.
        loss: f64,
        /// Terms before weighting, by name.
        terms: BTreeMap<String, f64>,
        /// Learning rate of the step.
        learning_rate: f64,
        /// `max|WᵀW − I|` in f64; null without an orthogonal projector.
        residual: Option<f64>,
    },
    /// A validation.
    Validation {
        /// Accuracy on the validation images.
        validation_accuracy: f64,
    },
}

/// Where events go. An error ends the run.
pub type Observer<'a> = dyn FnMut(&Event) -> candle_core::Result<()> + 'a;
