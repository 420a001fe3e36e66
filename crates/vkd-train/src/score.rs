//! Scoring networks and saved students.

use crate::batches::readable_images;
use crate::data::Dataset;
use crate::metrics::{Evaluation, Tally};
use crate::ranks::Ranks;
use candle_core::{Device, Result, Tensor, bail};
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
    ranks: &Ranks,
) -> Result<f64> {
    let predict = |images: &Tensor| forward(images)?.prediction();
    Ok(evaluate(predict, data, indices, data.preprocessing(), ranks)?.accuracy)
}

/// What a report holds of a network: `accuracy`, `top5_accuracy`, `nll` and `calibration_error` of the test images and
/// `validation_accuracy`.
pub(crate) fn scores(
    forward: impl Fn(&Tensor) -> Result<NetworkOutput>,
    data: &Dataset,
    ranks: &Ranks,
) -> Result<BTreeMap<String, f64>> {
    let predict = |images: &Tensor| forward(images)?.prediction();
    let test = evaluate(predict, data, &data.test, data.preprocessing(), ranks)?;
    let values = [
        ("accuracy", test.accuracy),
        ("top5_accuracy", test.top5_accuracy),
        ("nll", test.negative_log_likelihood),
        ("calibration_error", test.calibration_error),
        ("validation_accuracy", score(&forward, data, &data.validation, ranks)?),
    ];
    Ok(values.map(|(name, value)| (name.to_owned(), value)).into())
}

/// Each rank sees the images of its own passes; the tally, the first one's, is the same for any number of ranks.
fn evaluate(
    logits: impl Fn(&Tensor) -> Result<Tensor>,
    data: &Dataset,
    indices: &[usize],
    preprocessing: &Preprocessing,
    ranks: &Ranks,
) -> Result<Evaluation> {
    let mut tally = Tally::new(data.class_names.len());
    let passes: Vec<&[usize]> = indices.chunks(EVALUATION_BATCH).collect();
    let look = |pass: usize| {
        let (images, read) = readable_images(data, passes[pass], preprocessing)?;
        if read.is_empty() {
            return Ok(None);
        }
        let labels: Vec<u32> = read.iter().map(|&i| data.label(i)).collect();
        Ok(Some([logits(&images)?, Tensor::new(labels, &Device::Cpu)?]))
    };
    ranks.in_turn(passes.len(), look, |[logits, labels]| {
        let labels: Vec<usize> = labels.to_vec1::<u32>()?.iter().map(|l| *l as usize).collect();
        tally.add(&logits, &labels)
    })?;
    ranks.from_first(|| tally.finish())
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
    let logits = |images: &Tensor| student.logits(images);
    evaluate(logits, data, indices, &student.card.preprocessing, &Ranks::alone())
}
