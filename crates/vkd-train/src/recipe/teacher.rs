//! The teacher.

use super::training::is_default;
use super::{ComputeKind, DataConfig, at_least_one, not_negative, shares};
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use vkd_models::Architecture;

/// Teacher settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig<A = Architecture> {
    /// Family and sizes; image size, channels and classes come from the data.
    pub model: A,
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
    /// Label smoothing, of classification.
    #[serde(default)]
    pub smoothing: f64,
    /// Validation score (accuracy, AP) below which the run stops.
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
    /// Remembers what it answers, for training images that come again and again in the same looks. The students get the same
    /// bits with and without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheConfig>,
}

/// Where the teacher's answers are kept: `[teacher.cache]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// A folder that several runs may share; by default `teacher-cache` in the run's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// What all answers may take, in MiB, on disk and in the memory of each process; a run that would need more is refused.
    /// Default 1024.
    pub limit_mib: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { dir: None, limit_mib: 1024 }
    }
}

impl<A> TeacherConfig<A> {
    /// What its answers need to be remembered.
    pub(crate) fn check_cache(&self, data: &DataConfig) -> Result<()> {
        if let Some(cache) = &self.cache {
            at_least_one(&[("teacher.cache.limit_mib", cache.limit_mib)])?;
            if data.augment.mixes() {
                bail!(
                    "teacher.cache: expected data.augment without mixup and cutmix: a mixed image never comes again"
                )
            }
            if let Err(random) = data.looks() {
                bail!(
                    "teacher.cache: expected data.augment.views or nothing random in the images, got {random}, drawn anew at every step"
                )
            }
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<()> {
        at_least_one(&[("teacher.steps", self.steps), ("teacher.batch", self.batch as u64)])?;
        not_negative(&[
            ("teacher.learning_rate", self.learning_rate),
            ("teacher.weight_decay", self.weight_decay),
        ])?;
        shares(&[("teacher.floor", self.floor), ("teacher.smoothing", self.smoothing)])
    }
}
