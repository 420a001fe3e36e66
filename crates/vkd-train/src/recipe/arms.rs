//! The method, and the arms of a comparison.

use super::not_negative;
use candle_core::Result;
use serde::{Deserialize, Serialize};

/// Settings of the method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillConfig {
    /// Temperature of the logits' divergence.
    pub temperature: f64,
    /// Distance of the features: `smooth_l1` or `mse`.
    pub loss: LossKind,
    /// Where smooth-L1 turns linear.
    pub beta: f64,
    /// Map of the orthogonal projector: `cayley`, `matrix_exp` or `householder`.
    pub map: String,
    /// Normaliser of the teacher's features: `identity`, `layer_norm`, `standardize`, `whiten`, or another name of
    /// `vkd_norm::Normalizer`.
    pub teacher_normalizer: String,
    /// Normaliser of the projected student's features.
    pub student_normalizer: String,
}

/// Distance between features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Smooth-L1.
    SmoothL1,
    /// Mean squared difference.
    Mse,
}

/// One arm of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmConfig {
    /// Which labels it knows.
    pub labels: LabelBudget,
    /// Weight of the teacher's logits; 0 leaves the term out.
    #[serde(default)]
    pub logits: f64,
    /// Weight of the teacher's features; 0 leaves the term out.
    #[serde(default)]
    pub features: f64,
    /// Projector of the features.
    #[serde(default)]
    pub projector: ProjectorKind,
}

impl ArmConfig {
    pub(super) fn check(&self, name: &str) -> Result<()> {
        not_negative(&[
            (&format!("arm.{name}.logits"), self.logits),
            (&format!("arm.{name}.features"), self.features),
        ])
    }

    /// Whether the arm looks at the teacher at all.
    pub fn uses_teacher(&self) -> bool {
        self.logits > 0. || self.features > 0.
    }
}

/// Which training labels an arm knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelBudget {
    /// `data.labels` of them.
    Few,
    /// All.
    All,
}

/// Kind of projector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectorKind {
    /// Orthonormal columns.
    #[default]
    Orthogonal,
    /// Unconstrained.
    Linear,
}
