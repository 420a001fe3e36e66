//! The teacher.

use super::training::is_default;
use super::{ComputeKind, at_least_one, not_negative, shares};
use candle_core::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use vkd_models::Architecture;

/// Teacher settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// Family and sizes; image size, channels and classes come from the data.
    pub model: Architecture,
    /// What its passes are computed in, in training and when it is scored and asked: `f32` (default) or `bf16`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub compute: ComputeKind,
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
    /// Weights to use instead of training: a teacher that vkd wrote, or a `.safetensors` or `.pth` file with the names of the
    /// model's own weights, which are timm's. `hf://ORG/NAME/FILE@REVISION` is a file of the Hugging Face Hub, downloaded once into
    /// its cache by a build with the feature `hub`; a revision keeps it the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
    /// The dict inside a `.pth` checkpoint that holds the weights, `model` in DeiT's own files; a `.safetensors` file has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_key: Option<String>,
    /// Where the teacher lies in a checkpoint of more than it: `teacher` for keys `teacher.head.weight`. What PyTorch's wrappers put
    /// before every key needs no prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_prefix: Option<String>,
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
