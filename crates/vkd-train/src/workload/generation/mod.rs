//! Images made by a generator, whose discriminator learns from a teacher.

mod gan;
mod judge;

pub use gan::{JudgedGan, Sampler};
pub use judge::{Judge, JudgedTeacher, TeacherBatch, TeacherBatches, TeacherTraining};

use super::classification::{self, model};
use super::{Goal, Scores, Stream, Workload};
use crate::batches::{Batches, readable_images};
use crate::build::{feature_loss, normalizers, projector, width};
use crate::data::Dataset;
use crate::folder::RunFolderOf;
use crate::generation::{discriminator_network, generator_network};
use crate::metrics::Moments;
use crate::networks::{frozen_network, network, training_network};
use crate::recipe::{
    ArmConfig, ComputeKind, CovarianceKind, DataConfig, GanCriterionConfig, GanTeacherModel,
    GenerationRecipe, LabelBudget, LossKind, TaskKind, not_with,
};
use crate::run::load_teacher;
use crate::score::{EVALUATION_BATCH, score, scores};
use candle_core::{Device, Error, Result, Tensor, bail};
use candle_nn::VarBuilder;
use judge::{JUDGE, JUDGE_SEED, TEACHER, start_judge};
use serde_json::Value;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use vkd_models::{
    ClipVision, Discriminator, GanConfig, Generator, GeneratorCard, GeneratorModel,
    GeneratorStudent, Model, ModelConfig, write_atomically,
};
use vkd_nn::{Context, VarStore};
use vkd_norm::{Normalizer, Shrinkage, WhitenConfig, Whitener};
use vkd_tasks::{
    Batch, ClassificationAdapter, ClassificationTask, DISCRIMINATOR, FeatureAdapter, GENERATOR,
    GenerationBatch, GenerationConfig, GenerationDistiller, GenerationLoss, GenerationTap,
    GenerationTask, Teacher, TeacherNormalizer,
};

/// Generated images; scores compare them with real ones by the features of a classifier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Generation;

/// Share of a gathered covariance that a batch leaves: it is that of some hundred batches.
const KEEP: f64 = 0.99;

/// Batches of a GAN: images from -1 to 1 with a class each.
pub struct GenerationBatches(Batches);

impl Stream for GenerationBatches {
    type Batch = GenerationBatch;

    fn get(&mut self, number: u64) -> Result<GenerationBatch> {
        let Batch { images, labels, sample_ids } = self.0.get(number)?;
        Ok(GenerationBatch { images, labels, sample_ids })
    }

    fn workers(&self) -> usize {
        self.0.workers()
    }
}

/// The judge as this data set wants it.
fn judge_model(recipe: &GenerationRecipe, data: &Dataset) -> Result<ModelConfig> {
    match (&recipe.criterion.judge, &recipe.teacher.model) {
        (Some(architecture), _) | (None, GanTeacherModel::Classifier(architecture)) => {
            Ok(model(architecture, data))
        }
        (None, GanTeacherModel::Clip(_)) => {
            bail!("criterion.judge: expected a classifier beside a teacher that is none, got none")
        }
    }
}

/// The images that an arm's GAN may see.
fn seen(recipe: &GenerationRecipe, data: &Dataset, arm: &ArmConfig) -> Result<Vec<usize>> {
    match arm.labels {
        LabelBudget::Few => data.labelled(recipe.data.labels, recipe.seed),
        _ => Ok(data.train.clone()),
    }
}

/// The whitening of the teacher's features of the images that the GAN may see.
fn whitening(
    teacher: &Teacher,
    tap: &str,
    config: WhitenConfig,
    data: &Dataset,
    indices: &[usize],
) -> Result<Normalizer> {
    let mut gathered: Option<Moments> = None;
    for chunk in indices.chunks(EVALUATION_BATCH) {
        let (images, read) = readable_images(data, chunk, data.preprocessing())?;
        if read.is_empty() {
            continue;
        }
        let taps = teacher.forward(&images)?.taps;
        let Some(features) = taps.get(tap) else {
            bail!("distill.tap: expected the teacher's tap {tap}, got none")
        };
        let rows = Moments::from_rows(&ClassificationAdapter.adapt(features)?, None)?;
        match &mut gathered {
            Some(all) => all.merge(&rows)?,
            None => gathered = Some(rows),
        }
    }
    match gathered {
        Some(moments) => Ok(Normalizer::Precomputed(Whitener::new(&moments, config)?)),
        None => bail!("distill.covariance: expected images to gather it from, got none"),
    }
}

/// Scores of a saved generator against images `indices`, by the judge of the run that it comes from; and a picture of samples.
///
/// # Errors
/// A generator of other images than the run's, a run whose teacher is not finished, and too few images.
pub fn evaluate_generator(
    student: GeneratorStudent,
    run: &RunFolderOf<Generation>,
    data: &Dataset,
    indices: &[usize],
) -> Result<Scores> {
    let card = &student.card;
    if card.model.channels != data.channels || card.class_names != data.class_names {
        bail!(
            "eval: expected a generator of {} channels and the classes of {}, got {} channels and {}",
            data.channels,
            data.name,
            card.model.channels,
            card.class_names.join(", ")
        )
    }
    let recipe = run.recipe();
    let store = load_teacher(run, data)?;
    let judge = Judge::new(&judge_model(recipe, data)?, data, store.frozen().pp(JUDGE))?;
    let sampler = Sampler::new(student.into_network(), recipe.seed);
    sampler.scores("samples.test", &judge, &judge.features(data, indices)?, &recipe.criterion)
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
        recipe.data.check()?;
        recipe.criterion.check()?;
        let (data, training, teacher) = (&recipe.data, &recipe.training, &recipe.teacher);
        let mut refused = vec![
            // The generator's values run from -1 to 1, so real ones do too.
            ("data.mean".to_owned(), data.mean.is_some()),
            ("data.std".to_owned(), data.std.is_some()),
            ("data.augment.mixup and cutmix".to_owned(), data.augment.mixes()),
            ("training.labelled".to_owned(), training.labelled > 0),
            ("training.smoothing".to_owned(), training.smoothing > 0.),
            ("training.compute = \"bf16\"".to_owned(), training.compute != ComputeKind::F32),
            ("teacher.cache".to_owned(), teacher.cache.is_some()),
            ("init".to_owned(), recipe.init.is_some()),
            ("distill.padding".to_owned(), recipe.distill.padding != Default::default()),
        ];
        for (name, arm) in &recipe.arm {
            let loss = arm.method(&recipe.distill).loss;
            refused.extend([
                (format!("arm.{name}.labels = \"none\""), arm.labels == LabelBudget::None),
                (format!("arm.{name}.logits"), arm.logits > 0.),
                (format!("arm.{name}.logit_loss"), arm.logit_loss.is_some()),
                (format!("arm.{name}: the loss token_matching"), loss.is_rooted()),
            ]);
            if arm.generated.is_some() && arm.features == 0. {
                bail!("arm.{name}.generated: expected it beside features above 0, got no features")
            }
        }
        let refused: Vec<(&str, bool)> =
            refused.iter().map(|(key, on)| (key.as_str(), *on)).collect();
        not_with(TaskKind::Generation, &refused)?;
        if recipe.distill.tap.len() != 1 {
            bail!("distill.tap: expected one for a GAN, got {}", recipe.distill.tap.len())
        }
        if let GanTeacherModel::Clip(_) = teacher.model {
            if teacher.checkpoint.is_none() {
                bail!(
                    "teacher.checkpoint: expected CLIP's weights with teacher.model.kind = \"clip\", got none"
                )
            }
            if recipe.criterion.judge.is_none() {
                bail!("criterion.judge: expected a classifier beside CLIP, which is none, got none")
            }
        }
        Ok(())
    }

    /// Values from -1 to 1, whatever the images' own mean.
    fn open(config: &DataConfig) -> Result<Dataset> {
        let half = || Some(vec![0.5]);
        Dataset::open(&DataConfig { mean: half(), std: half(), ..config.clone() })
    }

    fn check_data(recipe: &GenerationRecipe, data: &Dataset) -> Result<()> {
        let made = recipe.student.generator.image_size();
        if made != data.size {
            bail!(
                "student.generator: expected bottom · 2^stages to be the data's {} pixels, got {made}",
                data.size
            )
        }
        let needed = recipe.criterion.neighbours + 1;
        for (part, indices) in [("validation", &data.validation), ("test", &data.test)] {
            if indices.len() < needed {
                bail!(
                    "data: expected at least {needed} {part} images for the {} neighbours of criterion.neighbours, got {}",
                    recipe.criterion.neighbours,
                    indices.len()
                )
            }
        }
        judge::width(&judge_model(recipe, data)?).map(|_| ())
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

    fn multiply_adds(recipe: &GenerationRecipe, data: &Dataset) -> Result<[Option<usize>; 2]> {
        let teacher = match &recipe.teacher.model {
            GanTeacherModel::Classifier(m) => Some(model(m, data).cost()?.multiply_adds),
            GanTeacherModel::Clip(_) => None,
        };
        let (channels, classes) = (data.channels, data.class_names.len());
        let generator = recipe.student.generator.cost(channels, classes)?;
        Ok([teacher, Some(generator.multiply_adds)])
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
        let method = arm.method(&recipe.distill);
        let [names] = &method.tap[..] else {
            bail!("distill.tap: expected one for a GAN, got {}", method.tap.len())
        };
        let taps = match &recipe.teacher.model {
            GanTeacherModel::Classifier(m) => model(m, data).taps(),
            GanTeacherModel::Clip(clip) => clip.sizes.taps(),
        };
        let student_width = width("student", &recipe.student.discriminator.taps(), &names.student)?;
        let teacher_width = width("teacher", &taps, &names.teacher)?;
        let [student_normalizer, normalizer] = normalizers(arm, &method)?;
        let teacher_normalizer = match normalizer {
            Normalizer::Whiten(config) => {
                let own = method.shrinkage.map(Shrinkage::Fixed);
                let whiten = WhitenConfig { shrinkage: own.unwrap_or(config.shrinkage), ..config };
                match (method.covariance, teacher) {
                    (CovarianceKind::Running, _) => {
                        TeacherNormalizer::Running { whiten, keep: KEEP }
                    }
                    (CovarianceKind::Data, Some(teacher)) => {
                        let seen = seen(recipe, data, arm)?;
                        TeacherNormalizer::Fixed(whitening(
                            &teacher.teacher,
                            &names.teacher,
                            whiten,
                            data,
                            &seen,
                        )?)
                    }
                    // Without a teacher yet only numbers are checked.
                    _ => TeacherNormalizer::Fixed(Normalizer::Whiten(whiten)),
                }
            }
            other => TeacherNormalizer::Fixed(other),
        };
        let tap = GenerationTap {
            student: names.student.clone(),
            student_width,
            teacher: names.teacher.clone(),
            teacher_width,
            projector: projector(arm, &method, teacher_width, recipe.seed)?,
            student_normalizer,
            teacher_normalizer,
            together: true,
            loss: match method.loss {
                LossKind::KdDlgan => GenerationLoss::KdDlgan { texts: None },
                _ => GenerationLoss::Feature(feature_loss(&method)?),
            },
            real_weight: arm.features * names.weight,
            generated_weight: arm.generated.unwrap_or(arm.features) * names.weight,
        };
        GenerationDistiller::new(tap, store.builder().pp(DISCRIMINATOR).pp("projector"))
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
        let batches = |seed| {
            Batches::new(data, data.train.clone(), recipe.teacher.batch, 0, &recipe.data, seed)
        };
        Ok(TeacherBatches { teacher: batches(recipe.seed)?, judge: batches(JUDGE_SEED)? })
    }

    /// The lower of the two accuracies.
    fn validate_teacher(
        task: &TeacherTraining,
        _recipe: &GenerationRecipe,
        data: &Dataset,
    ) -> Result<f64> {
        let accuracy = |task: &ClassificationTask| {
            score(|images| task.evaluate(images), data, &data.validation)
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
        let (sampler, _) = build(store.frozen()).map_err(named)?;
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

    fn check_task(task: &JudgedGan, _recipe: &GenerationRecipe, data: &Dataset) -> Result<()> {
        task.task.check(&real(data, &data.train[..data.train.len().min(2)])?)
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
                let encoder = network(encoder);
                Teacher::new(move |images: &Tensor, ctx: &Context| {
                    encoder(&input.apply(images, size)?, ctx)
                })
            }
        };
        let judge = Judge::new(&judge_model(recipe, data)?, data, vb.pp(JUDGE))?;
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
        Ok((GenerationBatches(batches), images))
    }

    fn first(batch: &GenerationBatch, count: usize) -> Result<GenerationBatch> {
        Ok(GenerationBatch {
            images: batch.images.narrow(0, 0, count)?,
            labels: batch.labels.narrow(0, 0, count)?,
            sample_ids: batch.sample_ids.iter().take(count).copied().collect(),
        })
    }

    fn validate(task: &JudgedGan, _recipe: &GenerationRecipe, data: &Dataset) -> Result<f64> {
        task.validation(data)
    }

    fn scores(task: &JudgedGan, recipe: &GenerationRecipe, data: &Dataset) -> Result<Scores> {
        let mut found = task.test(data)?;
        found.insert("validation_frechet".to_owned(), Self::validate(task, recipe, data)?);
        Ok(found)
    }

    /// Those of a classifier; of CLIP only its judge's `validation_accuracy`. The judge must reach the floor too.
    fn teacher_scores(
        teacher: &JudgedTeacher,
        recipe: &GenerationRecipe,
        data: &Dataset,
    ) -> Result<Scores> {
        let judge = |images: &Tensor| -> Result<vkd_tasks::NetworkOutput> {
            Ok(vkd_tasks::NetworkOutput::new(teacher.judge.look(images)?.1))
        };
        let (of_judge, floor) = (scores(judge, data)?, recipe.teacher.floor);
        let of = |key: &str| of_judge.get(key).copied().unwrap_or(f64::NAN);
        // Negated so that NaN stops the run.
        if !(of("validation_accuracy") >= floor) {
            bail!(
                "judge: expected a validation accuracy of at least {floor} (teacher.floor), got {:.4}; its features would measure little",
                of("validation_accuracy")
            )
        }
        let mut found = match &recipe.teacher.model {
            GanTeacherModel::Classifier(_) => {
                scores(|images| teacher.teacher.forward(images), data)?
            }
            GanTeacherModel::Clip(_) => {
                Scores::from([("validation_accuracy".to_owned(), of("validation_accuracy"))])
            }
        };
        found.insert("judge_accuracy".to_owned(), of("accuracy"));
        Ok(found)
    }

    fn geometry(
        task: &JudgedGan,
        _recipe: &GenerationRecipe,
        data: &Dataset,
    ) -> Result<Vec<(String, f64)>> {
        let images = &data.validation[..data.validation.len().min(EVALUATION_BATCH)];
        task.task.geometry(&real(data, images)?)
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

/// Real images with their classes, as they are.
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

/// A picture of samples of a saved generator: a column for each of the first classes, ten rows.
///
/// # Errors
/// Those of the network.
pub fn generator_grid(student: GeneratorStudent, seed: u64) -> Result<crate::data::Image> {
    Sampler::new(student.into_network(), seed).grid()
}
