//! COCO data sets: instances JSON beside folders of images.

mod json;

pub(crate) use json::{CocoAnnotation, CocoCategory, CocoFile, CocoImage};

use super::Image;
use super::detection::{Annotation, Counts};
use crate::recipe::{CocoConfig, Outside, ValidationPart};
use candle_core::{Error, Result, bail};
use rand::seq::SliceRandom;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use vkd_nn::stream;
use vkd_tasks::Objects;

/// Pixels that a box may reach beyond its image without a word: files round to two decimals.
const ROUNDING: f64 = 0.02;

/// Names of missing files that a message shows.
const SHOWN: usize = 5;

/// Images of all parts, one part after the other, each in the order of its ids.
pub(crate) struct Coco {
    pub(super) entries: Vec<Entry>,
    /// Training, validation, test.
    pub(super) parts: [Vec<usize>; 3],
    /// The category of each class.
    pub(super) categories: Vec<CocoCategory>,
    pub(super) counts: Counts,
    channels: usize,
}

/// One image as the file describes it.
pub(crate) struct Entry {
    path: PathBuf,
    pub(super) id: u64,
    /// Height and width.
    pub(super) size: [usize; 2],
    /// All, as in the file.
    pub(super) annotations: Vec<Annotation>,
    /// What can be learnt from: no crowds, no boxes without area, all within the image.
    pub(super) objects: Objects,
}

impl Coco {
    /// Reads the parts' files and looks whether their images are there.
    ///
    /// # Errors
    /// A file that is missing or no instances file, by its line and column; an annotation that doesn't fit, by its id; missing
    /// images; parts whose categories differ; a cut larger than the training part.
    pub(crate) fn open(config: &CocoConfig) -> Result<Self> {
        let mut coco = Self {
            entries: Vec::new(),
            parts: Default::default(),
            categories: Vec::new(),
            counts: Counts::default(),
            channels: config.channels,
        };
        coco.parts[0] = coco.add(config, &config.train)?;
        match &config.validation {
            ValidationPart::Part(name) => coco.parts[1] = coco.add(config, name)?,
            ValidationPart::Cut(count) => {
                let mut train = std::mem::take(&mut coco.parts[0]);
                if *count >= train.len() {
                    bail!(
                        "data.source.validation: expected fewer than the {} images of {}, got {count}",
                        train.len(),
                        config.train
                    )
                }
                train.shuffle(&mut stream(super::SPLIT_SEED, "data.split", 0, 0));
                let rest = train.split_off(*count);
                coco.parts = [rest, train, Vec::new()];
            }
        }
        coco.parts[2] = coco.add(config, &config.test)?;
        Ok(coco)
    }

    /// Adds a part, and gives the indices of its images.
    fn add(&mut self, config: &CocoConfig, part: &str) -> Result<Vec<usize>> {
        let path = config.dir.join("annotations").join(format!("instances_{part}.json"));
        let file = CocoFile::read(&path)?;
        let named = |e: Error| Error::Msg(format!("{}: {}", path.display(), crate::plain(&e)));
        let categories = categories(&file.categories, config.ids_as_classes).map_err(named)?;
        if self.categories.is_empty() {
            self.categories = categories;
        } else if let Some((want, got)) = different(&self.categories, &categories) {
            bail!(
                "{}: expected the categories of {}, {want}, got {got}",
                path.display(),
                config.train
            )
        }
        let entries = self.entries(file, &config.dir.join(part), config.outside).map_err(named)?;
        if entries.is_empty() {
            bail!("{}: expected images, got none", path.display())
        }
        present(&entries, &path)?;
        let first = self.entries.len();
        self.entries.extend(entries);
        Ok((first..self.entries.len()).collect())
    }

    fn entries(&mut self, file: CocoFile, folder: &Path, outside: Outside) -> Result<Vec<Entry>> {
        let mut images = file.images;
        images.sort_unstable_by_key(|image| image.id);
        if let Some(two) = images.windows(2).find(|two| two[0].id == two[1].id) {
            bail!("expected each image id once, got {} twice", two[0].id)
        }
        let mut entries = Vec::with_capacity(images.len());
        for image in images {
            if image.width == 0 || image.height == 0 {
                bail!(
                    "image {} ({}): expected a size above 0, got {}x{}",
                    image.id,
                    image.file_name,
                    image.width,
                    image.height
                )
            }
            entries.push(Entry {
                path: folder.join(&image.file_name),
                id: image.id,
                size: [image.height as usize, image.width as usize],
                annotations: Vec::new(),
                objects: Objects::default(),
            });
        }
        let place: HashMap<u64, usize> = entries.iter().map(|e| e.id).zip(0..).collect();
        let known = self.categories.iter().map(|c| c.id).zip(0u32..);
        let known: HashMap<u64, u32> = known.collect();
        let mut seen = HashSet::new();
        for annotation in file.annotations {
            let CocoAnnotation { id, image_id, category_id, .. } = annotation;
            if !seen.insert(id) {
                bail!("expected each annotation id once, got {id} twice")
            }
            let Some(entry) = place.get(&image_id).and_then(|at| entries.get_mut(*at)) else {
                bail!("annotation {id}: expected an image of the file, got image_id {image_id}")
            };
            let Some(class) = known.get(&category_id) else {
                bail!(
                    "annotation {id}: expected a category of the file, got category_id {category_id}"
                )
            };
            let named = |e: Error| Error::Msg(format!("annotation {id}: {}", crate::plain(&e)));
            let annotation = checked(&annotation, *class).map_err(named)?;
            if let Some(corners) = self.learnt(&annotation, entry.size, outside).map_err(named)? {
                entry.objects.boxes.push(corners);
                entry.objects.classes.push(*class);
            }
            entry.annotations.push(annotation);
        }
        Ok(entries)
    }

    /// Corners within the image, where there is something to learn; what isn't is counted.
    fn learnt(
        &mut self,
        annotation: &Annotation,
        [height, width]: [usize; 2],
        outside: Outside,
    ) -> Result<Option<[f32; 4]>> {
        let [x, y, w, h] = annotation.bbox;
        if annotation.crowd {
            self.counts.crowds += 1;
            return Ok(None);
        }
        let (right, bottom) = (width as f64, height as f64);
        let beyond = (-x).max(-y).max(x + w - right).max(y + h - bottom);
        if beyond > ROUNDING {
            if outside == Outside::Refuse {
                bail!("expected a box within {width}x{height}, got [{x}, {y}, {w}, {h}]")
            }
            self.counts.clipped += 1;
        }
        let corners = [
            x.clamp(0., right),
            y.clamp(0., bottom),
            (x + w).clamp(0., right),
            (y + h).clamp(0., bottom),
        ];
        let [x0, y0, x1, y1] = corners.map(|v| v as f32);
        if x1 > x0 && y1 > y0 {
            return Ok(Some([x0, y0, x1, y1]));
        }
        self.counts.empty += 1;
        Ok(None)
    }

    /// Decodes image `index`.
    ///
    /// # Errors
    /// A file that can't be read, is no image or of another size than its description, by its name.
    pub(crate) fn image(&self, index: usize) -> Result<Image> {
        let entry = self.entry(index)?;
        let decode = || {
            let image = Image::decode(&std::fs::read(&entry.path)?, self.channels)?;
            let got = super::detection::size(&image);
            if got != entry.size {
                bail!(
                    "expected {}x{} pixels as its description says, got {}x{}",
                    entry.size[1],
                    entry.size[0],
                    got[1],
                    got[0]
                )
            }
            Ok(image)
        };
        decode().map_err(|e: Error| {
            Error::Msg(format!("{}: {}", entry.path.display(), crate::plain(&e)))
        })
    }

    /// How messages call image `index`.
    pub(crate) fn name(&self, index: usize) -> String {
        self.entry(index).map_or_else(|e| crate::plain(&e), |e| e.path.display().to_string())
    }

    pub(crate) fn entry(&self, index: usize) -> Result<&Entry> {
        match self.entries.get(index) {
            Some(entry) => Ok(entry),
            None => bail!("coco: expected an image below {}, got {index}", self.entries.len()),
        }
    }
}

/// The category of each class.
fn categories(of_file: &[CocoCategory], ids_as_classes: bool) -> Result<Vec<CocoCategory>> {
    let mut sorted = of_file.to_vec();
    sorted.sort_unstable_by_key(|category| category.id);
    if let Some(two) = sorted.windows(2).find(|two| two[0].id == two[1].id) {
        bail!("expected each category id once, got {} twice", two[0].id)
    }
    let Some(last) = sorted.last() else { bail!("expected categories, got none") };
    if !ids_as_classes {
        return Ok(sorted);
    }
    // A wild id must not make as many names.
    if last.id > 9999 {
        bail!("expected category ids of at most 9999 as classes, got {}", last.id)
    }
    let mut all: Vec<_> =
        (0..=last.id).map(|id| CocoCategory { id, name: format!("unused {id}") }).collect();
    for category in sorted {
        let at = category.id as usize;
        all[at] = category;
    }
    Ok(all)
}

/// The first categories that differ, for messages.
fn different(want: &[CocoCategory], got: &[CocoCategory]) -> Option<(String, String)> {
    let show = |category: Option<&CocoCategory>| match category {
        Some(category) => format!("{} ({})", category.id, category.name),
        None => "no more".to_owned(),
    };
    let places = 0..want.len().max(got.len());
    let mut pairs = places.map(|i| (want.get(i), got.get(i)));
    pairs.find(|(want, got)| want != got).map(|(want, got)| (show(want), show(got)))
}

/// An annotation whose numbers are numbers.
fn checked(annotation: &CocoAnnotation, class: u32) -> Result<Annotation> {
    let CocoAnnotation { id, bbox, area, iscrowd, .. } = annotation;
    let [_, _, width, height] = bbox;
    if !(bbox.iter().all(|v| v.is_finite()) && *width >= 0. && *height >= 0.) {
        bail!("expected a finite bbox [x, y, width, height] with sizes of at least 0, got {bbox:?}")
    }
    let area = area.unwrap_or(width * height);
    if !(area >= 0. && area.is_finite()) {
        bail!("expected an area of at least 0, got {area}")
    }
    if *iscrowd > 1 {
        bail!("expected iscrowd of 0 or 1, got {iscrowd}")
    }
    Ok(Annotation { id: *id, class, bbox: *bbox, area, crowd: *iscrowd == 1 })
}

/// Looks for the files of a part.
fn present(entries: &[Entry], path: &Path) -> Result<()> {
    let missing: Vec<String> = entries
        .par_iter()
        .filter(|entry| !entry.path.is_file())
        .map(|entry| entry.path.display().to_string())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let more = if missing.len() > SHOWN { ", .." } else { "" };
    bail!(
        "{}: expected the files of its {} images, got none for {}: {}{more}",
        path.display(),
        entries.len(),
        missing.len(),
        missing[..missing.len().min(SHOWN)].join(", ")
    )
}

#[cfg(test)]
mod tests;
