//! What n ranks must train as one process does: the three tasks, 50 steps each.

use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::BTreeMap;
use vkd_models::{Discriminator, Generator};
use vkd_nn::VarStore;
use vkd_tasks::{
    Batch, ClassificationTask, DISCRIMINATOR, DetectionBatch, DiffAugment, DistillTask, GENERATOR,
    GenerationBatch, GenerationConfig, GenerationTask, LecamConfig, Teacher,
};
use vkd_train::{
    Checkpoints, Classification, Detection, DetectionRecipe, EventKind, Generation,
    GenerationRecipe, Goal, Ranks, Recipe, RecipeOf, Share, Stream, TrainerConfig, Workload,
    discriminator_network, generator_network, network, train,
};

/// Losses by step and variables by name.
pub(crate) type Trained = (Vec<f64>, BTreeMap<String, Vec<f64>>);

fn wide(t: &Tensor) -> Result<Tensor> {
    t.to_dtype(DType::F64)
}

/// Trains `task` for the recipe's steps.
fn trained<W: Workload, T: DistillTask>(
    recipe: &RecipeOf<W>,
    ranks: &Ranks,
    store: &VarStore,
    task: &T,
    mut batch: impl FnMut(u64) -> Result<T::Batch>,
) -> Result<Trained> {
    let folder = tempfile::tempdir()?;
    let config = TrainerConfig {
        arm: "vkd",
        seed: recipe.seed,
        goal: Goal::more("accuracy"),
        training: &recipe.training,
        checkpoints: &Checkpoints::new(folder.path(), 1),
        ranks,
    };
    let mut losses = Vec::new();
    train(task, store, &config, None, &mut batch, || Ok(0.), &mut |event| {
        if let EventKind::Step { loss, .. } = &event.kind {
            losses.push(*loss);
        }
        Ok(())
    })?;
    let values =
        |(name, t): (String, Tensor)| Ok((name, wide(&t)?.flatten_all()?.to_vec1::<f64>()?));
    Ok((losses, store.tensors().into_iter().map(values).collect::<Result<_>>()?))
}

/// Largest difference; of numbers above one, relative to the largest.
fn apart(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1f64, |m, v| m.max(v.abs()));
    got.iter().zip(want).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// Whether rounding alone moves a variable: the bias of a convolution before a batch norm, or of keys, has a gradient of zero but
/// for rounding, which AdamW divides by its epsilon of 1e-8. A stored mean takes such a bias in.
fn is_moved_by_rounding(name: &str) -> bool {
    ["bias", "stored_mean", "running_mean"].iter().any(|end| name.ends_with(end))
}

/// Ranks end where one process does: losses and variables `within`, those that rounding moves ten times that.
pub(crate) fn compare(what: &str, within: f64, got: &Trained, want: &Trained) {
    if !got.0.is_empty() {
        let of_losses = apart(&got.0, &want.0);
        assert!(of_losses < within, "{what}: losses are {of_losses:e} apart");
    }
    for (name, want) in &want.1 {
        let found = apart(&got.1[name], want);
        let within = if is_moved_by_rounding(name) { 10. * within } else { within };
        assert!(found < within, "{what}: {name} is {found:e} apart");
    }
}

/// What one process does, which must learn something.
pub(crate) fn alone(law: &Law) -> Result<Trained> {
    let found = (law.train)(&Ranks::alone())?;
    assert_eq!(found.0.len(), 50, "{}", law.name);
    assert!(found.0[49] < found.0[0], "{}: nothing was learnt: {:?}", law.name, found.0);
    Ok(found)
}

/// Trains as one of some ranks.
pub(crate) type Train = dyn Fn(&Ranks) -> Result<Trained> + Sync;

/// One training that ranks and a process alone must do alike.
pub(crate) struct Law {
    pub(crate) name: String,
    pub(crate) within: f64,
    pub(crate) train: Box<Train>,
}

impl Law {
    fn new(
        name: &str,
        within: f64,
        train: impl Fn(&Ranks) -> Result<Trained> + Sync + 'static,
    ) -> Self {
        Self { name: name.to_owned(), within, train: Box::new(train) }
    }
}

fn set(settings: &[&str]) -> Vec<String> {
    settings.iter().map(|s| (*s).to_owned()).collect()
}

fn classification(settings: &[&str], dtype: DType, ranks: &Ranks) -> Result<Trained> {
    let recipe = Recipe::parse(include_str!("../tiny.toml"), "tiny.toml", &set(settings))?;
    let data = Classification::open(&recipe.data)?;
    let arm = recipe.arm("vkd")?;
    let model = |architecture: &vkd_models::Architecture| vkd_models::ModelConfig {
        image_size: data.size,
        channels: data.channels,
        classes: data.class_names.len(),
        architecture: architecture.clone(),
    };
    let taught = VarStore::new(5, dtype, &Device::Cpu);
    model(&recipe.teacher.model).build(taught.builder())?;
    let teacher = Teacher::new(network(model(&recipe.teacher.model).build(taught.frozen())?));
    let store = VarStore::new(recipe.seed, dtype, &Device::Cpu);
    let student = network(model(&recipe.student).build(store.builder().pp("student"))?);
    let distiller = Classification::distiller(&recipe, arm, &data, &store, None)?;
    let task = ClassificationTask::new(student, Some((teacher, distiller)), 0.1)?;
    let mut batches = Classification::batches(&recipe, &data, arm)?.0;
    batches.share(Share::new(ranks.rank(), ranks.size())?)?;
    trained(&recipe, ranks, &store, &task, |number| {
        let batch = Stream::get(&mut batches, number)?;
        let labels = match batch.labels.dtype() {
            DType::F32 => batch.labels.to_dtype(dtype)?,
            _ => batch.labels.clone(),
        };
        Ok(Batch { images: batch.images.to_dtype(dtype)?, labels, ..batch })
    })
}

const FIFTY: [&str; 6] = [
    "training.steps=50",
    "training.evaluate_every=25",
    "training.checkpoint_every=25",
    "training.log_every=1",
    "training.batch=16",
    "training.labelled=8",
];

pub(crate) fn classification_with_every_normaliser() -> Vec<Law> {
    let normalizers =
        ["layer_norm", "standardize", "whiten", "whiten_zca", "whiten_pca", "whiten_newton_schulz"];
    let law = |normalizer: &str| {
        let teacher = format!("distill.teacher_normalizer=\"{normalizer}\"");
        let student = match normalizer {
            "layer_norm" => "distill.student_normalizer=\"identity\"".to_owned(),
            _ => format!("distill.student_normalizer=\"{normalizer}\""),
        };
        // Its axes turn by rounding over the gap to the next eigenvalue: 8e-10 were found.
        let within = if normalizer == "whiten_pca" { 1e-8 } else { 1e-10 };
        Law::new(normalizer, within, move |ranks| {
            let settings = [&FIFTY[..], &[&teacher, &student]].concat();
            classification(&settings, DType::F64, ranks)
        })
    };
    normalizers.into_iter().map(law).collect()
}

/// A student with batch norm, mixed images, several micro-batches, and a loss on relations within the batch.
pub(crate) fn classification_with_batch_norm_mixing_and_relations() -> Vec<Law> {
    let settings = [
        &FIFTY[..],
        &[
            "student={kind=\"cnn\", widths=[4, 8]}",
            "distill.tap=[{student=\"pooled\", teacher=\"pooled\"}]",
            "distill.loss=\"spkd\"",
            "data.augment.mixup=0.8",
            "training.accumulate=2",
            "training.ema_decay=0.9",
            "training.clip_norm=1.0",
            "training.bucket_mib=1",
        ],
    ]
    .concat();
    let train = move |ranks: &Ranks| classification(&settings, DType::F64, ranks);
    vec![Law::new("batch norm", 1e-10, train)]
}

/// The bias of the keys, which only rounding moves, was found 3e-3 apart.
pub(crate) fn single_precision() -> Vec<Law> {
    vec![Law::new("f32", 1e-3, |ranks| classification(&FIFTY, DType::F32, ranks))]
}

fn detection(settings: &[&str], arm: &str, ranks: &Ranks) -> Result<Trained> {
    let recipe =
        DetectionRecipe::parse(include_str!("../scenes.toml"), "scenes.toml", &set(settings))?;
    let data = Detection::open(&recipe.data)?;
    let arm = recipe.arm(arm)?;
    let taught = VarStore::new(5, DType::F64, &Device::Cpu);
    Detection::declare_teacher(&recipe, &data, taught.builder())?;
    let teacher = Detection::teacher(&recipe, &data, &taught)?;
    let store = VarStore::new(recipe.seed, DType::F64, &Device::Cpu);
    let distiller = Detection::distiller(&recipe, arm, &data, &store, Some(&teacher))?;
    let task = Detection::student_task(&recipe, &data, &store, Some(teacher), Some(distiller))?;
    let mut batches = Detection::batches(&recipe, &data, arm)?.0;
    batches.share(Share::new(ranks.rank(), ranks.size())?)?;
    trained(&recipe, ranks, &store, &task, |number| {
        let batch = Stream::get(&mut batches, number)?;
        Ok(DetectionBatch { images: wide(&batch.images)?, ..batch })
    })
}

pub(crate) fn detection_by_objects_of_the_whole_batch() -> Vec<Law> {
    let law = |arm: &'static str| {
        let train = move |ranks: &Ranks| {
            detection(&[&FIFTY[..4], &["training.batch=4"]].concat(), arm, ranks)
        };
        Law::new(arm, 1e-10, train)
    };
    ["vkd", "token-matching"].into_iter().map(law).collect()
}

fn generation(settings: &[&str], arm: &str, ranks: &Ranks) -> Result<Trained> {
    let recipe = GenerationRecipe::parse(include_str!("../gan.toml"), "gan.toml", &set(settings))?;
    let data = Generation::open(&recipe.data)?;
    let arm = recipe.arm(arm)?;
    let (channels, classes) = (data.channels, data.class_names.len());
    let taught = VarStore::new(5, DType::F64, &Device::Cpu);
    let vkd_train::GanTeacherModel::Classifier(architecture) = &recipe.teacher.model else {
        bail!("gan.toml: expected a classifier as the teacher")
    };
    let model = vkd_models::ModelConfig {
        image_size: data.size,
        channels,
        classes,
        architecture: architecture.clone(),
    };
    model.build(taught.builder())?;
    let teacher = Teacher::new(network(model.build(taught.frozen())?));
    let store = VarStore::new(recipe.seed, DType::F64, &Device::Cpu);
    let build = |vb: candle_nn::VarBuilder| -> Result<_> {
        let (generator, discriminator) = (&recipe.student.generator, &recipe.student.discriminator);
        Ok((
            Generator::new(generator, channels, classes, vb.pp(GENERATOR))?,
            Discriminator::new(discriminator, channels, classes, vb.pp(DISCRIMINATOR))?,
        ))
    };
    let (live, frozen) = (build(store.builder())?, build(store.frozen())?);
    let distiller = Generation::distiller(&recipe, arm, &data, &store, None)?;
    let config = GenerationConfig {
        noise: recipe.student.generator.noise,
        classes,
        discriminator_steps: recipe.criterion.discriminator_steps,
        augment: DiffAugment::all(),
        lecam: Some(LecamConfig { weight: 0.3, decay: 0.9, start: 5 }),
    };
    let (generator, discriminator) = (generator_network(live.0), discriminator_network(live.1));
    let distillation = Some((teacher, distiller));
    let task =
        GenerationTask::new(generator, discriminator, distillation, config, store.builder())?
            .with_frozen_generator(generator_network(frozen.0))
            .with_frozen(discriminator_network(frozen.1));
    let mut batches = Generation::batches(&recipe, &data, arm)?.0;
    batches.share(Share::new(ranks.rank(), ranks.size())?)?;
    trained(&recipe, ranks, &store, &task, |number| {
        let batch = Stream::get(&mut batches, number)?;
        Ok(GenerationBatch { images: wide(&batch.images)?, ..batch })
    })
}

pub(crate) fn generation_by_every_covariance() -> Vec<Law> {
    let law = |arm: &'static str| {
        let train = move |ranks: &Ranks| {
            generation(&[&FIFTY[..4], &["training.batch=8"]].concat(), arm, ranks)
        };
        Law::new(arm, 1e-10, train)
    };
    ["batch", "running", "kd-dlgan"].into_iter().map(law).collect()
}
