//! Teacher and student.

use super::{at_least_one, not_negative, shares};
use candle_core::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Teacher settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// Channels of the convolutions; the last is the width of the features.
    pub widths: Vec<usize>,
    /// Optimiser steps.
    pub steps: u64,
    /// Images a step, all labelled.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Weight decay of matrices and kernels.
    pub weight_decay: f64,
    /// Label smoothing.
    pub smoothing: f64,
    /// Validation accuracy below which the run stops.
    pub floor: f64,
    /// A trained teacher to use instead of training one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
}

/// Student settings; image size, channels and classes come from the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentConfig {
    /// Height and width of a patch in pixels.
    pub patch: usize,
    /// Width of a token.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden width of a block's MLP over the token's width.
    pub mlp_ratio: usize,
    /// Stochastic depth of the last block.
    pub drop_path: f64,
}

impl TeacherConfig {
    pub(super) fn check(&self) -> Result<()> {
        at_least_one(&[("teacher.steps", self.steps), ("teacher.batch", self.batch as u64)])?;
        not_negative(&[
            ("teacher.learning_rate", self.learning_rate),
            ("teacher.weight_decay", self.weight_decay),
        ])?;
        shares(&[("teacher.floor", self.floor), ("teacher.smoothing", self.smoothing)])
    }
}
