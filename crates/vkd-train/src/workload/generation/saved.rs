//! Generators that were loaded from their files.

use super::judge::JUDGE;
use super::matching::judge_model;
use super::{Generation, Judge, Sampler};
use crate::data::{Dataset, Image};
use crate::folder::RunFolderOf;
use crate::ranks::Ranks;
use crate::run::load_teacher;
use crate::workload::Scores;
use candle_core::{Result, bail};
use vkd_models::GeneratorStudent;

/// Scores of a saved generator against images `indices`, by the judge of the run that it comes from, or its Inception where it has one;
/// the samples are those that the run's report is of, whatever the images. Computed where the generator lies.
///
/// # Errors
/// A generator of other images than the run's, weights of Inception that are not those that its arms were scored by, a run whose teacher is not finished, and too few images.
pub fn evaluate_generator(
    student: GeneratorStudent,
    run: &RunFolderOf<Generation>,
    data: &Dataset,
    indices: &[usize],
) -> Result<Scores> {
    let card = &student.card;
    let made = card.model.generator.image_size();
    if (card.model.channels, made) != (data.channels, data.size)
        || card.class_names != data.class_names
    {
        bail!(
            "eval: expected a generator of {0}x{0}x{1} images of {2}, got one of {3}x{3}x{4} images of the classes {5}",
            data.size,
            data.channels,
            data.name,
            made,
            card.model.channels,
            card.class_names.join(", ")
        )
    }
    let recipe = run.recipe();
    let store = load_teacher(run, data, student.device())?;
    let judge =
        Judge::new(&judge_model(recipe, data)?, data, &recipe.criterion, store.frozen().pp(JUDGE))?;
    run.check_extractor(judge.extractor())?;
    let sampler = Sampler::new(student.into_network(), recipe.seed);
    let alone = Ranks::alone();
    let real = judge.features(data, indices, &alone)?;
    sampler.scores("samples.test", &judge, &real, &recipe.criterion, &alone)
}

/// A picture of samples of a saved generator: a column for each of the first classes, ten rows.
///
/// # Errors
/// Those of the network.
pub fn generator_grid(student: GeneratorStudent, seed: u64) -> Result<Image> {
    Sampler::new(student.into_network(), seed).grid()
}
