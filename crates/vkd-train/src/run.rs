//! One run: its folder, its teacher, its arms.

use crate::batches::{Batches, plain_images};
use crate::checkpoint;
use crate::data::Dataset;
use crate::event::{Event, Observer};
use crate::folder::RunFolder;
use crate::metrics::accuracy;
use crate::networks::{STUDENT_TAP, TEACHER_TAP, student_network, teacher_network};
use crate::recipe::{ArmConfig, LabelBudget, LossKind, ProjectorKind, Recipe};
use crate::report::{ArmReport, TeacherReport};
use crate::trainer::{TrainerConfig, train};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;
use vkd_models::{Cnn, CnnConfig, Preprocessing, Student, StudentCard, Vit, VitConfig};
use vkd_nn::{Context, VarStore};
use vkd_ortho::OrthogonalConfig;
use vkd_tasks::{
    ClassificationTask, Distiller, FeatureLoss, LogitLoss, Network, NetworkOutput, ProjectorConfig,
    TapConfig, Teacher,
};

/// Variables of the student in the run's store; the prefix is dropped from the exported file.
const STUDENT: &str = "student";
/// Variables of the projectors in the run's store.
const PROJECTOR: &str = "projector";
/// Images in one forward pass of an evaluation.
const EVALUATION_BATCH: usize = 250;

/// Trains the teacher, or takes the one that the folder or the recipe holds, scores it and checks its floor.
///
/// # Errors
/// A validation accuracy below `teacher.floor`, a checkpoint that does not fit, and whatever training refuses.
pub fn train_teacher(
    run: &RunFolder,
    data: &Dataset,
    observer: &mut Observer,
) -> Result<TeacherReport> {
    let config = &run.recipe().teacher;
    let report = match run.teacher_report()? {
        Some(report) => report,
        None => match &config.checkpoint {
            Some(path) => {
                let (tensors, _) = checkpoint::load(path)?;
                let (store, cnn) = build_teacher(run.recipe(), data)?;
                store.load(&tensors).map_err(|e| {
                    candle_core::Error::Msg(format!("{}: {}", path.display(), crate::plain(&e)))
                })?;
                let network = teacher_network(cnn);
                let metrics = scores(|images| network.forward(images, &Context::eval()), data)?;
                keep_teacher(run, metrics, &store, 0.)?
            }
            None => fit_teacher(run, data, observer)?,
        },
    };
    let got = report.metrics.get("validation_accuracy").copied().unwrap_or(f64::NAN);
    // Negated so that NaN stops the run.
    if !(got >= config.floor) {
        bail!(
            "teacher: expected a validation accuracy of at least {} (teacher.floor), got {got:.4}; a student can't learn \
             from a teacher that has not learnt",
            config.floor
        )
    }
    Ok(report)
}

fn build_teacher(recipe: &Recipe, data: &Dataset) -> Result<(VarStore, Cnn)> {
    let store = VarStore::new(recipe.seed, DType::F32, &Device::Cpu);
    let config = CnnConfig {
        channels: 1,
        classes: data.class_names.len(),
        widths: recipe.teacher.widths.clone(),
    };
    let cnn = Cnn::new(&config, store.builder())?;
    Ok((store, cnn))
}

fn fit_teacher(run: &RunFolder, data: &Dataset, observer: &mut Observer) -> Result<TeacherReport> {
    let (recipe, started) = (run.recipe(), Instant::now());
    let (store, cnn) = build_teacher(recipe, data)?;
    let config = &recipe.teacher;
    let task = ClassificationTask::new(teacher_network(cnn), None, config.smoothing)?;
    let mut batches =
        Batches::new(data, data.train.clone(), config.batch, 0, recipe.data.shift, recipe.seed)?;
    let trainer = TrainerConfig {
        arm: "teacher".to_owned(),
        seed: recipe.seed,
        steps: config.steps,
        learning_rate: config.learning_rate,
        weight_decay: config.weight_decay,
        warmup: recipe.training.warmup,
        log_every: recipe.training.log_every,
        evaluate_every: recipe.training.evaluate_every,
        checkpoint_every: recipe.training.checkpoint_every,
        checkpoint: run.path("teacher-checkpoint.safetensors"),
    };
    let validate = || score(|images| task.evaluate(images), data, &data.validation);
    let mut log = EventLog::create(run, "teacher", observer)?;
    train(&task, &store, &trainer, |step| batches.get(step), validate, &mut |e| log.write(e))?;
    let metrics = scores(|images| task.evaluate(images), data)?;
    let report = keep_teacher(run, metrics, &store, started.elapsed().as_secs_f64())?;
    // Written whole above; the intermediate state has no further use.
    std::fs::remove_file(&trainer.checkpoint).ok();
    Ok(report)
}

/// Writes a teacher with its report.
fn keep_teacher(
    run: &RunFolder,
    metrics: BTreeMap<String, f64>,
    store: &VarStore,
    seconds: f64,
) -> Result<TeacherReport> {
    let report = TeacherReport { metrics, parameters: store.parameter_count(), seconds };
    let note = serde_json::to_value(&report).map_err(candle_core::Error::wrap)?;
    checkpoint::save(&run.teacher_path(), &store.tensors(), &note)?;
    Ok(report)
}

fn load_teacher(run: &RunFolder, data: &Dataset) -> Result<Teacher> {
    let (tensors, _) = checkpoint::load(&run.teacher_path())?;
    let (store, cnn) = build_teacher(run.recipe(), data)?;
    store.load(&tensors)?;
    Ok(Teacher::new(teacher_network(cnn)))
}

/// Trains one arm and writes its student, or takes the result that the folder holds.
///
/// # Errors
/// An arm without a table, sizes that don't fit, a missing teacher, and whatever training refuses.
pub fn train_arm(
    run: &RunFolder,
    data: &Dataset,
    name: &str,
    observer: &mut Observer,
) -> Result<ArmReport> {
    if let Some(report) = run.arm_report(name)? {
        return Ok(report);
    }
    let (recipe, started) = (run.recipe(), Instant::now());
    let (arm, training) = (recipe.arm(name)?, &recipe.training);
    let store = VarStore::new(recipe.seed, DType::F32, &Device::Cpu);
    let card = student_card(recipe, data);
    let vit = Vit::new(&card.model, store.builder().pp(STUDENT))?;
    let distillation = match arm.uses_teacher() {
        true => Some((load_teacher(run, data)?, distiller(recipe, arm, &store)?)),
        false => None,
    };
    let task = ClassificationTask::new(student_network(vit), distillation, training.smoothing)?;
    task.check(&plain_images(data, &data.train[..1], &card.preprocessing)?)?;
    let labelled = match arm.labels {
        LabelBudget::Few => data.labelled(recipe.data.labels, recipe.seed)?,
        LabelBudget::All => data.train.clone(),
    };
    let labels = labelled.len();
    // Without a teacher an unlabelled image says nothing, so the whole batch is labelled: the arm gets the same
    // number of images to learn from.
    let from_labelled = match (arm.labels, arm.uses_teacher()) {
        (LabelBudget::Few, true) => training.labelled,
        _ => training.batch,
    };
    let rest = training.batch - from_labelled;
    let mut batches =
        Batches::new(data, labelled, from_labelled, rest, recipe.data.shift, recipe.seed)?;
    let trainer = TrainerConfig {
        arm: name.to_owned(),
        seed: recipe.seed,
        steps: training.steps,
        learning_rate: training.learning_rate,
        weight_decay: training.weight_decay,
        warmup: training.warmup,
        log_every: training.log_every,
        evaluate_every: training.evaluate_every,
        checkpoint_every: training.checkpoint_every,
        checkpoint: run.arm_path(name, "checkpoint.safetensors"),
    };
    std::fs::create_dir_all(run.arm_path(name, ""))?;
    let validate = || score(|images| task.evaluate(images), data, &data.validation);
    let mut log = EventLog::create(run, name, observer)?;
    let residual =
        train(&task, &store, &trainer, |step| batches.get(step), validate, &mut |e| log.write(e))?;
    let prefix = format!("{STUDENT}.");
    let tensors: BTreeMap<_, _> = store
        .tensors()
        .into_iter()
        .filter_map(|(n, t)| Some((n.strip_prefix(&prefix)?.to_owned(), t)))
        .collect();
    Student::save(&run.arm_path(name, "student.safetensors"), &card, &tensors)?;
    let report = ArmReport {
        name: name.to_owned(),
        terms: term_weights(arm),
        labels,
        metrics: scores(|images| task.evaluate(images), data)?,
        projector_residual_max: residual,
        parameters: tensors.values().map(Tensor::elem_count).sum(),
        seconds: started.elapsed().as_secs_f64(),
    };
    run.write_arm_report(&report)?;
    Ok(report)
}

fn student_card(recipe: &Recipe, data: &Dataset) -> StudentCard {
    let s = &recipe.student;
    let model = VitConfig {
        image_size: data.size,
        channels: 1,
        classes: data.class_names.len(),
        patch: s.patch,
        width: s.width,
        depth: s.depth,
        heads: s.heads,
        mlp_ratio: s.mlp_ratio,
        drop_path: s.drop_path,
    };
    StudentCard {
        schema: 1,
        model,
        preprocessing: data.preprocessing(),
        class_names: data.class_names.clone(),
    }
}

fn term_weights(arm: &ArmConfig) -> BTreeMap<String, f64> {
    let mut terms = BTreeMap::from([("label".to_owned(), 1.)]);
    for (name, weight) in
        [("logits".to_owned(), arm.logits), (format!("feature.{STUDENT_TAP}"), arm.features)]
    {
        if weight > 0. {
            terms.insert(name, weight);
        }
    }
    terms
}

fn distiller(recipe: &Recipe, arm: &ArmConfig, store: &VarStore) -> Result<Distiller> {
    let d = &recipe.distill;
    let teacher_width = recipe.teacher.widths.last().copied().unwrap_or(0);
    let tap = || -> Result<TapConfig> {
        Ok(TapConfig {
            student: STUDENT_TAP.to_owned(),
            student_width: recipe.student.width,
            teacher: TEACHER_TAP.to_owned(),
            teacher_width,
            projector: match arm.projector {
                ProjectorKind::Orthogonal => ProjectorConfig::Orthogonal(OrthogonalConfig {
                    map: d.map.parse()?,
                    seed: recipe.seed,
                }),
                ProjectorKind::Linear => ProjectorConfig::Linear,
            },
            student_normalizer: d.student_normalizer.parse()?,
            teacher_normalizer: d.teacher_normalizer.parse()?,
            loss: match d.loss {
                LossKind::SmoothL1 => FeatureLoss::SmoothL1 { beta: d.beta },
                LossKind::Mse => FeatureLoss::Mse,
            },
            weight: arm.features,
        })
    };
    let taps = if arm.features > 0. { vec![tap()?] } else { vec![] };
    let logits =
        (arm.logits > 0.).then_some(LogitLoss { temperature: d.temperature, weight: arm.logits });
    Distiller::new(taps, logits, store.builder().pp(PROJECTOR))
}

/// Accuracy of the two-headed prediction on the given images.
fn score(
    forward: impl Fn(&Tensor) -> Result<NetworkOutput>,
    data: &Dataset,
    indices: &[usize],
) -> Result<f64> {
    score_logits(|images| forward(images)?.prediction(), data, indices, &data.preprocessing())
}

fn scores(
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

/// Writes events to `NAME.jsonl` and passes them on.
struct EventLog<'a, 'b> {
    file: std::io::LineWriter<std::fs::File>,
    observer: &'a mut Observer<'b>,
}

impl<'a, 'b> EventLog<'a, 'b> {
    fn create(run: &RunFolder, name: &str, observer: &'a mut Observer<'b>) -> Result<Self> {
        let path = run.events_path(name);
        match std::fs::File::create(&path) {
            Ok(file) => Ok(Self { file: std::io::LineWriter::new(file), observer }),
            Err(e) => bail!("{}: {e}", path.display()),
        }
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        let line = serde_json::to_string(event).map_err(candle_core::Error::wrap)?;
        writeln!(self.file, "{line}")?;
        (self.observer)(event)
    }
}
