//! Data sets: raw images in memory, their fixed split, and where they come from.

mod digits;
mod idx;

use crate::recipe::{DataConfig, DataKind};
use candle_core::{Result, bail};
use rand::seq::SliceRandom;
use vkd_models::Preprocessing;
use vkd_nn::stream;

/// Seed of the split. Fixed, so that every run seed sees the same training, validation and test images.
const SPLIT_SEED: u64 = 0;

/// Square one-byte images with labels, and which of them are for training, validation and test.
pub struct Dataset {
    /// Name for reports.
    pub name: String,
    /// Height and width in pixels.
    pub size: usize,
    /// Name of each class.
    pub class_names: Vec<String>,
    /// Largest possible pixel value.
    pub divisor: f64,
    /// Indices of the training images.
    pub train: Vec<usize>,
    /// Indices of the validation images.
    pub validation: Vec<usize>,
    /// Indices of the test images.
    pub test: Vec<usize>,
    images: Vec<u8>,
    labels: Vec<u8>,
}

impl Dataset {
    /// Reads the data set that a recipe names.
    ///
    /// # Errors
    /// A missing, truncated, oversized or mislabelled file (file, offset, expected and got), or a split larger than the
    /// data.
    pub fn open(config: &DataConfig) -> Result<Self> {
        match (config.kind, &config.dir) {
            (DataKind::Digits, None) => digits::read(config),
            (DataKind::Digits, Some(dir)) => {
                bail!(
                    "data.dir: expected none with data.kind = \"digits\", which is embedded, got {}",
                    dir.display()
                )
            }
            (DataKind::Idx, Some(dir)) => idx::read(config, dir),
            (DataKind::Idx, None) => {
                bail!("data.dir: expected the folder of the IDX files with data.kind = \"idx\"")
            }
        }
    }

    /// Pixels of image `index`, row by row.
    pub fn image(&self, index: usize) -> &[u8] {
        let pixels = self.size * self.size;
        &self.images[index * pixels..][..pixels]
    }

    /// Class of image `index`.
    pub fn label(&self, index: usize) -> u8 {
        self.labels[index]
    }

    /// Number of images, all parts together.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images; never true of an opened data set.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Mean and standard deviation of the training images' pixels, after division.
    pub fn preprocessing(&self) -> Preprocessing {
        let (mut sum, mut squares, mut count) = (0f64, 0f64, 0f64);
        for &i in &self.train {
            for &p in self.image(i) {
                // Whole numbers below 2^53: the sums are exact, so their difference doesn't cancel.
                sum += f64::from(p);
                squares += f64::from(p) * f64::from(p);
                count += 1.;
            }
        }
        let mean = sum / count;
        let variance = (squares / count - mean * mean).max(0.);
        let std = variance.sqrt() / self.divisor;
        // Images that are all of one grey have no scale to divide by.
        Preprocessing {
            divisor: self.divisor,
            mean: mean / self.divisor,
            std: if std > 0. { std } else { 1. },
        }
    }

    /// `count` training images of known label, as even over the classes as possible, drawn from `seed`; sorted.
    ///
    /// # Errors
    /// More labels than training images.
    pub fn labelled(&self, count: usize, seed: u64) -> Result<Vec<usize>> {
        if count > self.train.len() {
            bail!(
                "data.labels: expected at most the {} training images, got {count}",
                self.train.len()
            )
        }
        let mut by_class: Vec<Vec<usize>> = vec![Vec::new(); self.class_names.len()];
        for &i in &self.train {
            by_class[usize::from(self.label(i))].push(i);
        }
        for (class, indices) in by_class.iter_mut().enumerate() {
            indices.shuffle(&mut stream(seed, "data.labels", class as u64, 0));
        }
        // Round by round over the classes: the counts differ by one at most while every class has images left.
        let mut chosen = Vec::with_capacity(count);
        for round in 0.. {
            for indices in &by_class {
                if chosen.len() == count {
                    chosen.sort_unstable();
                    return Ok(chosen);
                }
                chosen.extend(indices.get(round));
            }
        }
        Ok(chosen)
    }

    /// Cuts shuffled `indices` into training and validation.
    fn cut(
        config: &DataConfig,
        mut indices: Vec<usize>,
        what: &str,
    ) -> Result<(Vec<usize>, Vec<usize>, Vec<usize>)> {
        let (train, validation) = (config.train, config.validation);
        if train + validation > indices.len() {
            bail!(
                "data: expected train + validation of at most {} {what}, got {train} + {validation}",
                indices.len()
            )
        }
        indices.shuffle(&mut stream(SPLIT_SEED, "data.split", 0, 0));
        let rest = indices.split_off(train + validation);
        let validation = indices.split_off(train);
        Ok((indices, validation, rest))
    }
}
