//! One run: its teacher and its arms.

use crate::batches::Batches;
use crate::build::{
    STUDENT, batches, build_teacher, distiller, given_teacher, student_card, term_weights,
};
use crate::checkpoint;
use crate::data::Dataset;
use crate::event::{EventLog, Observer};
use crate::folder::{RunFolder, named};
use crate::networks::{student_network, teacher_network};
use crate::recipe::TEACHER;
use crate::report::{ArmReport, TeacherReport};
use crate::score::{score, scores};
use crate::trainer::{TrainerConfig, train};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::BTreeMap;
use std::time::Instant;
use vkd_models::{Student, Vit};
use vkd_nn::{Context, VarStore};
use vkd_tasks::{ClassificationTask, Network, Teacher};

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
                let (store, cnn) = given_teacher(run.recipe(), data, path)?;
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

fn fit_teacher(run: &RunFolder, data: &Dataset, observer: &mut Observer) -> Result<TeacherReport> {
    let (recipe, started) = (run.recipe(), Instant::now());
    let (store, cnn) = build_teacher(recipe, data)?;
    let config = &recipe.teacher;
    let task = ClassificationTask::new(teacher_network(cnn), None, config.smoothing)?;
    let mut batches =
        Batches::new(data, data.train.clone(), config.batch, 0, &recipe.data, recipe.seed)?;
    let trainer = TrainerConfig {
        arm: TEACHER.to_owned(),
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
    let mut log = EventLog::create(run, TEACHER, observer)?;
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
    task.check(&data.blank()?)?;
    let (mut batches, labels) = batches(recipe, arm, data)?;
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
    let folder = run.arm_path(name, "");
    std::fs::create_dir_all(&folder).map_err(|e| named(&folder, &e))?;
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
