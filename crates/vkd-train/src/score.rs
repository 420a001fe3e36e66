//! Scoring networks and saved students.

use crate::batches::readable_images;
use crate::data::Dataset;
use crate::metrics::{Evaluation, Tally};
use candle_core::{Result, Tensor, bail};
use std::collections::BTreeMap;
use vkd_models::{Preprocessing, Student};
use vkd_tasks::NetworkOutput;

/// Images in one forward pass of an evaluation.
pub(crate) const EVALUATION_BATCH: usize = 250;

/// Accuracy of the two-headed prediction on the given images.
pub(crate) fn score(
    forward: impl Fn(&Tensor) -> Result<NetworkOutput>,
    data: &Dataset,
    indices: &[usize],
) -> Result<f64> {
    Ok(evaluate(|images| forward(images)?.prediction(), data, indices, data.preprocessing())?
        .accuracy)
}

/// What a report holds of a network: `accuracy`, `top5_accuracy`, `nll` and `calibration_error` of the test images and
/// `validation_accuracy`.
pub(crate) fn scores(
    forward: impl Fn(&Tensor) -> Result<NetworkOutput>,
    data: &Dataset,
) -> Result<BTreeMap<String, f64>> {
    let predict = |images: &Tensor| forward(images)?.prediction();
    let test = evaluate(predict, data, &data.test, data.preprocessing())?;
    let values = [
        ("accuracy", test.accuracy),
        ("top5_accuracy", test.top5_accuracy),
        ("nll", test.negative_log_likelihood),
        ("calibration_error", test.calibration_error),
        ("validation_accuracy", score(&forward, data, &data.validation)?),
    ];
    Ok(values.map(|(name, value)| (name.to_owned(), value)).into())
}

fn evaluate(
    logits: impl Fn(&Tensor) -> Result<Tensor>,
    data: &Dataset,
    indices: &[usize],
    preprocessing: &Preprocessing,
) -> Result<Evaluation> {
    let mut tally = Tally::new(data.class_names.len());
    for chunk in indices.chunks(EVALUATION_BATCH) {
        let (images, read) = readable_images(data, chunk, preprocessing)?;
        if read.is_empty() {
            continue;
        }
        let labels: Vec<usize> = read.iter().map(|&i| data.label(i) as usize).collect();
        tally.add(&logits(&images)?, &labels)?;
    }
    tally.finish()
}

/// Scores of a saved student on the given images, with the student's own preprocessing.
///
/// # Errors
/// A student made for images of another size, other channels or other classes, or no images.
pub fn evaluate_student(
    student: &Student,
    data: &Dataset,
    indices: &[usize],
) -> Result<Evaluation> {
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
    evaluate(|images| student.logits(images), data, indices, &student.card.preprocessing)
}
