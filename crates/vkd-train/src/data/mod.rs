//! Data sets: where images come from, their fixed split, and how they are read.

mod cifar;
mod coco;
pub(crate) mod detection;
mod digits;
mod generated;
mod idx;
mod image;
mod image_folder;
pub(crate) mod normalization;
mod scenes;
mod shards;
mod source;
mod views;

pub use detection::{Annotation, Counts, DetectionDataset};
pub use generated::write_image_folder;
pub use image::Image;
pub(crate) use image::luma;
pub use scenes::write_scenes;
pub(crate) use source::Source;

use crate::augment::center_crop;
use crate::loader::guarded;
use crate::recipe::{DataConfig, DataKind, OnCorrupt};
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::seq::SliceRandom;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use views::Views;
use vkd_models::Preprocessing;
use vkd_nn::stream;

/// Seed of the split. Fixed, so that every run seed sees the same training, validation and test images.
const SPLIT_SEED: u64 = 0;

/// Images with labels, and which of them are for training, validation and test. A clone shares the images.
#[derive(Clone)]
pub struct Dataset {
    /// Name for reports.
    pub name: String,
    /// Height and width in pixels of what the networks see; the images themselves may be of any size.
    pub size: usize,
    /// Channels: 1 or 3.
    pub channels: usize,
    /// Name of each class.
    pub class_names: Vec<String>,
    /// Indices of the training images.
    pub train: Vec<usize>,
    /// Indices of the validation images.
    pub validation: Vec<usize>,
    /// Indices of the test images.
    pub test: Vec<usize>,
    preprocessing: Preprocessing,
    keep: f64,
    on_corrupt: OnCorrupt,
    labels: Arc<[u32]>,
    source: Arc<Source>,
    views: Arc<Views>,
    /// Images that were passed over; shared by all clones.
    skipped: Arc<Mutex<BTreeSet<usize>>>,
}

/// What a reader found.
struct Content {
    name: String,
    size: usize,
    channels: usize,
    class_names: Vec<String>,
    divisor: f64,
    source: Source,
    labels: Vec<u32>,
    /// Training, validation, test.
    parts: (Vec<usize>, Vec<usize>, Vec<usize>),
}

impl Dataset {
    /// Reads the data set that a recipe names. Image files are only listed; they are decoded when they are needed.
    ///
    /// # Errors
    /// A missing, truncated, oversized or mislabelled file (file, offset, expected and got), an empty class folder, classes
    /// that differ between training and test, or a split larger than the data.
    pub fn open(config: &DataConfig) -> Result<Self> {
        let dir = match (config.kind, &config.dir) {
            (DataKind::Digits, None) => return digits::read(config),
            (DataKind::Digits, Some(dir)) => bail!(
                "data.dir: expected none with data.kind = \"digits\", which is embedded, got {}",
                dir.display()
            ),
            (_, Some(dir)) => dir,
            (kind, None) => bail!(
                "data.dir: expected the folder of the files with data.kind = \"{}\"",
                kind.name()
            ),
        };
        match config.kind {
            DataKind::Cifar10 => cifar::read(config, dir, &cifar::CIFAR10),
            DataKind::Cifar100 => cifar::read(config, dir, &cifar::CIFAR100),
            DataKind::Folder => image_folder::read(config, dir),
            DataKind::Shards => shards::read(config, dir),
            DataKind::Idx | DataKind::Digits => idx::read(config, dir),
        }
    }

    fn assemble(config: &DataConfig, content: Content) -> Result<Self> {
        let Content { name, size, channels, class_names, divisor, source, labels, parts } = content;
        let (train, validation, test) = parts;
        let own = |name: &str, wanted: Option<usize>, got: usize| match wanted {
            Some(wanted) if wanted != got => bail!(
                "data.{name}: expected {got}, which data.kind = \"{}\" has, got {wanted}",
                config.kind.name()
            ),
            _ => Ok(()),
        };
        own("size", config.size, size)?;
        own("channels", config.channels, channels)?;
        own("classes", config.classes, class_names.len())?;
        if train.is_empty() {
            bail!("data.train: expected training images, got none of {name}")
        }
        // What lies decoded in memory needs no second copy.
        let kept: &[usize] = if source.encoded() { &validation } else { &[] };
        let views = Views::new(kept, size * size * channels);
        let measured = if source.encoded() {
            // Decoding everything to measure it would take an epoch, so ImageNet's numbers stand in.
            let (mean, std) = match channels {
                1 => (vec![0.449], vec![0.226]),
                _ => (vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]),
            };
            Preprocessing { divisor, mean, std }
        } else {
            normalization::measure(train.iter().filter_map(|&i| source.raw(i)), channels, divisor)
        };
        let preprocessing = Preprocessing {
            divisor,
            mean: config.mean.clone().unwrap_or(measured.mean),
            std: config.std.clone().unwrap_or(measured.std),
        };
        preprocessing
            .check(channels)
            .map_err(|e| candle_core::Error::Msg(format!("data: {}", crate::plain(&e))))?;
        Ok(Self {
            name,
            size,
            channels,
            class_names,
            train,
            validation,
            test,
            preprocessing,
            keep: config.keep,
            on_corrupt: config.on_corrupt,
            labels: labels.into(),
            source: Arc::new(source),
            views: Arc::new(views),
            skipped: Arc::default(),
        })
    }

    /// Image `index` as it is stored, decoded if need be.
    ///
    /// # Errors
    /// A file that can't be read or is no image, by its name.
    pub fn image(&self, index: usize) -> Result<Image> {
        self.source.load(index)
    }

    /// Image `index` as evaluation sees it: the centre crop, `size` by `size`. Those for validation are decoded once and kept, up
    /// to 512 MiB.
    ///
    /// # Errors
    /// As [`image`](Self::image).
    pub(crate) fn view(&self, index: usize) -> Result<Image> {
        self.views.get(index, || Ok(center_crop(self.image(index)?, self.size, self.keep)))
    }

    /// What messages call image `index`: its file, where it has one.
    pub fn image_name(&self, index: usize) -> String {
        self.source.name(index)
    }

    /// Whether images are decoded when they are needed.
    pub(crate) fn encoded(&self) -> bool {
        self.source.encoded()
    }

    /// The share of an image's shorter side that the centre crop of evaluation keeps.
    pub(crate) fn keep(&self) -> f64 {
        self.keep
    }

    /// Class of image `index`.
    pub fn label(&self, index: usize) -> u32 {
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

    /// From bytes to what networks see: the recipe's numbers, else those of the training images where they lie in memory, else
    /// ImageNet's.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// An image of zeros, `(1, C, H, W)`: what checks of shapes need.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn blank(&self) -> Result<Tensor> {
        Tensor::zeros((1, self.channels, self.size, self.size), DType::F32, &Device::Cpu)
    }

    /// `value`, or nothing where it failed and the recipe says to pass over unreadable images: then it is counted.
    ///
    /// # Errors
    /// The failure, where the recipe says to stop.
    pub(crate) fn or_skip<T>(&self, index: usize, value: Result<T>) -> Result<Option<T>> {
        match (value, self.on_corrupt) {
            (Ok(value), _) => Ok(Some(value)),
            (Err(e), OnCorrupt::Stop) => Err(e),
            (Err(_), OnCorrupt::Skip) => {
                self.skipped.lock().unwrap_or_else(PoisonError::into_inner).insert(index);
                Ok(None)
            }
        }
    }

    /// The names of the images that were passed over so far because they could not be read.
    pub fn skipped(&self) -> Vec<String> {
        let skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.iter().map(|&i| self.source.name(i)).collect()
    }

    /// Reads and decodes every image once, on all processors, and says which can't be read: each with its name and what is
    /// wrong. `seen` is called after each.
    pub fn unreadable(&self, seen: impl Fn() + Sync) -> Vec<String> {
        let fault = |index| {
            let read = guarded(&self.image_name(index), || self.image(index));
            seen();
            read.err().map(|e| crate::plain(&e))
        };
        (0..self.len()).into_par_iter().filter_map(fault).collect()
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
            by_class[self.label(i) as usize].push(i);
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
}

/// The last part of a path, for names.
fn last_part(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Cuts shuffled `indices` into training, validation and the rest; without a number all that validation leaves are for
/// training.
fn cut(
    config: &DataConfig,
    mut indices: Vec<usize>,
    what: &str,
) -> Result<(Vec<usize>, Vec<usize>, Vec<usize>)> {
    let validation = config.validation;
    let train = config.train.unwrap_or(indices.len().saturating_sub(validation));
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
