//! What only recipes of generation have: the GAN's own loss, and a teacher that is no classifier.

use super::training::is_default;
use super::{at_least_one, not_negative, shares};
use candle_core::{Error, Result};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::path::PathBuf;
use vkd_models::{Architecture, ClipInput, ClipVisionConfig, InceptionConfig, InceptionVariant};
use vkd_tasks::{DiffAugment, LecamConfig};

/// The table `[teacher.model]`: a classifier, or CLIP's image encoder with `kind = "clip"`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum GanTeacherModel {
    /// CLIP's encoder, of `teacher.checkpoint`.
    Clip(ClipTeacherConfig),
    /// A classifier, trained first or of `teacher.checkpoint`.
    Classifier(Architecture),
}

/// `kind = "clip"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipKind {
    /// CLIP.
    Clip,
}

/// CLIP's image encoder as a teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipTeacherConfig {
    /// `clip`.
    pub kind: ClipKind,
    /// From the GAN's images to CLIP's.
    pub input: ClipInput,
    /// Sizes.
    pub sizes: ClipVisionConfig,
}

impl<'de> Deserialize<'de> for GanTeacherModel {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        let table = toml::Table::deserialize(input)?;
        let clip = table.get("kind").and_then(toml::Value::as_str) == Some("clip");
        let found = match clip {
            true => table.try_into().map(Self::Clip),
            false => table.try_into().map(Self::Classifier),
        };
        found.map_err(|e: toml::de::Error| D::Error::custom(e.message()))
    }
}

/// Settings of a GAN's losses and scores: `[criterion]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GanCriterionConfig {
    /// Updates of the discriminator for each of the generator; default 2, 4 in the published CIFAR runs.
    pub discriminator_steps: u64,
    /// Augmentation of all images that the discriminator sees; by default none.
    #[serde(skip_serializing_if = "is_default")]
    pub diff_augment: DiffAugmentConfig,
    /// LeCam's regulariser; by default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lecam: Option<LecamTableConfig>,
    /// The classifier whose features scores are of; needed beside CLIP, else by default an architecture like the teacher's. It is trained
    /// on all training images as the teacher is, with a seed of its own that no run's seed changes, and the GAN never sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<Architecture>,
    /// Inception-v3, whose features scores are of in place of the judge's; by default none. The judge still says which samples are of the
    /// class that they were made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inception: Option<InceptionTableConfig>,
    /// Generated images that a score is of, and real ones at most whose neighbourhoods are looked at; default 1000.
    pub samples: usize,
    /// Neighbours of precision, recall, density and coverage; default 5.
    pub neighbours: usize,
}

impl Default for GanCriterionConfig {
    fn default() -> Self {
        Self {
            discriminator_steps: 2,
            diff_augment: DiffAugmentConfig::default(),
            lecam: None,
            judge: None,
            inception: None,
            samples: 1000,
            neighbours: 5,
        }
    }
}

/// Weights of Inception-v3 and how it is used: `[criterion.inception]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InceptionTableConfig {
    /// A `.pth` or `.safetensors` file with torchvision's names, or one of the hub as `teacher.checkpoint` names it.
    pub weights: PathBuf,
    /// `torchvision`, or `fid` for the network that FIDs are published of.
    pub variant: InceptionVariant,
    /// Height and width that images are brought to; default 299.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Channels of the first convolution; default 32, the original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
}

impl InceptionTableConfig {
    /// The network's settings.
    pub fn network(&self) -> InceptionConfig {
        let original = InceptionConfig::new(self.variant);
        InceptionConfig {
            image_size: self.image_size.unwrap_or(original.image_size),
            width: self.width.unwrap_or(original.width),
            ..original
        }
    }
}

/// DiffAugment's parts (arXiv:2006.10738).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffAugmentConfig {
    /// Brightness, saturation and contrast.
    pub color: bool,
    /// Largest shift as a share of the size; published 0.125.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translation: Option<f64>,
    /// Side of the box that is cut out as a share of the size; published 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cutout: Option<f64>,
}

/// LeCam's regulariser (arXiv:2104.03310).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LecamTableConfig {
    /// Factor in the discriminator's loss; 0.3 in the published CIFAR runs.
    pub weight: f64,
    /// Share of the averages that a batch leaves.
    pub decay: f64,
    /// Updates of the discriminator before the term counts; default 0, 1000 in the published runs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub start: u64,
}

impl GanCriterionConfig {
    pub(crate) fn check(&self) -> Result<()> {
        at_least_one(&[
            ("criterion.discriminator_steps", self.discriminator_steps),
            ("criterion.samples", self.samples as u64),
            ("criterion.neighbours", self.neighbours as u64),
        ])?;
        if self.samples <= self.neighbours {
            candle_core::bail!(
                "criterion.samples: expected more than the {} neighbours, got {}",
                self.neighbours,
                self.samples
            )
        }
        if let Some(lecam) = &self.lecam {
            not_negative(&[("criterion.lecam.weight", lecam.weight)])?;
            shares(&[("criterion.lecam.decay", lecam.decay)])?;
        }
        if let Some(inception) = &self.inception {
            let named = |e| Error::Msg(format!("criterion.{}", crate::plain(&e)));
            inception.network().check().map_err(named)?;
        }
        self.augment().check()
    }

    /// As the task takes it.
    pub(crate) fn augment(&self) -> DiffAugment {
        let DiffAugmentConfig { color, translation, cutout } = self.diff_augment;
        DiffAugment { color, translation, cutout }
    }

    /// As the task takes it.
    pub(crate) fn lecam(&self) -> Option<LecamConfig> {
        let config =
            |l: &LecamTableConfig| LecamConfig { weight: l.weight, decay: l.decay, start: l.start };
        self.lecam.as_ref().map(config)
    }
}
