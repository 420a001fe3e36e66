//! The method, and the arms of a comparison.

use super::training::is_default;
use super::{AugmentConfig, not_negative};
use crate::networks::{STUDENT_TAP, TEACHER_TAP};
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use vkd_loss::baselines::DkdConfig;

/// Settings of the method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillConfig {
    /// Temperature of the logits' divergence.
    pub temperature: f64,
    /// Distance of the features: `smooth_l1` or `mse`; or a loss on relations, for arms with `projector = "none"`.
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
    /// Which features are matched, each pair with a projector of its own and the arm's weight; by default the student's
    /// patch tokens and the teacher's pooled features.
    #[serde(default = "usual_tap", skip_serializing_if = "is_usual_tap")]
    pub tap: Vec<TapNames>,
    /// Whether the padded places of a detector's maps count, as in the published code, which is the default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub padding: PaddingKind,
    /// Of generation: whose covariance whitens the teacher's features; by default each batch's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub covariance: CovarianceKind,
    /// Of generation: how far the covariance is drawn to the mean variance times the identity before whitening, a share; by default
    /// 1e-4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrinkage: Option<f64>,
    /// Of generation, for `loss = "kd_dlgan"`: a file with one feature of the teacher's for each class, of a text that names it; by
    /// default that loss has no terms of texts. A `.safetensors` or `.pth` file with a tensor `texts` of (classes, width of the teacher's
    /// tap), in the order of the data's classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<PathBuf>,
}

impl DistillConfig {
    pub(super) fn check(&self) -> Result<()> {
        let weights: Vec<_> = self
            .tap
            .iter()
            .map(|tap| (format!("distill.tap: weight of {}", tap.student), tap.weight))
            .collect();
        let weights: Vec<(&str, f64)> = weights.iter().map(|(key, w)| (key.as_str(), *w)).collect();
        not_negative(&weights)?;
        share("distill.shrinkage", self.shrinkage)
    }
}

/// A tap of the student and the one of the teacher that it is matched to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapNames {
    /// The student's.
    pub student: String,
    /// The teacher's.
    pub teacher: String,
    /// Factor of this pair beside the arm's weight; default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: f64,
}

impl TapNames {
    /// A pair of weight 1.
    pub fn new(student: &str, teacher: &str) -> Self {
        Self { student: student.to_owned(), teacher: teacher.to_owned(), weight: one() }
    }
}

fn one() -> f64 {
    1.
}

fn is_one(weight: &f64) -> bool {
    *weight == one()
}

/// What becomes of the padded places of a detector's maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaddingKind {
    /// They count as any place.
    #[default]
    Counted,
    /// They are left out.
    Masked,
}

/// Whose covariance whitens the teacher's features of a GAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CovarianceKind {
    /// That of the batch, real and generated images together.
    #[default]
    Batch,
    /// That of the last hundred batches or so.
    Running,
    /// That of the training images that the GAN may see, before any training.
    Data,
}

/// Refuses a value outside `[0, 1]`.
fn share(key: &str, value: Option<f64>) -> Result<()> {
    match value {
        Some(value) if !(0. ..=1.).contains(&value) => {
            bail!("{key}: expected a share in [0, 1], got {value}")
        }
        _ => Ok(()),
    }
}

fn usual_tap() -> Vec<TapNames> {
    vec![TapNames::new(STUDENT_TAP, TEACHER_TAP)]
}

/// A key that has its default is not written, so that it changes no older recipe.
fn is_usual_tap(tap: &[TapNames]) -> bool {
    tap == usual_tap()
}

/// Distance between features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Smooth-L1.
    SmoothL1,
    /// Mean squared difference.
    Mse,
    /// Similarity-preserving distillation, arXiv:1907.09682.
    Spkd,
    /// Probabilistic knowledge transfer, arXiv:1803.10837.
    Pkt,
    /// Relational distillation of distances, arXiv:1904.05068.
    RkdDistance,
    /// Relational distillation of angles, of the same paper.
    RkdAngle,
    /// ViDT's token matching, arXiv:2110.03921, for detectors: the square root of the sum over taps of the mean distance of
    /// a row to the teacher's, times the layers that a tap stacks. The arm's weight stands before the root.
    TokenMatching,
    /// KD-DLGAN's terms, arXiv:2303.17158, for GANs; those of texts where `texts` names a file of them.
    KdDlgan,
}

impl LossKind {
    /// Whether it compares relations within the batch, so that the two widths may differ.
    pub fn is_relational(self) -> bool {
        !matches!(self, Self::SmoothL1 | Self::Mse | Self::TokenMatching | Self::KdDlgan)
    }

    /// Whether all taps share one term, under a root.
    pub fn is_rooted(self) -> bool {
        self == Self::TokenMatching
    }
}

/// Distance between logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogitLossKind {
    /// KL divergence, times the squared temperature.
    Kl,
    /// DIST, arXiv:2205.10536: correlations over classes and over samples.
    Dist,
    /// KL divergence of standardised logits, arXiv:2403.01427.
    LogitStandardization,
    /// Decoupled distillation, arXiv:2203.08679. It is defined by an image's class: it sees the labelled images alone, and
    /// needs images that are not mixed.
    Dkd,
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
    /// Width between the two layers of `projector = "mlp"`; by default the teacher's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// What the term on the logits measures; by default the KL divergence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_loss: Option<LogitLossKind>,
    /// Weight of the target class's part with `logit_loss = "dkd"`; by default the paper's 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dkd_alpha: Option<f64>,
    /// Weight of the other classes' part; by default the paper's 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dkd_beta: Option<f64>,
    /// In place of `distill.temperature`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// In place of `distill.loss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossKind>,
    /// In place of `distill.map`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    /// In place of `distill.teacher_normalizer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_normalizer: Option<String>,
    /// In place of `distill.student_normalizer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_normalizer: Option<String>,
    /// In place of `distill.covariance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub covariance: Option<CovarianceKind>,
    /// In place of `distill.shrinkage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrinkage: Option<f64>,
    /// In place of `distill.texts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<PathBuf>,
    /// Of generation: weight of the features of generated images; by default that of real ones, `features`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<f64>,
}

impl ArmConfig {
    pub(super) fn check(&self, name: &str, distill: &DistillConfig) -> Result<()> {
        not_negative(&[
            (&format!("arm.{name}.logits"), self.logits),
            (&format!("arm.{name}.features"), self.features),
            (&format!("arm.{name}.dkd_alpha"), self.dkd_alpha.unwrap_or(0.)),
            (&format!("arm.{name}.dkd_beta"), self.dkd_beta.unwrap_or(0.)),
            (&format!("arm.{name}.generated"), self.generated.unwrap_or(0.)),
        ])?;
        share(&format!("arm.{name}.shrinkage"), self.shrinkage)?;
        if let Some(temperature) = self.temperature
            && !(temperature > 0. && temperature.is_finite())
        {
            bail!("arm.{name}.temperature: expected a finite value above 0, got {temperature}")
        }
        let dkd = self.logit_loss == Some(LogitLossKind::Dkd);
        if !dkd && (self.dkd_alpha.is_some() || self.dkd_beta.is_some()) {
            bail!("arm.{name}: expected dkd_alpha and dkd_beta only with logit_loss = \"dkd\"")
        }
        if self.hidden.is_some() && self.projector != ProjectorKind::Mlp {
            bail!("arm.{name}.hidden: expected only with projector = \"mlp\"")
        }
        let loss = self.method(distill).loss;
        // Token matching compares tokens of one width as they are.
        let alone = loss.is_relational() || loss.is_rooted();
        if self.features > 0. && self.projector == ProjectorKind::None && !alone {
            bail!(
                "arm.{name}.projector: expected one, got none with a loss that compares rows of features"
            )
        }
        Ok(())
    }

    /// What an arm of classification can't ask for.
    pub(crate) fn check_labels(&self, name: &str, augment: &AugmentConfig) -> Result<()> {
        let dkd = self.logit_loss == Some(LogitLossKind::Dkd);
        if dkd && augment.mixes() {
            bail!(
                "arm.{name}.logit_loss: expected data.augment without mixup and cutmix for dkd, which needs one class an image"
            )
        }
        if self.labels == LabelBudget::None {
            if !self.uses_teacher() {
                bail!("arm.{name}.labels: expected labels or a teacher's term, got neither")
            }
            if self.logits == 0. {
                bail!(
                    "arm.{name}.logits: expected a weight above 0 with labels = \"none\": nothing else trains the head"
                )
            }
            if dkd {
                bail!("arm.{name}.labels: expected some with logit_loss = \"dkd\", got none")
            }
        }
        Ok(())
    }

    /// The method as this arm has it: `distill` with the arm's own values in place.
    pub fn method(&self, distill: &DistillConfig) -> DistillConfig {
        let or = |own: &Option<String>, shared: &String| own.as_ref().unwrap_or(shared).clone();
        DistillConfig {
            temperature: self.temperature.unwrap_or(distill.temperature),
            loss: self.loss.unwrap_or(distill.loss),
            map: or(&self.map, &distill.map),
            teacher_normalizer: or(&self.teacher_normalizer, &distill.teacher_normalizer),
            student_normalizer: or(&self.student_normalizer, &distill.student_normalizer),
            covariance: self.covariance.unwrap_or(distill.covariance),
            shrinkage: self.shrinkage.or(distill.shrinkage),
            texts: self.texts.as_ref().or(distill.texts.as_ref()).cloned(),
            ..distill.clone()
        }
    }

    /// Alpha and beta of `logit_loss = "dkd"`.
    pub(crate) fn dkd_weights(&self) -> (f64, f64) {
        let paper = DkdConfig::default();
        (self.dkd_alpha.unwrap_or(paper.alpha), self.dkd_beta.unwrap_or(paper.beta))
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
    /// None: only the teacher speaks, and every batch is drawn from all training images.
    None,
}

/// Kind of projector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectorKind {
    /// Orthonormal columns.
    #[default]
    Orthogonal,
    /// Orthonormal columns with a learnt gain and bias for each of the teacher's channels, as in the published detection code.
    OrthogonalAffine,
    /// Unconstrained.
    Linear,
    /// Two unconstrained layers with relu between.
    Mlp,
    /// The published classification code's: PyTorch's orthogonal parametrisation by Householder reflectors with weight decay
    /// on its parameter, which zeroes it after the first step.
    AsPublished,
    /// None, for losses on relations.
    None,
}
