//! A GAN with its judge: what is trained, sampled and scored.

use super::judge::Judge;
use crate::data::{Dataset, Image};
use crate::generation::sample_grid;
use crate::metrics::{Features, GenerationScores, InceptionScore, frechet_distance};
use crate::ranks::Ranks;
use crate::recipe::GanCriterionConfig;
use crate::score::EVALUATION_BATCH;
use crate::workload::Scores;
use candle_core::{D, Device, Result, Tensor, bail};
use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;
use vkd_models::Generator;
use vkd_nn::Context;
use vkd_tasks::{DistillTask, GenerationBatch, GenerationTask, Phase, StepOutput, white_noise};

/// Most columns of a grid of samples.
const COLUMNS: usize = 10;
/// Rows of a grid of samples.
const ROWS: usize = 10;

/// A [`GenerationTask`] whose generator is scored.
pub struct JudgedGan {
    pub(super) task: GenerationTask,
    pub(super) sampler: Sampler,
    pub(super) judge: Option<Judge>,
    /// Features of the validation images, once they were needed.
    pub(super) validation: OnceCell<Features>,
    pub(super) criterion: GanCriterionConfig,
}

/// Draws images of a generator, which a name, a number and a seed decide.
pub struct Sampler {
    generator: Generator,
    seed: u64,
}

impl Sampler {
    /// Of a generator made of constants.
    pub fn new(generator: Generator, seed: u64) -> Self {
        Self { generator, seed }
    }

    /// Images `(N, C, H, W)` from -1 to 1 of N classes, in parts of at most 250 of nearly one size: batch norm has the statistics of
    /// the part, as the published evaluations have it, so that images of one call belong together.
    ///
    /// # Errors
    /// No class, one that there isn't, and those of the network.
    pub fn images(&self, name: &str, labels: &[u32]) -> Result<Tensor> {
        if labels.is_empty() {
            bail!("sampler: expected classes, got none")
        }
        let part = |numbers: Range<usize>| self.part(name, numbers.clone(), &labels[numbers]);
        Tensor::cat(&parts(labels.len()).map(part).collect::<Result<Vec<_>>>()?, 0)
    }

    fn part(&self, name: &str, numbers: Range<usize>, labels: &[u32]) -> Result<Tensor> {
        let (width, device) = (self.generator.noise(), self.generator.device());
        let noise = white_noise(self.seed, name, 0, numbers, width, device)?;
        Ok(self.generator.sample(&noise, &Tensor::new(labels, device)?)?.detach())
    }

    /// Classes in turn.
    fn classes(&self, numbers: Range<usize>) -> Vec<u32> {
        numbers.map(|i| (i % self.generator.classes()) as u32).collect()
    }

    /// A picture of samples: a column for each of the first classes.
    pub(super) fn grid(&self) -> Result<Image> {
        let columns = self.generator.classes().min(COLUMNS);
        let labels: Vec<u32> = (0..columns * ROWS).map(|i| (i % columns) as u32).collect();
        sample_grid(&self.images("samples.grid", &labels)?, columns)
    }

    /// Features of `count` images, how many of these the judge gives their class, and what the Inception score is of, by the classes of
    /// what made the features; all of it on the first rank, and each rank makes some of the images.
    fn judged(
        &self,
        name: &str,
        judge: &Judge,
        count: usize,
        ranks: &Ranks,
    ) -> Result<(Features, usize, InceptionScore)> {
        let mut found = judge.nothing()?;
        let (mut recognised, mut inception) = (0, InceptionScore::new(judge.classes()));
        let parts: Vec<Range<usize>> = parts(count).collect();
        let look = |number: usize| {
            let labels = self.classes(parts[number].clone());
            let images = self.part(name, parts[number].clone(), &labels)?;
            let look = judge.look(&images)?;
            let classes = look.logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
            let hits = classes.iter().zip(&labels).filter(|(a, b)| a == b).count();
            let hits = Tensor::new(hits as u32, &Device::Cpu)?;
            Ok(Some([look.features, look.probabilities, hits]))
        };
        ranks.in_turn(parts.len(), look, |[features, probabilities, hits]| {
            found.add(&features)?;
            inception.add(&probabilities)?;
            recognised += hits.to_scalar::<u32>()? as usize;
            Ok(())
        })?;
        Ok((found, recognised, inception))
    }

    /// The Fréchet distance of `count` images to `real` ones, by the judge.
    pub(super) fn distance(
        &self,
        name: &str,
        judge: &Judge,
        real: &Features,
        count: usize,
        ranks: &Ranks,
    ) -> Result<f64> {
        let (found, ..) = self.judged(name, judge, count, ranks)?;
        ranks.from_first(|| frechet_distance(real.moments(), found.moments()))
    }

    /// How `criterion.samples` images compare with `real` ones, by the judge.
    pub(super) fn scores(
        &self,
        name: &str,
        judge: &Judge,
        real: &Features,
        criterion: &GanCriterionConfig,
        ranks: &Ranks,
    ) -> Result<Scores> {
        let count = criterion.samples;
        let (found, recognised, inception) = self.judged(name, judge, count, ranks)?;
        ranks.from_first(|| {
            let scores = GenerationScores::between(real, &found, criterion.neighbours)?;
            let values = [
                ("frechet", scores.frechet),
                ("kernel", scores.kernel),
                ("precision", scores.manifold.precision),
                ("recall", scores.manifold.recall),
                ("density", scores.manifold.density),
                ("coverage", scores.manifold.coverage),
                ("recognised", recognised as f64 / count as f64),
                ("inception_score", inception.finish()?),
            ];
            Ok(values.map(|(name, value)| (name.to_owned(), value)).into())
        })
    }
}

/// Images that are drawn together: nearly one size, as the statistics are the part's.
fn parts(count: usize) -> impl Iterator<Item = Range<usize>> {
    let size = count.div_ceil(count.div_ceil(EVALUATION_BATCH).max(1)).max(1);
    (0..count).step_by(size).map(move |start| start..count.min(start + size))
}

impl JudgedGan {
    fn judge(&self) -> Result<&Judge> {
        match &self.judge {
            Some(judge) => Ok(judge),
            None => bail!("generation: expected a judge for scores, got none"),
        }
    }

    /// The Fréchet distance to the validation images.
    pub(super) fn validation(&self, data: &Dataset, ranks: &Ranks) -> Result<f64> {
        let judge = self.judge()?;
        let real = match self.validation.get() {
            Some(real) => real,
            None => {
                let found = judge.features(data, &data.validation, ranks)?;
                self.validation.get_or_init(|| found)
            }
        };
        self.sampler.distance("samples.validation", judge, real, self.criterion.samples, ranks)
    }

    /// All scores against the test images.
    pub(super) fn test(&self, data: &Dataset, ranks: &Ranks) -> Result<Scores> {
        let judge = self.judge()?;
        let real = judge.features(data, &data.test, ranks)?;
        self.sampler.scores("samples.test", judge, &real, &self.criterion, ranks)
    }
}

impl DistillTask for JudgedGan {
    type Batch = GenerationBatch;

    fn sample_ids(batch: &GenerationBatch) -> Arc<[u64]> {
        GenerationTask::sample_ids(batch)
    }

    fn phases(&self) -> &[Phase] {
        self.task.phases()
    }

    fn repeats(&self, phase: &Phase) -> u64 {
        self.task.repeats(phase)
    }

    fn step(&self, batch: &GenerationBatch, phase: &Phase, ctx: &Context) -> Result<StepOutput> {
        self.task.step(batch, phase, ctx)
    }

    fn residual(&self) -> Result<Option<Tensor>> {
        self.task.residual()
    }
}
