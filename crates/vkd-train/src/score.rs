//! Scoring networks and saved students.

use crate::batches::readable_images;
use crate::data::{Dataset, Normalization};
use crate::metrics::accuracy;
use candle_core::{Device, Result, Tensor, bail};
use std::collections::BTreeMap;
use vkd_models::Student;
use vkd_tasks::NetworkOutput;

/// Images in one forward pass of an evaluation.
const EVALUATION_BATCH: usize = 250;

/// Accuracy of the two-headed prediction on the given images.
pub(crate) fn score(
    forward: impl Fn(&Tensor) -> Result<NetworkOutput>,
    data: &Dataset,
    indices: &[usize],
) -> Result<f64> {
    score_logits(|images| forward(images)?.prediction(), data, indices, data.normalization())
}

pub(crate) fn scores(
    forward: impl Fn(&Tensor) -> Result<NetworkOutput>,
    data: &Dataset,
) -> Result<BTreeMap<String, f64>> {
    Ok(BTreeMap::from([
        ("accuracy".to_owned(), score(&forward, data, &data.test)?),
        ("validation_accuracy".to_owned(), score(&forward, data, &data.validation)?),
    ]))
}

fn score_logits(
    logits: impl Fn(&Tensor) -> Result<Tensor>,
    data: &Dataset,
    indices: &[usize],
    normalization: &Normalization,
) -> Result<f64> {
    let (mut hits, mut count) = (0., 0);
    for chunk in indices.chunks(EVALUATION_BATCH) {
        let (images, read) = readable_images(data, chunk, normalization)?;
        if read.is_empty() {
            continue;
        }
        let labels: Vec<u32> = read.iter().map(|&i| data.label(i)).collect();
        hits +=
            accuracy(&logits(&images)?, &Tensor::new(labels, &Device::Cpu)?)? * read.len() as f64;
        count += read.len();
    }
    if count == 0 && !indices.is_empty() {
        bail!("score: expected images of {}, got {} that can't be read", data.name, indices.len())
    }
    // Whole numbers again, so that a score does not depend on how the images were grouped.
    Ok(hits.round() / count as f64)
}

/// Accuracy of a saved student on the given images, with the student's own preprocessing.
///
/// # Errors
/// A student made for images of another size, other channels or other classes.
pub fn evaluate_student(student: &Student, data: &Dataset, indices: &[usize]) -> Result<f64> {
    let model = &student.card.model;
    if (model.image_size, model.channels) != (data.size, data.channels)
        || student.card.class_names != data.class_names
    {
        bail!(
            "eval: expected a student for {0}x{0}x{1} images of {2}, got one for {3}x{3}x{4} images of the classes {5}",
            data.size,
            data.channels,
            data.name,
            model.image_size,
            model.channels,
            student.card.class_names.join(", ")
        )
    }
    let normalization =
        Normalization::from_preprocessing(&student.card.preprocessing, data.channels);
    score_logits(|images| student.logits(images), data, indices, &normalization)
}
