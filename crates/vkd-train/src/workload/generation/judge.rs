//! The classifier that knows the data, whose features scores are of unless Inception's are, and the teacher beside it.

use super::super::Stream;
use super::extractor::Extractor;
use crate::batches::{Batches, readable_images};
use crate::data::Dataset;
use crate::metrics::Features;
use crate::ranks::Ranks;
use crate::recipe::GanCriterionConfig;
use crate::score::EVALUATION_BATCH;
use crate::share::Share;
use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::sync::Arc;
use vkd_models::{Model, ModelConfig};
use vkd_nn::{Context, VarStore, softmax};
use vkd_tasks::{Batch, ClassificationTask, DistillTask, Phase, StepOutput, Teacher};

/// Variables of the teacher in its store, and the phase that trains them.
pub(super) const TEACHER: &str = "teacher";
/// Variables of the judge in the same store, and the phase that trains them.
pub(super) const JUDGE: &str = "judge";

/// Seed of everything random in the judge. No run's seed changes it, so that all are measured by the same.
pub(super) const JUDGE_SEED: u64 = 0x006a_7564_6765;

/// The tap that scores are of.
const TAP: &str = "pooled";

/// A classifier that no GAN sees. Scores are distances of its features, or of Inception's where the recipe names its weights; what class a
/// sample is of, it says itself.
pub struct Judge {
    model: Box<dyn Model>,
    extractor: Option<Extractor>,
    name: String,
    width: usize,
    /// Classes of what the Inception score is of.
    classes: usize,
    /// Rows of features that are kept of each side: as many as there are samples, because coverage and recall depend on both numbers.
    keep: usize,
    device: Device,
}

/// What a [`Judge`] finds in images.
pub(super) struct Look {
    /// Features that scores are of.
    pub(super) features: Tensor,
    /// Probabilities of the classes that the Inception score is of.
    pub(super) probabilities: Tensor,
    /// The judge's logits, of the data's own classes.
    pub(super) logits: Tensor,
}

impl Judge {
    /// The judge whose weights `vb` holds, as constants.
    pub(super) fn new(
        config: &ModelConfig,
        data: &Dataset,
        criterion: &GanCriterionConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        let device = vb.device().clone();
        let extractor = Extractor::of(criterion, &device)?;
        let (name, width, classes) = match &extractor {
            Some(own) => (own.name.clone(), own.width(), own.classes()),
            None => {
                let name = format!("a classifier of the {} training images", data.train.len());
                (name, width(config)?, config.classes)
            }
        };
        let (model, keep) = (config.build(vb)?, criterion.samples);
        Ok(Self { model, extractor, name, width, classes, keep, device })
    }

    /// What made the features, where the judge did not.
    pub(super) fn extractor(&self) -> Option<&str> {
        self.extractor.as_ref().map(|own| own.name.as_str())
    }

    /// Classes of what the Inception score is of.
    pub(super) fn classes(&self) -> usize {
        self.classes
    }

    /// All that scores are made of; the images may lie anywhere.
    pub(super) fn look(&self, images: &Tensor) -> Result<Look> {
        let images = images.to_device(&self.device)?;
        let output = self.model.forward(&images, &Context::eval())?;
        let logits = output.prediction()?;
        let (features, probabilities) = match &self.extractor {
            Some(own) => own.look(&images)?,
            None => (output.tap(TAP)?.clone(), softmax(&logits)?),
        };
        Ok(Look { features, probabilities, logits })
    }

    /// The judge's logits alone.
    pub(super) fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let images = images.to_device(&self.device)?;
        self.model.forward(&images, &Context::eval())?.prediction()
    }

    /// No features yet.
    pub(super) fn nothing(&self) -> Result<Features> {
        Features::new(&self.name, self.width, self.keep)
    }

    /// Features of images of the data set, all of them on the first rank; each rank looks at some of the images.
    pub(super) fn features(
        &self,
        data: &Dataset,
        indices: &[usize],
        ranks: &Ranks,
    ) -> Result<Features> {
        let mut found = self.nothing()?;
        let passes: Vec<&[usize]> = indices.chunks(EVALUATION_BATCH).collect();
        let look = |pass: usize| {
            let (images, read) = readable_images(data, passes[pass], data.preprocessing())?;
            match read.is_empty() {
                true => Ok(None),
                false => Ok(Some([self.look(&images)?.features])),
            }
        };
        ranks.in_turn(passes.len(), look, |[features]| found.add(&features))?;
        Ok(found)
    }
}

/// The width of a judge's features.
pub(super) fn width(config: &ModelConfig) -> Result<usize> {
    match config.taps().get(TAP) {
        Some(width) => Ok(*width),
        None => bail!("criterion.judge: expected an architecture with the tap {TAP}, got none"),
    }
}

/// What arms are given: the teacher they learn from, and the judge.
pub struct JudgedTeacher {
    pub(super) teacher: Teacher,
    pub(super) judge: Judge,
}

/// A batch for each of the two.
pub struct TeacherBatch {
    teacher: Batch,
    judge: Batch,
}

/// Batches of the teacher, by the run's seed, and of the judge, by its own.
pub struct TeacherBatches {
    pub(super) teacher: Batches,
    pub(super) judge: Batches,
}

impl Stream for TeacherBatches {
    type Batch = TeacherBatch;

    fn get(&mut self, number: u64) -> Result<TeacherBatch> {
        Ok(TeacherBatch { teacher: self.teacher.get(number)?, judge: self.judge.get(number)? })
    }

    fn share(&mut self, share: Share) -> Result<()> {
        self.teacher.share(share)?;
        self.judge.share(share)
    }

    fn workers(&self) -> usize {
        self.teacher.workers().max(self.judge.workers())
    }
}

/// Trains the judge, and the teacher where it was not given.
pub struct TeacherTraining {
    pub(super) teacher: Option<ClassificationTask>,
    pub(super) judge: ClassificationTask,
    phases: Vec<Phase>,
}

impl TeacherTraining {
    pub(super) fn new(teacher: Option<ClassificationTask>, judge: ClassificationTask) -> Self {
        let teachers = teacher.is_some().then_some(Phase { name: TEACHER, prefix: "teacher." });
        let phases = teachers.into_iter().chain([Phase { name: JUDGE, prefix: "judge." }]);
        Self { teacher, judge, phases: phases.collect() }
    }
}

impl DistillTask for TeacherTraining {
    type Batch = TeacherBatch;

    fn sample_ids(batch: &TeacherBatch) -> Arc<[u64]> {
        batch.teacher.sample_ids.clone()
    }

    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn step(&self, batch: &TeacherBatch, phase: &Phase, ctx: &Context) -> Result<StepOutput> {
        let (task, batch, ctx) = match (&self.teacher, phase.name) {
            (Some(teacher), TEACHER) => (teacher, &batch.teacher, ctx.clone()),
            _ => {
                let sample_ids = batch.judge.sample_ids.clone();
                (&self.judge, &batch.judge, Context { seed: JUDGE_SEED, sample_ids, ..ctx.clone() })
            }
        };
        // A classifier's step is the same in any phase.
        task.step(batch, phase, &ctx)
    }
}

/// Sets the judge's variables in `store` to those of its own seed.
pub(super) fn start_judge(config: &ModelConfig, store: &VarStore) -> Result<()> {
    let own = VarStore::new(JUDGE_SEED, DType::F32, store.builder().device());
    config.build(own.builder().pp(JUDGE))?;
    let values = own.tensors();
    for (name, var) in store.parameters() {
        if let Some(value) = values.get(&name) {
            var.set(value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::GenerationRecipe;
    use crate::workload::{Generation, Workload};

    #[test]
    fn a_rank_has_its_part_of_both() -> Result<()> {
        let text = include_str!("../../../tests/gan.toml");
        let recipe = GenerationRecipe::parse(text, "gan.toml", &[])?;
        let data = Generation::open(&recipe.data)?;
        let whole = Generation::teacher_batches(&recipe, &data)?.get(3)?;
        assert_ne!(whole.teacher.sample_ids, whole.judge.sample_ids);
        for rank in 0..4 {
            let mut batches = Generation::teacher_batches(&recipe, &data)?;
            batches.share(Share::new(rank, 4)?)?;
            let part = batches.get(3)?;
            for (part, whole) in [(part.teacher, &whole.teacher), (part.judge, &whole.judge)] {
                let own = 5 * rank..5 * rank + 5;
                assert_eq!(part.sample_ids[..], whole.sample_ids[own.clone()]);
                assert_eq!(part.labels.to_vec1::<u32>()?, whole.labels.to_vec1::<u32>()?[own]);
                let values = |images: &Tensor| images.flatten_all()?.to_vec1::<f32>();
                let block = whole.images.narrow(0, 5 * rank, 5)?;
                assert_eq!(values(&part.images)?, values(&block)?);
            }
        }
        Ok(())
    }
}
