//! Images with boxes: which are for training, validation and test, and what is to be found in them.

use super::coco::Coco;
use super::scenes::{Part, Scenes, annotation_ids, image_id};
use super::{Image, normalization};
use crate::recipe::{DetectionDataConfig, DetectionSource};
use candle_core::{Error, Result, bail};
use std::sync::Arc;
use vkd_models::Preprocessing;
use vkd_tasks::Objects;

/// Scenes whose pixels are measured for the mean and deviation.
const MEASURED: u64 = 64;

/// Images with boxes. A clone shares them.
///
/// # Example
/// ```
/// use vkd_train::{DetectionDataConfig, DetectionDataset, DetectionSource, ScenesConfig};
///
/// let source = DetectionSource::Scenes(ScenesConfig { size: 48, ..ScenesConfig::default() });
/// let data = DetectionDataset::open(&DetectionDataConfig::plain(source))?;
/// let (image, objects) = data.sample(data.train[0])?;
/// assert_eq!((image.into_grey(), data.size(data.train[0])?), (data.sample(0)?.0, [48, 48]));
/// assert!(objects.len() <= 5);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone)]
pub struct DetectionDataset {
    /// Name for reports.
    pub name: String,
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
    category_ids: Vec<u64>,
    preprocessing: Preprocessing,
    source: Arc<Source>,
}

enum Source {
    Scenes(Scenes),
    Coco(Coco),
}

/// An object as a COCO file has it: what evaluation compares with.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// Identity in its file.
    pub id: u64,
    /// Class, below the number of class names.
    pub class: u32,
    /// Left, top, width and height in pixels of the stored image; not clipped, and maybe without area.
    pub bbox: [f64; 4],
    /// Area in square pixels: the file's, which is a mask's on COCO, else the box's.
    pub area: f64,
    /// Whether the box holds a group of objects that were not told apart.
    pub crowd: bool,
}

/// Annotations that are not learnt from as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Crowds: left out of the objects.
    pub crowds: usize,
    /// Boxes without area, by themselves or within their image: left out.
    pub empty: usize,
    /// Boxes that reached beyond their image: cut at its border.
    pub clipped: usize,
}

impl DetectionDataset {
    /// Opens the source that the settings name. Image files are only looked for; they are decoded when they are needed.
    ///
    /// # Errors
    /// Settings that can't be met, by their key; of COCO files a broken one (line and column), an annotation that doesn't fit
    /// (its id), images that are missing (their names), parts with other categories.
    pub fn open(config: &DetectionDataConfig) -> Result<Self> {
        config.check()?;
        let data = match &config.source {
            DetectionSource::Scenes(scenes) => Self::scenes(Scenes::new(scenes)?, scenes.channels)?,
            DetectionSource::Coco(coco) => {
                let name = format!("COCO files of {}", super::last_part(&coco.dir));
                Self::coco(Coco::open(coco)?, name, coco.channels)
            }
        };
        let measured = data.preprocessing;
        let preprocessing = Preprocessing {
            divisor: measured.divisor,
            mean: config.mean.clone().unwrap_or(measured.mean),
            std: config.std.clone().unwrap_or(measured.std),
        };
        preprocessing
            .check(data.channels)
            .map_err(|e| Error::Msg(format!("data: {}", crate::plain(&e))))?;
        Ok(Self { preprocessing, ..data })
    }

    fn scenes(scenes: Scenes, channels: usize) -> Result<Self> {
        let images = (0..MEASURED.min(scenes.count(Part::Train) as u64))
            .map(|index| Ok(scenes.scene(Part::Train, index)?.0))
            .collect::<Result<Vec<Image>>>()?;
        let preprocessing = normalization::measure(images.iter().map(bytes), channels, 255.);
        let (train, validation) = (scenes.count(Part::Train), scenes.count(Part::Validation));
        let parts = [0, train, train + validation, train + validation + scenes.count(Part::Test)];
        let part = |i: usize| (parts[i]..parts[i + 1]).collect();
        Ok(Self {
            name: "scenes of UCI handwritten digits".to_owned(),
            channels,
            class_names: (0..10).map(|d| d.to_string()).collect(),
            train: part(0),
            validation: part(1),
            test: part(2),
            category_ids: (1..=10).collect(),
            preprocessing,
            source: Arc::new(Source::Scenes(scenes)),
        })
    }

    fn coco(mut coco: Coco, name: String, channels: usize) -> Self {
        let [train, validation, test] = std::mem::take(&mut coco.parts);
        // Decoding everything to measure it would take an epoch, so ImageNet's numbers stand in.
        let preprocessing = match channels {
            1 => Preprocessing::grey(255., 0.449, 0.226),
            _ => Preprocessing::imagenet(),
        };
        Self {
            name,
            channels,
            class_names: coco.categories.iter().map(|c| c.name.clone()).collect(),
            train,
            validation,
            test,
            category_ids: coco.categories.iter().map(|c| c.id).collect(),
            preprocessing,
            source: Arc::new(Source::Coco(coco)),
        }
    }

    /// Image `index` with the objects to learn from.
    ///
    /// # Errors
    /// A file that can't be read, is no image or of another size than its description, by its name.
    pub fn sample(&self, index: usize) -> Result<(Image, Objects)> {
        match &*self.source {
            Source::Scenes(scenes) => {
                let (part, index) = scenes.locate(index)?;
                scenes.scene(part, index)
            }
            Source::Coco(coco) => Ok((coco.image(index)?, coco.entry(index)?.objects.clone())),
        }
    }

    /// Everything that is marked in image `index`, crowds and boxes without area too: what evaluation compares with.
    ///
    /// # Errors
    /// An index that is none.
    pub fn annotations(&self, index: usize) -> Result<Vec<Annotation>> {
        let scenes = match &*self.source {
            Source::Scenes(scenes) => scenes,
            Source::Coco(coco) => return Ok(coco.entry(index)?.annotations.clone()),
        };
        let (part, at) = scenes.locate(index)?;
        let Objects { boxes, classes } = scenes.objects(part, at)?;
        let ids = annotation_ids(index);
        let made = ids.zip(boxes.into_iter().zip(classes)).map(|(id, (corners, class))| {
            let [x0, y0, x1, y1] = corners.map(f64::from);
            let (width, height) = (x1 - x0, y1 - y0);
            let bbox = [x0, y0, width, height];
            Annotation { id, class, bbox, area: width * height, crowd: false }
        });
        Ok(made.collect())
    }

    /// Height and width of image `index` as it is stored.
    ///
    /// # Errors
    /// An index that is none.
    pub fn size(&self, index: usize) -> Result<[usize; 2]> {
        match &*self.source {
            Source::Scenes(scenes) => scenes.locate(index).map(|_| [scenes.size(); 2]),
            Source::Coco(coco) => Ok(coco.entry(index)?.size),
        }
    }

    /// The id of image `index` in its COCO file, which results carry; of a scene, its number among all from 1 on.
    ///
    /// # Errors
    /// An index that is none.
    pub fn image_id(&self, index: usize) -> Result<u64> {
        match &*self.source {
            Source::Scenes(scenes) => scenes.locate(index).map(|_| image_id(index)),
            Source::Coco(coco) => Ok(coco.entry(index)?.id),
        }
    }

    /// The category id of a class in the COCO file, which results carry.
    ///
    /// # Errors
    /// A class that is none.
    pub fn category_id(&self, class: u32) -> Result<u64> {
        match self.category_ids.get(class as usize) {
            Some(id) => Ok(*id),
            None => bail!(
                "detection data: expected a class below {}, got {class}",
                self.category_ids.len()
            ),
        }
    }

    /// What messages call image `index`: its file, where it has one.
    pub fn image_name(&self, index: usize) -> String {
        match &*self.source {
            Source::Scenes(_) => format!("scene {index}"),
            Source::Coco(coco) => coco.name(index),
        }
    }

    /// Annotations that are not learnt from as they are, all parts together.
    pub fn counts(&self) -> Counts {
        match &*self.source {
            Source::Scenes(_) => Counts::default(),
            Source::Coco(coco) => coco.counts,
        }
    }

    /// Number of images, all parts together.
    pub fn len(&self) -> usize {
        self.train.len() + self.validation.len() + self.test.len()
    }

    /// Whether there are no images; never true of an opened data set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// From bytes to what networks see: the recipe's numbers, else measured on scenes and ImageNet's for files.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// The same images as a network with other numbers sees them.
    pub fn with_preprocessing(&self, preprocessing: Preprocessing) -> Self {
        Self { preprocessing, ..self.clone() }
    }
}

/// Height and width of an image.
pub(crate) fn size(image: &Image) -> [usize; 2] {
    [image.height, image.width]
}

/// The bytes of an image, rows from the top, the channels of a pixel side by side.
pub(crate) fn bytes(image: &Image) -> &[u8] {
    &image.pixels
}
