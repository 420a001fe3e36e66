//! Scoring networks and saved students.

use crate::batches::plain_images;
use crate::data::Dataset;
use crate::metrics::accuracy;
use candle_core::{Device, Result, Tensor, bail};
use std::collections::BTreeMap;
use vkd_models::{Preprocessing, Student};
use vkd_tasks::NetworkOutput;

/// Images in one forward pass of an evaluation.
const EVALUATION_BATCH: usize = 250;

/// Accuracy of the two-headed prediction on the given images.
pub(crate) fn score(
    forward: impl Fn(&Tensor) -> Result<NetworkOutput>,
    data: &Dataset,
    indices: &[usize],
) -> Result<f64> {
    score_logits(|images| forward(images)?.prediction(), data, indices, &data.preprocessing())
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
    preprocessing: &Preprocessing,
) -> Result<f64> {
    let mut hits = 0.;
    for chunk in indices.chunks(EVALUATION_BATCH) {
        let labels: Vec<u32> = chunk.iter().map(|&i| u32::from(data.label(i))).collect();
        let images = plain_images(data, chunk, preprocessing)?;
        hits +=
            accuracy(&logits(&images)?, &Tensor::new(labels, &Device::Cpu)?)? * chunk.len() as f64;
    }
    // Whole numbers again, so that a score does not depend on how the images were grouped.
    Ok(hits.round() / indices.len() as f64)
}

/// Accuracy of a saved student on the given images, with the student's own preprocessing.
///
/// # Errors
/// A student made for images of another size or for other classes.
pub fn evaluate_student(student: &Student, data: &Dataset, indices: &[usize]) -> Result<f64> {
    if student.card.model.image_size != data.size || student.card.class_names != data.class_names {
        bail!(
            "eval: expected a student for {0}x{0} images of {1}, got one for {2}x{2} images of the classes {3}",
            data.size,
            data.name,
            student.card.model.image_size,
            student.card.class_names.join(", ")
        )
    }
    score_logits(|images| student.logits(images), data, indices, &student.card.preprocessing)
}
