//! Where the images come from.

use super::at_least_one;
use candle_core::Result;
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
}

/// Data settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Source.
    pub kind: DataKind,
    /// Folder of the files, for `idx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Number of training images.
    pub train: usize,
    /// Number of validation images.
    pub validation: usize,
    /// Number of training images whose label an arm with `labels = "few"` knows.
    pub labels: usize,
    /// Largest random shift of a training image, in pixels, per axis.
    pub shift: usize,
}

impl DataConfig {
    pub(super) fn check(&self) -> Result<()> {
        at_least_one(&[
            ("data.train", self.train as u64),
            ("data.validation", self.validation as u64),
            ("data.labels", self.labels as u64),
        ])
    }
}
