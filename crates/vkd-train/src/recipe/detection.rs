//! Where the images and boxes of detection come from, and what is done to them.

use super::{at_least_one, not_negative};
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use vkd_models::Resize;

/// Most images of a part of scenes: an index of each is held.
const MOST_IMAGES: u64 = 10_000_000;

/// Most digits and most pieces in a scene.
const MOST_PIECES: u64 = 10_000;

/// Longest side in pixels; a square of it has 2²⁸, a resize's most.
const MOST_SIDE: u64 = 16_384;

/// Refuses values above `most`, which would take all memory before anything else shows.
fn at_most(most: u64, values: &[(&str, u64)]) -> Result<()> {
    match values.iter().find(|(_, value)| *value > most) {
        Some((key, value)) => bail!("{key}: expected at most {most}, got {value}"),
        None => Ok(()),
    }
}

/// Source of images with boxes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DetectionSource {
    /// Scenes of the embedded handwritten digits.
    Scenes(ScenesConfig),
    /// COCO's instances files with their images.
    Coco(CocoConfig),
}

/// Scenes of the embedded digits; the default is small enough to train on a CPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScenesConfig {
    /// Scenes for training.
    pub train: usize,
    /// Scenes for validation.
    pub validation: usize,
    /// Scenes for the test.
    pub test: usize,
    /// Height and width of a scene in pixels.
    pub size: usize,
    /// 1 for grey or 3 for colour.
    pub channels: usize,
    /// Fewest and most digits in a scene. A digit for which no room is found is left out.
    pub objects: [usize; 2],
    /// Least and largest height of a digit in pixels, its 8×8 square and not the ink alone; uniform in its logarithm.
    pub scales: [f64; 2],
    /// Largest share of the smaller of two boxes that the other may cover.
    pub overlap: f64,
    /// Most pieces of digits that lie about and are not to be found.
    pub clutter: usize,
    /// Standard deviation of the noise on each value, as a share of the whole range.
    pub noise: f64,
    /// Seed of the scenes. It is not the run's: every run sees the same scenes.
    pub seed: u64,
}

impl Default for ScenesConfig {
    fn default() -> Self {
        Self {
            train: 2000,
            validation: 200,
            test: 500,
            size: 64,
            channels: 1,
            objects: [1, 5],
            scales: [12., 40.],
            overlap: 0.2,
            clutter: 4,
            noise: 0.05,
            seed: 0,
        }
    }
}

impl ScenesConfig {
    /// Refuses what can't be drawn.
    ///
    /// # Errors
    /// The key with what was expected and what came.
    pub fn check(&self) -> Result<()> {
        at_least_one(&[
            ("scenes.train", self.train as u64),
            ("scenes.test", self.test as u64),
            ("scenes.objects[1]", self.objects[1] as u64),
        ])?;
        at_most(
            MOST_IMAGES,
            &[
                ("scenes.train", self.train as u64),
                ("scenes.validation", self.validation as u64),
                ("scenes.test", self.test as u64),
            ],
        )?;
        at_most(
            MOST_PIECES,
            &[
                ("scenes.objects[1]", self.objects[1] as u64),
                ("scenes.clutter", self.clutter as u64),
            ],
        )?;
        not_negative(&[("scenes.noise", self.noise)])?;
        if !matches!(self.channels, 1 | 3) {
            bail!("scenes.channels: expected 1 or 3, got {}", self.channels)
        }
        let ([fewest, most], [least, largest]) = (self.objects, self.scales);
        if fewest > most {
            bail!("scenes.objects: expected counts in order, got {:?}", self.objects)
        }
        // Under eight pixels a digit would be smaller than it was drawn.
        if !(8. ..=1e4).contains(&least) || !(least..=1e4).contains(&largest) {
            bail!("scenes.scales: expected pixels from 8 on, in order, got {:?}", self.scales)
        }
        if !(self.size as f64 >= largest && self.size <= 10_000) {
            bail!(
                "scenes.size: expected pixels from scales[1] = {largest} to 10000, got {}",
                self.size
            )
        }
        if !(0. ..=1.).contains(&self.overlap) {
            bail!("scenes.overlap: expected a share in [0, 1], got {}", self.overlap)
        }
        Ok(())
    }
}

/// A COCO data set: `DIR/annotations/instances_PART.json` with the images of `DIR/PART`, for each part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CocoConfig {
    /// The data set's folder.
    pub dir: PathBuf,
    /// Name of the part for training, `train2017` of COCO.
    #[serde(default = "train")]
    pub train: String,
    /// What validation looks at. It may be the test's part, as usual on COCO, whose `val2017` is both; the test is then of a
    /// network that was chosen by it.
    pub validation: ValidationPart,
    /// Name of the part for the test, `val2017` of COCO: the labels of its own test are not public.
    #[serde(default = "test")]
    pub test: String,
    /// 1 for grey or 3 for colour.
    #[serde(default = "colour")]
    pub channels: usize,
    /// What happens to a box that reaches beyond its image.
    #[serde(default, skip_serializing_if = "is_default")]
    pub outside: Outside,
    /// Whether a class is its category's id, as DETR and ViDT count: COCO's 80 categories become 91 classes, eleven of which
    /// never occur. Else the categories are counted through in the order of their ids.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ids_as_classes: bool,
}

impl CocoConfig {
    /// Refuses parts that are learnt from and looked at alike.
    ///
    /// # Errors
    /// The key with what was expected and what came.
    pub fn check(&self) -> Result<()> {
        if !matches!(self.channels, 1 | 3) {
            bail!("data.source.channels: expected 1 or 3, got {}", self.channels)
        }
        let validation = match &self.validation {
            ValidationPart::Part(name) => Some(name),
            ValidationPart::Cut(_) => None,
        };
        for (key, name) in [("test", Some(&self.test)), ("validation", validation)] {
            if name == Some(&self.train) {
                bail!(
                    "data.source.{key}: expected another part than data.source.train, got {}",
                    self.train
                )
            }
        }
        Ok(())
    }
}

fn train() -> String {
    "train2017".to_owned()
}

fn test() -> String {
    "val2017".to_owned()
}

fn colour() -> usize {
    3
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What validation looks at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ValidationPart {
    /// So many images cut from the training part.
    Cut(usize),
    /// A part of its own, by name.
    Part(String),
}

/// What happens to a box that reaches beyond its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outside {
    /// It is cut at the border and counted.
    #[default]
    Clip,
    /// It ends the run with the annotation's id.
    Refuse,
}

/// Settings of detection's data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectionDataConfig {
    /// Source.
    pub source: DetectionSource,
    /// Shorter sides in pixels, one of which is drawn for each training image: scale jitter. Empty keeps each image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sides: Vec<usize>,
    /// Shorter side in evaluation; without it each image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_side: Option<usize>,
    /// Longest side of a resized image: the shorter is made less where it would be exceeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest: Option<usize>,
    /// Both sides of a resized image are rounded down to multiples of this.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub multiple: usize,
    /// Height and width that every batch is padded to; without them those of the batch's largest image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<[usize; 2]>,
    /// Mean of each channel over 255; measured on scenes, ImageNet's for files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f64>>,
    /// Standard deviation of each channel, as the mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f64>>,
    /// Threads that make batches ahead of the step; 0 makes them within it. The batches are the same for any number.
    #[serde(default)]
    pub workers: usize,
    /// What is done to training images at random.
    #[serde(default, skip_serializing_if = "is_default")]
    pub augment: BoxAugmentConfig,
}

fn one() -> usize {
    1
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

/// Random transforms of images with boxes; by default none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoxAugmentConfig {
    /// Probability that left and right are exchanged; digits must not be.
    pub flip: f64,
    /// Random crop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<BoxCropConfig>,
    /// Least share of a box's area that must be left after a crop for the box to stay; 0 keeps whatever has an area, as DETR does.
    pub least_visible: f64,
}

/// A random crop before the resize (DETR, arXiv:2005.12872): 0.5, `[400, 500, 600]`, 384 and 600 on COCO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxCropConfig {
    /// Probability that an image is cropped.
    pub probability: f64,
    /// Shorter sides, one of which is drawn for a resize before the crop. Empty for no such resize.
    #[serde(default)]
    pub sides: Vec<usize>,
    /// Least height and width of the crop in pixels; a smaller image keeps its own.
    pub least: usize,
    /// Largest height and width of the crop in pixels.
    pub most: usize,
}

impl DetectionDataConfig {
    /// A source with nothing done to its images.
    pub fn plain(source: DetectionSource) -> Self {
        Self {
            source,
            sides: Vec::new(),
            test_side: None,
            longest: None,
            multiple: 1,
            pad: None,
            mean: None,
            std: None,
            workers: 0,
            augment: BoxAugmentConfig::default(),
        }
    }

    /// How images are resized in evaluation; `None` keeps each as it is.
    pub fn resize(&self) -> Option<Resize> {
        let (longest, multiple) = (self.longest, self.multiple);
        self.test_side.map(|side| Resize { side, longest, multiple })
    }

    /// Refuses settings that can't be met.
    ///
    /// # Errors
    /// The key with what was expected and what came.
    pub fn check(&self) -> Result<()> {
        match &self.source {
            DetectionSource::Scenes(scenes) => scenes.check()?,
            DetectionSource::Coco(coco) => coco.check()?,
        }
        let sides = |key: &'static str, sides: &[usize]| {
            let values: Vec<_> = sides.iter().map(|side| (key, *side as u64)).collect();
            at_least_one(&values)?;
            at_most(MOST_SIDE, &values)
        };
        sides("data.sides", &self.sides)?;
        sides("data.test_side", self.test_side.as_slice())?;
        sides("data.longest", self.longest.as_slice())?;
        sides("data.multiple", &[self.multiple])?;
        if let Some(longest) = self.longest.filter(|longest| self.multiple > *longest) {
            bail!("data.multiple: expected at most data.longest, {longest}, got {}", self.multiple)
        }
        sides("data.pad", self.pad.as_ref().map_or(&[], |pad| pad))?;
        let BoxAugmentConfig { flip, crop, least_visible } = &self.augment;
        let probability = |key, value: f64| match (0. ..=1.).contains(&value) {
            true => Ok(()),
            false => bail!("data.augment.{key}: expected a share in [0, 1], got {value}"),
        };
        probability("flip", *flip)?;
        probability("least_visible", *least_visible)?;
        if let Some(crop) = crop {
            probability("crop.probability", crop.probability)?;
            sides("data.augment.crop.sides", &crop.sides)?;
            at_most(
                MOST_SIDE,
                &[
                    ("data.augment.crop.least", crop.least as u64),
                    ("data.augment.crop.most", crop.most as u64),
                ],
            )?;
            if crop.least == 0 || crop.least > crop.most {
                bail!(
                    "data.augment.crop: expected 1 <= least <= most, got {} and {}",
                    crop.least,
                    crop.most
                )
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str) -> String {
        match toml::from_str::<DetectionDataConfig>(text) {
            Ok(config) => config.check().err().map(|e| e.to_string()).unwrap_or_default(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn tables_are_read_and_faults_named() -> Result<()> {
        let scenes = "source = { kind = \"scenes\", size = 96 }\n";
        assert_eq!(says(scenes), "");
        let coco = "source = { kind = \"coco\", dir = \"coco\", validation = 2000 }\n";
        let augment = "[augment]\nflip = 0.5\ncrop = { probability = 0.5, sides = [400], least = 384, most = 600 }\n";
        assert_eq!(says(&format!("{coco}sides = [480, 512]\n{augment}")), "");
        for (text, wanted) in [
            ("source = { kind = \"scenes\", sise = 96 }", "sise"),
            ("source = { kind = \"scenes\", scales = [4, 40] }", "scenes.scales"),
            ("source = { kind = \"scenes\", size = 32 }", "scenes.size"),
            ("source = { kind = \"scenes\", objects = [3, 2] }", "scenes.objects"),
            ("source = { kind = \"scenes\", noise = -0.1 }", "scenes.noise"),
            ("source = { kind = \"scenes\", overlap = 1.5 }", "scenes.overlap"),
            ("source = { kind = \"scenes\", channels = 2 }", "scenes.channels"),
            (&format!("{scenes}sides = [0]"), "data.sides"),
            ("source = { kind = \"scenes\", test = 10000001 }", "scenes.test: expected at most"),
            ("source = { kind = \"scenes\", objects = [1, 10001] }", "scenes.objects[1]"),
            ("source = { kind = \"scenes\", clutter = 10001 }", "scenes.clutter"),
            (&format!("{scenes}sides = [64, 16385]"), "data.sides: expected at most 16384"),
            (&format!("{scenes}pad = [64, 16385]"), "data.pad: expected at most 16384"),
            (&format!("{scenes}multiple = 32\nlongest = 31"), "data.multiple"),
            (&format!("{scenes}augment = {{ flip = 2.0 }}"), "data.augment.flip"),
            (
                &format!(
                    "{scenes}augment = {{ crop = {{ probability = 1.0, least = 9, most = 8 }} }}"
                ),
                "least <= most",
            ),
        ] {
            assert!(says(text).contains(wanted), "{text}: {}", says(text));
        }
        let config: DetectionDataConfig =
            toml::from_str(&coco.replace("2000", "\"val\"")).map_err(candle_core::Error::wrap)?;
        let DetectionSource::Coco(coco) = &config.source else { bail!("expected coco") };
        assert_eq!(coco.validation, ValidationPart::Part("val".to_owned()));
        assert_eq!((coco.train.as_str(), coco.channels), ("train2017", 3));
        let text = toml::to_string(&config).map_err(candle_core::Error::wrap)?;
        assert_eq!(toml::from_str::<DetectionDataConfig>(&text).ok(), Some(config));
        Ok(())
    }
}
