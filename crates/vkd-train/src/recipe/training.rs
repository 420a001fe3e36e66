//! How the student trains.

use super::device::ComputeDevice;
use super::teacher::TeacherConfig;
use super::{at_least_one, not_negative, shares};
use candle_core::{DType, Result, bail};
use serde::{Deserialize, Serialize};
use vkd_nn::{cosine, linear_decay, step_decay};

/// Which optimiser makes a step of the gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// AdamW.
    #[default]
    Adamw,
    /// Gradient descent with momentum; its weight decay is added to the gradient, as in PyTorch.
    Sgd,
    /// LAMB.
    Lamb,
}

/// What forward and backward passes are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeKind {
    /// Single precision.
    #[default]
    F32,
    /// bf16: what layers hand to one another, and a cast of the weights. The weights themselves stay f32, and so do gradients
    /// when they reach the optimiser, averages, statistics, projectors, normalisers and losses.
    Bf16,
}

impl ComputeKind {
    /// candle's name.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// The name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine.
    #[default]
    Cosine,
    /// A straight line.
    Linear,
    /// By a factor at each milestone.
    Step,
}

/// Training settings of the student. Of these the teacher takes the warm-up, the lowest rate, and how often is logged,
/// validated and saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Images a batch.
    pub batch: usize,
    /// Batches whose mean gradient makes one step: a step sees `accumulate * batch` images. Default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub accumulate: u64,
    /// How many of them come from the labelled ones, where only few have labels and a teacher speaks for the rest.
    #[serde(default)]
    pub labelled: usize,
    /// What the student's training passes are computed in: `f32` (default) or `bf16`. It is evaluated in f32 all the same, as
    /// its file holds it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub compute: ComputeKind,
    /// Where teacher and student train and are scored: `cpu` (default), `cuda` for the first GPU, `cuda:N` for another.
    #[serde(default, skip_serializing_if = "is_default")]
    pub device: ComputeDevice,
    /// Optimiser: `adamw` (default), `sgd` or `lamb`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub optimizer: OptimizerKind,
    /// Momentum of `sgd`; default 0.9.
    #[serde(default = "momentum", skip_serializing_if = "is_momentum")]
    pub momentum: f64,
    /// Share of the running mean of gradients that a step of `adamw` or `lamb` keeps; default 0.9. GANs have 0.
    #[serde(default = "momentum", skip_serializing_if = "is_momentum")]
    pub beta1: f64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Where the learning rate ends; default 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub min_learning_rate: f64,
    /// How it falls: `cosine` (default), `linear` or `step`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub schedule: ScheduleKind,
    /// Steps at which `step` lowers the rate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub milestones: Vec<u64>,
    /// Factor of each milestone; default 0.1.
    #[serde(default = "decay_factor", skip_serializing_if = "is_decay_factor")]
    pub decay_factor: f64,
    /// Weight decay of matrices and kernels; projector, biases, norms, tokens and positions have none.
    pub weight_decay: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Global norm to which larger gradients are scaled down; without it they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Decay of the moving averages of all parameters, which then are validated and exported; it starts lower, at update
    /// `t` at most `(1 + t) / (10 + t)`. Without it there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Label smoothing, of classification.
    #[serde(default)]
    pub smoothing: f64,
    /// Steps between two log lines.
    pub log_every: u64,
    /// Steps between two validations.
    pub evaluate_every: u64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Whether each validation logs the length of every term's gradient: one more backward pass a term.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub term_gradients: bool,
    /// How many of the last checkpoints stay, the best one apart; default 2.
    #[serde(default = "keep", skip_serializing_if = "is_keep")]
    pub keep: usize,
    /// Gradients that several ranks exchange at a time, in MiB; default 16. Of no effect for one process.
    #[serde(default = "bucket", skip_serializing_if = "is_bucket")]
    pub bucket_mib: usize,
}

/// A key that has its default is not written, so a key that comes later changes no older recipe.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn bucket() -> usize {
    16
}

fn is_bucket(value: &usize) -> bool {
    *value == bucket()
}

fn is_one(value: &u64) -> bool {
    *value == one()
}

fn is_momentum(value: &f64) -> bool {
    *value == momentum()
}

fn is_decay_factor(value: &f64) -> bool {
    *value == decay_factor()
}

fn is_keep(value: &usize) -> bool {
    *value == keep()
}

fn one() -> u64 {
    1
}

fn momentum() -> f64 {
    0.9
}

fn decay_factor() -> f64 {
    0.1
}

fn keep() -> usize {
    2
}

impl TrainingConfig {
    /// Images that a step's gradient is the mean of: the effective batch.
    pub fn effective_batch(&self) -> usize {
        self.batch.saturating_mul(self.accumulate as usize)
    }

    /// Bytes of gradients that ranks exchange at a time.
    pub(crate) fn bucket_bytes(&self) -> usize {
        self.bucket_mib.saturating_mul(1 << 20)
    }

    /// Images seen in all steps, repeats counted.
    pub fn images(&self) -> u64 {
        self.steps.saturating_mul(self.effective_batch() as u64)
    }

    /// The learning rate of a step, counted from zero.
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        let (base, floor) = (self.learning_rate, self.min_learning_rate);
        match self.schedule {
            ScheduleKind::Cosine => cosine(step, self.steps, self.warmup, base, floor),
            ScheduleKind::Linear => linear_decay(step, self.steps, self.warmup, base, floor),
            ScheduleKind::Step => {
                let rate = step_decay(step, &self.milestones, self.warmup, base, self.decay_factor);
                if step < self.warmup { rate } else { rate.max(floor) }
            }
        }
    }

    /// How the teacher trains: its own numbers, with AdamW and a cosine.
    pub(crate) fn of_teacher<A>(&self, teacher: &TeacherConfig<A>) -> Self {
        Self {
            steps: teacher.steps,
            batch: teacher.batch,
            accumulate: 1,
            labelled: teacher.batch,
            compute: teacher.compute,
            optimizer: OptimizerKind::Adamw,
            learning_rate: teacher.learning_rate,
            min_learning_rate: self.min_learning_rate.min(teacher.learning_rate),
            schedule: ScheduleKind::Cosine,
            milestones: vec![],
            weight_decay: teacher.weight_decay,
            clip_norm: None,
            ema_decay: None,
            smoothing: teacher.smoothing,
            // Of other optimisers and schedules.
            momentum: momentum(),
            beta1: momentum(),
            decay_factor: decay_factor(),
            ..self.clone()
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        at_least_one(&[
            ("training.steps", self.steps),
            ("training.batch", self.batch as u64),
            ("training.accumulate", self.accumulate),
            ("training.keep", self.keep as u64),
            ("training.bucket_mib", self.bucket_mib as u64),
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
            ("training.min_learning_rate", self.min_learning_rate),
            ("training.decay_factor", self.decay_factor),
            ("training.weight_decay", self.weight_decay),
        ])?;
        if self.min_learning_rate > self.learning_rate {
            bail!(
                "training.min_learning_rate: expected at most the learning rate of {}, got {}",
                self.learning_rate,
                self.min_learning_rate
            )
        }
        if self.milestones.is_empty() == (self.schedule == ScheduleKind::Step) {
            bail!(
                "training.milestones: expected some for the schedule step and none for others, got {} for {:?}",
                self.milestones.len(),
                self.schedule
            )
        }
        if let Some(norm) = self.clip_norm
            && !(norm > 0.)
        {
            bail!("training.clip_norm: expected a value above 0, got {norm}")
        }
        shares(&[
            ("training.smoothing", self.smoothing),
            ("training.momentum", self.momentum),
            ("training.beta1", self.beta1),
            ("training.ema_decay", self.ema_decay.unwrap_or(0.)),
        ])
    }
}
