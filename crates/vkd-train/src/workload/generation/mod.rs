//! Images made by a generator, whose discriminator learns from a teacher.

mod check;
mod extractor;
mod gan;
mod judge;
mod matching;
mod saved;
mod texts;

pub use gan::{JudgedGan, Sampler};
pub use judge::{Judge, JudgedTeacher, TeacherBatch, TeacherBatches, TeacherTraining};
pub use saved::{evaluate_generator, generator_grid};

use super::classification::{self, model};
use super::{Goal, Scores, Stream, Workload};
use crate::batches::{Batches, readable_images};
use crate::data::Dataset;
use crate::generation::{discriminator_network, generator_network};
use crate::networks::{frozen_network, network, training_network};
use crate::ranks::Ranks;
use crate::recipe::{
    ArmConfig, DataConfig, GanCriterionConfig, GanTeacherModel, GenerationRecipe, TaskKind,
};
use crate::score::{EVALUATION_BATCH, score, scores};
use crate::share::Share;
use candle_core::{Device, Error, Result, Tensor};
use candle_nn::VarBuilder;
use check::has_texts;
use judge::{JUDGE, JUDGE_SEED, TEACHER, start_judge};
use matching::{judge_model, seen};
use serde_json::Value;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use vkd_models::{
    ClipVision, Discriminator, GanConfig, Generator, GeneratorCard, GeneratorModel,
    GeneratorStudent, Model, write_atomically,
};
use vkd_nn::{Context, VarStore};
use vkd_tasks::{
    Batch, ClassificationTask, DISCRIMINATOR, GENERATOR, GenerationBatch, GenerationConfig,
    GenerationDistiller, GenerationTask, NetworkOutput, Teacher,
};

/// Generated images; scores compare them with real ones by the features of a classifier or of Inception-v3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Generation;

/// Batches of a GAN: images from -1 to 1 with a class each.
pub struct GenerationBatches(Batches);

impl Stream for GenerationBatches {
    type Batch = GenerationBatch;

    fn get(&mut self, number: u64) -> Result<GenerationBatch> {
        let Batch { images, labels, sample_ids } = self.0.get(number)?;
        Ok(GenerationBatch { images, labels, sample_ids })
    }

    /// A block, as images are never mixed here: noise follows the row of a batch.
    fn share(&mut self, share: Share) -> Result<()> {
        self.0.share(share)
    }

    fn workers(&self) -> usize {
        self.0.workers()
    }
}

impl Workload for Generation {
    const KIND: TaskKind = TaskKind::Generation;
    const GOAL: Goal = Goal::less("frechet");
    const TEACHER_METRIC: &'static str = "accuracy";
    const SAVED: &'static str = GENERATOR;
    const TEACHER_PREFIX: Option<&'static str> = Some(TEACHER);
    const PATHS: &'static [&'static str] = &["data.dir"];
    type DataConfig = DataConfig;
    type TeacherModel = GanTeacherModel;
    type StudentModel = GanConfig;
    type Criterion = GanCriterionConfig;
    type Data = Dataset;
    type Task = JudgedGan;
    type Batches = GenerationBatches;
    type TeacherTask = TeacherTraining;
    type TeacherBatches = TeacherBatches;
    type Teacher = JudgedTeacher;
    type Distiller = GenerationDistiller;

    fn check(recipe: &GenerationRecipe) -> Result<()> {
        check::recipe(recipe)
    }

    /// Values from -1 to 1, whatever the images' own mean.
    fn open(config: &DataConfig) -> Result<Dataset> {
        let half = || Some(vec![0.5]);
        Dataset::open(&DataConfig { mean: half(), std: half(), ..config.clone() })
    }

    fn check_data(recipe: &GenerationRecipe, data: &Dataset) -> Result<()> {
        check::with_data(recipe, data)
    }

    fn files(recipe: &GenerationRecipe) -> Vec<(&'static str, &Path)> {
        let inception = recipe.criterion.inception.iter();
        inception.map(|i| ("criterion.inception.weights", i.weights.as_path())).collect()
    }

    fn identify(recipe: &GenerationRecipe, data: &Dataset, settings: &mut BTreeMap<String, Value>) {
        classification::identify(recipe.data.kind, data, settings);
    }

    fn declare_teacher(recipe: &GenerationRecipe, data: &Dataset, vb: VarBuilder) -> Result<()> {
        judge_model(recipe, data)?.build(vb.pp(JUDGE))?;
        match &recipe.teacher.model {
            GanTeacherModel::Classifier(m) => model(m, data).build(vb.pp(TEACHER)).map(|_| ()),
            GanTeacherModel::Clip(clip) => ClipVision::new(&clip.sizes, vb.pp(TEACHER)).map(|_| ()),
        }
    }

    fn multiply_adds(recipe: &GenerationRecipe, data: &Dataset) -> Result<[usize; 2]> {
        let teacher = match &recipe.teacher.model {
            GanTeacherModel::Classifier(m) => model(m, data).cost()?.multiply_adds,
            GanTeacherModel::Clip(clip) => clip.sizes.multiply_adds(),
        };
        let (channels, classes) = (data.channels, data.class_names.len());
        let generator = recipe.student.generator.cost(channels, classes)?;
        Ok([teacher, generator.multiply_adds])
    }

    fn wants_teacher(_arm: &ArmConfig) -> bool {
        // The judge lies beside it.
        true
    }

    fn term_weights(recipe: &GenerationRecipe, arm: &ArmConfig) -> BTreeMap<String, f64> {
        let mut all = vec![
            (format!("{DISCRIMINATOR}.hinge.real"), 1.),
            (format!("{DISCRIMINATOR}.hinge.generated"), 1.),
            (format!("{GENERATOR}.hinge"), 1.),
        ];
        if let Some(lecam) = recipe.criterion.lecam() {
            all.push((format!("{DISCRIMINATOR}.lecam"), lecam.weight));
        }
        for tap in &recipe.distill.tap {
            let generated = arm.generated.unwrap_or(arm.features);
            for (side, weight) in [("real", arm.features), ("generated", generated)] {
                all.push((format!("{DISCRIMINATOR}.{side}.{}", tap.student), weight * tap.weight));
                if has_texts(&arm.method(&recipe.distill)) {
                    all.push((format!("{DISCRIMINATOR}.{side}.texts"), weight * tap.weight));
                }
            }
        }
        all.into_iter().filter(|(_, weight)| *weight > 0.).collect()
    }

    fn distiller(
        recipe: &GenerationRecipe,
        arm: &ArmConfig,
        data: &Dataset,
        store: &VarStore,
        teacher: Option<&JudgedTeacher>,
    ) -> Result<GenerationDistiller> {
        matching::distiller(recipe, arm, data, store, teacher)
    }

    fn teacher_task(
        recipe: &GenerationRecipe,
        data: &Dataset,
        store: &VarStore,
    ) -> Result<Option<TeacherTraining>> {
        let config = &recipe.teacher;
        let classifier = |model, part| {
            let network = training_network(model, config.compute, store, Some(part))?;
            ClassificationTask::new(network, None, config.smoothing)
        };
        let teacher = match (&config.model, &config.checkpoint) {
            (GanTeacherModel::Classifier(m), None) => Some(classifier(model(m, data), TEACHER)?),
            _ => None,
        };
        let judge = judge_model(recipe, data)?;
        start_judge(&judge, store)?;
        Ok(Some(TeacherTraining::new(teacher, classifier(judge, JUDGE)?)))
    }

    fn teacher_batches(recipe: &GenerationRecipe, data: &Dataset) -> Result<TeacherBatches> {
        let batches = |seed| -> Result<Batches> {
            let (images, batch) = (data.train.clone(), recipe.teacher.batch);
            let batches = Batches::new(data, images, batch, 0, &recipe.data, seed)?;
            Ok(batches.of_teacher().on(recipe.training.device))
        };
        Ok(TeacherBatches { teacher: batches(recipe.seed)?, judge: batches(JUDGE_SEED)? })
    }

    /// The lower of the two accuracies.
    fn validate_teacher(
        task: &TeacherTraining,
        _recipe: &GenerationRecipe,
        data: &Dataset,
        ranks: &Ranks,
    ) -> Result<f64> {
        let accuracy = |task: &ClassificationTask| {
            score(|images| task.evaluate(images), data, &data.validation, ranks)
        };
        let judge = accuracy(&task.judge)?;
        Ok(task.teacher.as_ref().map(accuracy).transpose()?.map_or(judge, |t| t.min(judge)))
    }

    fn student_task(
        recipe: &GenerationRecipe,
        data: &Dataset,
        store: &VarStore,
        teacher: Option<JudgedTeacher>,
        distiller: Option<GenerationDistiller>,
    ) -> Result<JudgedGan> {
        let (channels, classes) = (data.channels, data.class_names.len());
        let named = |e| Error::Msg(format!("student: {}", crate::plain(&e)));
        let build = |vb: VarBuilder| -> Result<(Generator, Discriminator)> {
            let GanConfig { generator, discriminator } = &recipe.student;
            Ok((
                Generator::new(generator, channels, classes, vb.pp(GENERATOR))?,
                Discriminator::new(discriminator, channels, classes, vb.pp(DISCRIMINATOR))?,
            ))
        };
        let (generator, discriminator) = build(store.builder()).map_err(named)?;
        let (frozen_generator, frozen) = build(store.frozen()).map_err(named)?;
        let vb = store.frozen().pp(GENERATOR);
        let sampler = Generator::new(&recipe.student.generator, channels, classes, vb)?;
        let (teacher, judge) = match teacher {
            Some(JudgedTeacher { teacher, judge }) => (Some(teacher), Some(judge)),
            None => (None, None),
        };
        let criterion = recipe.criterion.clone();
        let config = GenerationConfig {
            noise: recipe.student.generator.noise,
            classes,
            discriminator_steps: criterion.discriminator_steps,
            augment: criterion.augment(),
            lecam: criterion.lecam(),
        };
        let task = GenerationTask::new(
            generator_network(generator),
            discriminator_network(discriminator),
            teacher.zip(distiller),
            config,
            store.builder(),
        )?
        .with_frozen(discriminator_network(frozen))
        .with_frozen_generator(generator_network(frozen_generator));
        let sampler = Sampler::new(sampler, recipe.seed);
        Ok(JudgedGan { task, sampler, judge, validation: OnceCell::new(), criterion })
    }

    fn check_task(task: &JudgedGan, recipe: &GenerationRecipe, data: &Dataset) -> Result<()> {
        let two = real(data, &data.train[..data.train.len().min(2)])?;
        task.task.check(&two.to_device(&recipe.device()?)?)
    }

    fn teacher(
        recipe: &GenerationRecipe,
        data: &Dataset,
        store: &VarStore,
    ) -> Result<JudgedTeacher> {
        let vb = store.frozen();
        let teacher = match &recipe.teacher.model {
            GanTeacherModel::Classifier(m) => Teacher::new(frozen_network(
                &model(m, data),
                recipe.teacher.compute,
                vb.pp(TEACHER),
            )?),
            GanTeacherModel::Clip(clip) => {
                let (input, size) = (clip.input, clip.sizes.image_size);
                let encoder: Box<dyn Model> =
                    Box::new(ClipVision::new(&clip.sizes, vb.pp(TEACHER))?);
                let (encoder, device) = (network(encoder), vb.device().clone());
                Teacher::new(move |images: &Tensor, ctx: &Context| {
                    encoder(&input.apply(&images.to_device(&device)?, size)?, ctx)
                })
            }
        };
        let judge = Judge::new(&judge_model(recipe, data)?, data, &recipe.criterion, vb.pp(JUDGE))?;
        Ok(JudgedTeacher { teacher, judge })
    }

    fn batches(
        recipe: &GenerationRecipe,
        data: &Dataset,
        arm: &ArmConfig,
    ) -> Result<(GenerationBatches, usize)> {
        let (seen, count) = (seen(recipe, data, arm)?, recipe.training.batch);
        let images = seen.len();
        let batches = Batches::new(data, seen, count, 0, &recipe.data, recipe.seed)?;
        Ok((GenerationBatches(batches.on(recipe.training.device)), images))
    }

    fn first(batch: &GenerationBatch, count: usize) -> Result<GenerationBatch> {
        Ok(GenerationBatch {
            images: batch.images.narrow(0, 0, count)?,
            labels: batch.labels.narrow(0, 0, count)?,
            sample_ids: batch.sample_ids.iter().take(count).copied().collect(),
        })
    }

    fn validate(
        task: &JudgedGan,
        _recipe: &GenerationRecipe,
        data: &Dataset,
        ranks: &Ranks,
    ) -> Result<f64> {
        task.validation(data, ranks)
    }

    fn scores(
        task: &JudgedGan,
        recipe: &GenerationRecipe,
        data: &Dataset,
        ranks: &Ranks,
    ) -> Result<Scores> {
        let mut found = task.test(data, ranks)?;
        found.insert("validation_frechet".to_owned(), Self::validate(task, recipe, data, ranks)?);
        Ok(found)
    }

    fn extractor(task: &JudgedGan) -> Option<String> {
        task.judge.as_ref().and_then(|judge| judge.extractor()).map(str::to_owned)
    }

    /// Those of a classifier, and the judge's accuracies, which alone there are beside CLIP.
    fn teacher_scores(
        teacher: &JudgedTeacher,
        recipe: &GenerationRecipe,
        data: &Dataset,
        ranks: &Ranks,
    ) -> Result<Scores> {
        let judge = |images: &Tensor| -> Result<NetworkOutput> {
            Ok(NetworkOutput::new(teacher.judge.logits(images)?))
        };
        let of_judge = scores(judge, data, ranks)?;
        let mut found = match &recipe.teacher.model {
            GanTeacherModel::Classifier(_) => {
                scores(|images| teacher.teacher.forward(images), data, ranks)?
            }
            GanTeacherModel::Clip(_) => Scores::new(),
        };
        for (name, of) in
            [("judge_accuracy", "accuracy"), ("judge_validation_accuracy", "validation_accuracy")]
        {
            found.extend(of_judge.get(of).map(|value| (name.to_owned(), *value)));
        }
        Ok(found)
    }

    /// The lower of the accuracies of teacher and judge on the validation images; of CLIP only the judge's is known.
    fn floor_score(scores: &Scores) -> f64 {
        let known = ["validation_accuracy", "judge_validation_accuracy"];
        let values = known.iter().filter_map(|name| scores.get(*name)).copied();
        // A NaN stays one.
        values.reduce(|a, b| if b < a || b.is_nan() { b } else { a }).unwrap_or(f64::NAN)
    }

    fn geometry(
        task: &JudgedGan,
        recipe: &GenerationRecipe,
        data: &Dataset,
    ) -> Result<Vec<(String, f64)>> {
        let images = &data.validation[..data.validation.len().min(EVALUATION_BATCH)];
        task.task.geometry(&real(data, images)?.to_device(&recipe.device()?)?)
    }

    fn illustrate(task: &JudgedGan, folder: &Path, step: u64) -> Result<()> {
        let picture = task.sampler.grid()?.to_png()?;
        Ok(write_atomically(&folder.join(format!("samples-{step:06}.png")), &picture)?)
    }

    fn save(
        path: &Path,
        recipe: &GenerationRecipe,
        data: &Dataset,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let model = GeneratorModel {
            channels: data.channels,
            classes: data.class_names.len(),
            generator: recipe.student.generator.clone(),
        };
        let preprocessing = data.preprocessing().clone();
        let card = GeneratorCard::new(model, preprocessing, data.class_names.clone());
        GeneratorStudent::save(path, &card, tensors)
    }
}

/// Real images with their classes, as they are, on the CPU.
fn real(data: &Dataset, indices: &[usize]) -> Result<GenerationBatch> {
    let (images, read) = readable_images(data, indices, data.preprocessing())?;
    let labels: Vec<u32> = read.iter().map(|&i| data.label(i)).collect();
    let count = labels.len();
    Ok(GenerationBatch {
        images,
        labels: Tensor::from_vec(labels, count, &Device::Cpu)?,
        sample_ids: read.iter().map(|&i| i as u64).collect(),
    })
}
