//! What a detector finds, and the scores of it.

use crate::augment::boxes;
use crate::data::{DetectionDataset, Image, normalization};
use crate::detection_batches::plain_detection;
use crate::metrics::{Annotation, AveragePrecision, GroundTruth, ScoredBox, average_precision};
use crate::ranks::Ranks;
use crate::recipe::{DetectionDataConfig, DetectionRecipe};
use crate::workload::Scores;
use candle_core::{DType, Device, Result, Tensor, bail};
use vkd_models::DetectorStudent;
use vkd_tasks::{DetectionConfig, DetectorOutput, ImageSize, Objects};

/// What a detector finds in images `indices`, `batch` at a time, in pixels of the stored images. Each rank looks at images of its own;
/// the first one has what all found, in the order of images.
fn found(
    forward: impl Fn(&Tensor, &Tensor) -> Result<DetectorOutput>,
    data: &DetectionDataset,
    config: &DetectionDataConfig,
    indices: &[usize],
    batch: usize,
    ranks: &Ranks,
) -> Result<Vec<ScoredBox>> {
    let passes: Vec<&[usize]> = indices.chunks(batch).collect();
    let look = |pass: usize| {
        let (chunk, mut found) = (passes[pass], Vec::new());
        let batch = plain_detection(data, config, chunk)?;
        let size = |&[height, width]: &[usize; 2]| ImageSize { height, width };
        let sizes: Vec<ImageSize> = batch.sizes.iter().map(size).collect();
        let output = forward(&batch.images, &batch.padding)?;
        let detections = DetectionConfig::default().decode(&output.predictions, &sizes)?;
        for (i, detections) in detections.into_iter().enumerate() {
            let image_id = data.image_id(chunk[i])?;
            let times =
                |axis: usize| batch.original_sizes[i][axis] as f32 / batch.sizes[i][axis] as f32;
            let (down, across) = (times(0), times(1));
            for detection in detections {
                let detection = scaled(detection, across, down);
                let category = data.category_id(detection.class)?;
                found.push(ScoredBox::new(image_id, category, &detection));
            }
        }
        to_tensors(&found)
    };
    let mut all = Vec::new();
    ranks.in_turn(passes.len(), look, |piece| {
        all.extend(from_tensors(&piece)?);
        Ok(())
    })?;
    Ok(all)
}

/// Ids, bit by bit, and numbers of what was found; nothing of nothing.
fn to_tensors(found: &[ScoredBox]) -> Result<Option<[Tensor; 2]>> {
    if found.is_empty() {
        return Ok(None);
    }
    let ids = found.iter().flat_map(|b| [b.image_id, b.category_id].map(u64::cast_signed));
    let numbers = found.iter().flat_map(|b| b.bbox.into_iter().chain([b.score]));
    let ids = Tensor::from_iter(ids, &Device::Cpu)?.reshape(((), 2))?;
    Ok(Some([ids, Tensor::from_iter(numbers, &Device::Cpu)?.reshape(((), 5))?]))
}

fn from_tensors([ids, numbers]: &[Tensor; 2]) -> Result<Vec<ScoredBox>> {
    let (ids, numbers) = (ids.to_vec2::<i64>()?, numbers.to_vec2::<f64>()?);
    let found = ids.iter().zip(&numbers).map(|row| match (&row.0[..], &row.1[..]) {
        (&[image_id, category_id], &[x, y, width, height, score]) => {
            let (image_id, category_id) = (image_id.cast_unsigned(), category_id.cast_unsigned());
            Ok(ScoredBox { image_id, category_id, bbox: [x, y, width, height], score })
        }
        _ => bail!("detection: expected two ids and five numbers a box, got {row:?}"),
    });
    found.collect()
}

/// A detection in pixels of an image that is so many times as large.
fn scaled(mut found: vkd_tasks::Detection, across: f32, down: f32) -> vkd_tasks::Detection {
    let [x0, y0, x1, y1] = found.bbox;
    found.bbox = [x0 * across, y0 * down, x1 * across, y1 * down];
    found
}

/// What is to be found in images `indices`.
fn truth(data: &DetectionDataset, indices: &[usize]) -> Result<GroundTruth> {
    let classes = 0..data.class_names.len() as u32;
    let mut truth = GroundTruth {
        images: indices.iter().map(|i| data.image_id(*i)).collect::<Result<_>>()?,
        categories: classes.map(|class| data.category_id(class)).collect::<Result<_>>()?,
        annotations: Vec::new(),
    };
    for index in indices {
        let image_id = data.image_id(*index)?;
        for a in data.annotations(*index)? {
            let (bbox, area, crowd) = (a.bbox, a.area, a.crowd);
            let category_id = data.category_id(a.class)?;
            truth.annotations.push(Annotation { image_id, category_id, bbox, area, crowd });
        }
    }
    Ok(truth)
}

pub(super) fn precision(
    forward: impl Fn(&Tensor, &Tensor) -> Result<DetectorOutput>,
    recipe: &DetectionRecipe,
    data: &DetectionDataset,
    indices: &[usize],
    ranks: &Ranks,
) -> Result<AveragePrecision> {
    let found = found(forward, data, &recipe.data, indices, recipe.training.batch, ranks)?;
    ranks.from_first(|| average_precision(&truth(data, indices)?, &found))
}

/// NaN where there was nothing to find.
pub(super) fn known(score: Option<f64>) -> f64 {
    score.unwrap_or(f64::NAN)
}

pub(super) fn scores(
    forward: impl Fn(&Tensor, &Tensor) -> Result<DetectorOutput>,
    recipe: &DetectionRecipe,
    data: &DetectionDataset,
    ranks: &Ranks,
) -> Result<Scores> {
    let test = precision(&forward, recipe, data, &data.test, ranks)?;
    let validation = precision(&forward, recipe, data, &data.validation, ranks)?;
    let values = [
        ("ap", test.ap),
        ("ap50", test.ap50),
        ("ap75", test.ap75),
        ("ap_small", test.ap_small),
        ("ap_medium", test.ap_medium),
        ("ap_large", test.ap_large),
        ("ar1", test.ar1),
        ("ar10", test.ar10),
        ("ar100", test.ar100),
        ("ar_small", test.ar_small),
        ("ar_medium", test.ar_medium),
        ("ar_large", test.ar_large),
        ("validation_ap", validation.ap),
    ];
    Ok(values.into_iter().filter_map(|(name, v)| Some((name.to_owned(), v?))).collect())
}

/// Scores of a saved detector on images `indices`, seen and resized as its card says and padded as `config` does, and all that it
/// found, in the form of COCO's results.
///
/// # Errors
/// A student made for other channels or classes, no images, or an image that can't be read.
pub fn evaluate_detector(
    student: &DetectorStudent,
    data: &DetectionDataset,
    config: &DetectionDataConfig,
    indices: &[usize],
    batch: usize,
) -> Result<(AveragePrecision, Vec<ScoredBox>)> {
    let card = &student.card;
    if card.model.channels != data.channels || card.class_names != data.class_names {
        bail!(
            "eval: expected a student for images of {} channels of {}, got one for {} channels and the classes {}",
            data.channels,
            data.name,
            card.model.channels,
            card.class_names.join(", ")
        )
    }
    // Another data set has other numbers, and a recipe may ask for another size.
    let seen = data.with_preprocessing(card.preprocessing.clone());
    let resize = card.resize;
    let config = DetectionDataConfig {
        test_side: resize.map(|r| r.side),
        longest: resize.and_then(|r| r.longest),
        multiple: resize.map_or(1, |r| r.multiple),
        ..config.clone()
    };
    let network = crate::networks::saved_detector(student);
    let forward =
        |images: &Tensor, padding: &Tensor| network(images, padding, &vkd_nn::Context::eval());
    let found = found(forward, &seen, &config, indices, batch.max(1), &Ranks::alone())?;
    Ok((average_precision(&truth(data, indices)?, &found)?, found))
}

/// What a saved detector finds in one image, the surest first, in pixels of the image.
///
/// # Errors
/// An image of other channels, and whatever the network refuses.
pub fn detect(student: &DetectorStudent, image: &Image) -> Result<Vec<vkd_tasks::Detection>> {
    let card = &student.card;
    let channels = card.model.channels;
    if image.channels() != channels {
        bail!("detect: expected an image of {channels} channels, got {}", image.channels())
    }
    let (seen, _) = boxes::plain((image.clone(), Objects::default()), card.resize)?;
    let (height, width) = (seen.height(), seen.width());
    let mut values = Vec::with_capacity(seen.pixels().len());
    for channel in 0..channels {
        let table = normalization::table(&card.preprocessing, channel);
        let plane = seen.pixels().iter().skip(channel).step_by(channels);
        values.extend(plane.map(|raw| table[usize::from(*raw)]));
    }
    let images = Tensor::from_vec(values, (1, channels, height, width), &Device::Cpu)?;
    let padding = Tensor::zeros((1, height, width), DType::U8, &Device::Cpu)?;
    let network = crate::networks::saved_detector(student);
    let output = network(&images, &padding, &vkd_nn::Context::eval())?;
    let sizes = [ImageSize { height, width }];
    let found = DetectionConfig::default().decode(&output.predictions, &sizes)?;
    let down = image.height() as f32 / height as f32;
    let across = image.width() as f32 / width as f32;
    Ok(found.into_iter().flatten().map(|one| scaled(one, across, down)).collect())
}
