//! Where the images come from.

use super::{AugmentConfig, at_least_one};
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Source of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// The embedded UCI handwritten digits.
    Digits,
    /// MNIST's files in `dir`.
    Idx,
    /// CIFAR-10's binary files in `dir`.
    Cifar10,
    /// CIFAR-100's binary files in `dir`, with the fine classes.
    Cifar100,
    /// JPEG, PNG and WebP files `dir/train/CLASS/FILE` and `dir/val/CLASS/FILE`; what is in `val` is the test.
    Folder,
    /// Tar files `dir/train/*.tar` and `dir/val/*.tar` with `KEY.jpg` beside `KEY.cls`; what is in `val` is the test.
    Shards,
}

impl DataKind {
    /// The name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::Idx => "idx",
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::Folder => "folder",
            Self::Shards => "shards",
        }
    }
}

/// What to do with an image that can't be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCorrupt {
    /// End the run with the file's name.
    #[default]
    Stop,
    /// Train on another image in its place, leave it out of scores, and count it.
    Skip,
}

/// Data settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Source.
    pub kind: DataKind,
    /// Folder of the files, for every kind but `digits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Number of training images; without it all that validation leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<usize>,
    /// Number of validation images, cut from the training files.
    pub validation: usize,
    /// Number of training images whose label an arm with `labels = "few"` knows.
    pub labels: usize,
    /// Height and width that the networks see; needed where images come in any size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// 1 for grey or 3 for colour; 3 where image files leave the choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Number of classes in IDX files, whose labels say only those that occur: 10 without it, 47 for EMNIST's balanced set, 27 for
    /// its letters, which count from 1. Other kinds know theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// The share of an image's shorter side that the centre crop of evaluation keeps.
    #[serde(default = "keep")]
    pub keep: f64,
    /// Mean of each channel over the largest value; measured, or ImageNet's for image files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f64>>,
    /// Standard deviation of each channel, as the mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f64>>,
    /// What to do with an image that can't be read.
    #[serde(default)]
    pub on_corrupt: OnCorrupt,
    /// Threads that make batches ahead of the step; 0 makes them within it. Without a number: 0 where the images lie
    /// decoded in memory, else one a processor. The batches are the same for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// Largest random shift of a training image, in pixels, per axis.
    #[serde(default)]
    pub shift: usize,
    /// What else is done to training images at random.
    #[serde(default)]
    pub augment: AugmentConfig,
}

/// 224 of 256 pixels.
fn keep() -> f64 {
    0.875
}

impl DataConfig {
    /// The embedded digits with all labels and nothing random.
    pub(crate) fn digits(train: usize, validation: usize) -> Self {
        Self {
            kind: DataKind::Digits,
            dir: None,
            train: Some(train),
            validation,
            labels: train,
            size: None,
            channels: None,
            classes: None,
            keep: keep(),
            mean: None,
            std: None,
            on_corrupt: OnCorrupt::default(),
            workers: None,
            shift: 0,
            augment: AugmentConfig::default(),
        }
    }

    /// A random change of single images, if there is one.
    pub(crate) fn drawn(&self) -> Option<String> {
        let random = self.augment.draws().map(|name| format!("data.augment.{name}"));
        random.or((self.shift > 0).then(|| "data.shift".to_owned()))
    }

    /// In how many ways each training image is seen, mixing apart.
    ///
    /// # Errors
    /// The random change that is drawn anew whenever the image comes.
    pub(crate) fn looks(&self) -> std::result::Result<u64, String> {
        match (self.drawn(), self.augment.views) {
            (None, _) => Ok(1),
            (Some(_), Some(views)) => Ok(views as u64),
            (Some(name), None) => Err(name),
        }
    }

    /// The size that images of any size are brought to.
    ///
    /// # Errors
    /// None given.
    pub(crate) fn encoded_size(&self) -> Result<usize> {
        match self.size {
            Some(size) => Ok(size),
            None => bail!(
                "data.size: expected the pixels that the networks see with data.kind = \"{}\", got none",
                self.kind.name()
            ),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        at_least_one(&[
            ("data.train", self.train.unwrap_or(1) as u64),
            ("data.validation", self.validation as u64),
            ("data.labels", self.labels as u64),
            ("data.size", self.size.unwrap_or(1) as u64),
            ("data.classes", self.classes.unwrap_or(1) as u64),
        ])?;
        if !matches!(self.channels, None | Some(1 | 3)) {
            bail!("data.channels: expected 1 or 3, got {}", self.channels.unwrap_or(0))
        }
        if !(self.keep > 0. && self.keep <= 1.) {
            bail!("data.keep: expected a share in (0, 1], got {}", self.keep)
        }
        self.augment.check()
    }
}
