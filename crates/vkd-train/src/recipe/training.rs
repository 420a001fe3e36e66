//! How the student trains.

use super::{at_least_one, not_negative, shares};
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// Training settings of the student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Images a step.
    pub batch: usize,
    /// How many of them come from the labelled ones, where only few have labels and a teacher speaks for the rest.
    pub labelled: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Weight decay of matrices and kernels; projector, biases, norms, tokens and positions have none.
    pub weight_decay: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Label smoothing.
    pub smoothing: f64,
    /// Steps between two log lines.
    pub log_every: u64,
    /// Steps between two validations.
    pub evaluate_every: u64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
}

impl TrainingConfig {
    pub(super) fn check(&self) -> Result<()> {
        at_least_one(&[
            ("training.steps", self.steps),
            ("training.batch", self.batch as u64),
            ("training.log_every", self.log_every),
            ("training.evaluate_every", self.evaluate_every),
            ("training.checkpoint_every", self.checkpoint_every),
        ])?;
        if self.labelled > self.batch {
            bail!(
                "training.labelled: expected at most the batch of {}, got {}",
                self.batch,
                self.labelled
            )
        }
        not_negative(&[
            ("training.learning_rate", self.learning_rate),
            ("training.weight_decay", self.weight_decay),
        ])?;
        shares(&[("training.smoothing", self.smoothing)])
    }
}
