//! One run: its teacher and its arms.

use crate::batches::Batches;
use crate::build::{
    STUDENT, batches, distiller, fresh_teacher, frozen_teacher, given_teacher, model, student_card,
    student_network, term_weights,
};
use crate::cache::{self, Answers, remembering};
use crate::checkpoint;
use crate::checkpoints::{Checkpoints, Saved};
use crate::data::Dataset;
use crate::event::{Event, EventKind, EventLog, Observer};
use crate::folder::{RunFolder, named};
use crate::networks::training_network;
use crate::probe::Probe;
use crate::recipe::TEACHER;
use crate::report::{ArmReport, TeacherReport};
use crate::result::RunFacts;
use crate::score::{score, scores};
use crate::trainer::{TrainerConfig, train};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::BTreeMap;
use std::sync::Arc;
use vkd_models::Student;
use vkd_nn::{Context, VarStore};
use vkd_tasks::{ClassificationTask, Network, Teacher};

/// Trains the teacher, or takes the one that the folder or the recipe holds, scores it and checks its floor. A training
/// that was stopped goes on from its newest checkpoint.
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
                // Nobody starts the run anew meanwhile.
                let _lock = run.lock(TEACHER)?;
                match run.teacher_report()? {
                    Some(report) => report,
                    None => keep_teacher(run, data, &given_teacher(run.recipe(), data, path)?, 0.)?,
                }
            }
            None => fit_teacher(run, data, observer)?,
        },
    };
    // Written whole; the states on the way there have no further use.
    run.remove_checkpoints(TEACHER)?;
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
    let mut log = EventLog::open(run, TEACHER, observer)?;
    // Finished while this one waited for the log.
    if let Some(report) = run.teacher_report()? {
        return Ok(report);
    }
    let recipe = run.recipe();
    let (store, config) = (fresh_teacher(recipe, data)?, &recipe.teacher);
    let network = training_network(model(&config.model, data), config.compute, &store, None)?;
    let task = ClassificationTask::new(network, None, config.smoothing)?;
    let mut batches =
        Batches::new(data, data.train.clone(), config.batch, 0, &recipe.data, recipe.seed)?;
    let training = &recipe.training.of_teacher(config);
    let (checkpoints, newest) = take_up(run, TEACHER, &mut log)?;
    let trainer =
        TrainerConfig { arm: TEACHER, seed: recipe.seed, training, checkpoints: &checkpoints };
    let batch = |number| batches.get(number);
    let validate = || score(|images| task.evaluate(images), data, &data.validation);
    let log = &mut |e: &Event| log.write(e);
    let outcome = train(&task, &store, &trainer, newest.as_ref(), batch, validate, log)?;
    keep_teacher(run, data, &store, outcome.seconds)
}

/// The checkpoints of a part and the newest that can be read, with the log cut back to it. Needs the log, which nobody else
/// has at the same time.
fn take_up(
    run: &RunFolder,
    name: &str,
    log: &mut EventLog,
) -> Result<(Checkpoints, Option<Saved>)> {
    let checkpoints = run.checkpoints(name);
    std::fs::create_dir_all(checkpoints.dir()).map_err(|e| named(checkpoints.dir(), &e))?;
    checkpoints.sweep()?;
    let (newest, _) = checkpoints.newest()?;
    let step = newest.as_ref().map_or(0, |saved| saved.note.step);
    // A kill may have come between a write and this.
    checkpoints.prune(step)?;
    log.cut(step)?;
    Ok((checkpoints, newest))
}

/// Scores a teacher as its students will ask it, and writes it with its report.
fn keep_teacher(
    run: &RunFolder,
    data: &Dataset,
    store: &VarStore,
    seconds: f64,
) -> Result<TeacherReport> {
    let teacher = frozen_teacher(run.recipe(), data, store)?;
    let metrics = scores(|images| teacher.forward(images, &Context::eval()), data)?;
    let report = TeacherReport { metrics, parameters: store.parameter_count(), seconds };
    let note = serde_json::to_value(&report).map_err(candle_core::Error::wrap)?;
    checkpoint::save(&run.teacher_path(), &store.tensors(), &note)?;
    Ok(report)
}

/// The teacher that the students ask, and what it remembers.
fn load_teacher(run: &RunFolder, data: &Dataset) -> Result<(Teacher, Option<Arc<Answers>>)> {
    let (tensors, _) = checkpoint::load(&run.teacher_path())?;
    let store = fresh_teacher(run.recipe(), data)?;
    store.load(&tensors)?;
    let answers = cache::open(run, data, &store)?;
    let network = frozen_teacher(run.recipe(), data, &store)?;
    Ok((Teacher::new(remembering(network, answers.clone())), answers))
}

/// Trains one arm and writes its student, or takes the result that the folder holds. A training that was stopped goes on
/// from its newest checkpoint and ends at the same bits; [`Checkpoints::newest`] tells before what that will be.
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
    let folder = run.arm_path(name, "");
    std::fs::create_dir_all(&folder).map_err(|e| named(&folder, &e))?;
    let mut log = EventLog::open(run, name, observer)?;
    // Finished while this one waited for the log.
    if let Some(report) = run.arm_report(name)? {
        return Ok(report);
    }
    let recipe = run.recipe();
    let (arm, training) = (recipe.arm(name)?, &recipe.training);
    let store = VarStore::new(recipe.seed, DType::F32, &Device::Cpu);
    let card = student_card(recipe, data);
    let student = student_network(recipe, data, &store)?;
    let (distillation, answers) = match arm.uses_teacher() {
        true => {
            let (teacher, answers) = load_teacher(run, data)?;
            (Some((teacher, distiller(recipe, arm, data, &store)?)), answers)
        }
        false => (None, None),
    };
    let task = ClassificationTask::new(student, distillation, training.smoothing)?;
    task.check(&data.blank()?)?;
    let (mut batches, labels) = batches(recipe, arm, data)?;
    let (checkpoints, newest) = take_up(run, name, &mut log)?;
    // Before any result, so that none is ever taken for another program's.
    let earlier = if newest.is_some() { run.facts(name)? } else { None };
    run.write_facts(name, &RunFacts::begun(run, batches.workers(), earlier))?;
    let trainer =
        TrainerConfig { arm: name, seed: recipe.seed, training, checkpoints: &checkpoints };
    let batch = |number| batches.get(number);
    let validate = || score(|images| task.evaluate(images), data, &data.validation);
    let again = match training.term_gradients {
        true => Some(self::batches(recipe, arm, data)?.0),
        false => None,
    };
    let mut probe = Probe {
        task: &task,
        data,
        store: &store,
        seed: recipe.seed,
        accumulate: training.accumulate,
        batches: again,
    };
    let observe = &mut |event: &Event| {
        log.write(event)?;
        if let EventKind::Validation { .. } = event.kind {
            let geometry = probe.measure(event.step)?;
            if !geometry.is_empty() {
                let kind = EventKind::Geometry { geometry };
                log.write(&Event { kind, ..event.clone() })?;
            }
        }
        Ok(())
    };
    let outcome = train(&task, &store, &trainer, newest.as_ref(), batch, validate, observe)?;
    answers.iter().try_for_each(|answers| answers.flush())?;
    let prefix = format!("{STUDENT}.");
    let tensors: BTreeMap<_, _> = store
        .tensors()
        .into_iter()
        .filter_map(|(n, t)| Some((n.strip_prefix(&prefix)?.to_owned(), t)))
        .collect();
    Student::save(&run.arm_path(name, "student.safetensors"), &card, &tensors)?;
    let report = ArmReport {
        name: name.to_owned(),
        terms: term_weights(recipe, arm),
        labels,
        metrics: scores(|images| task.evaluate(images), data)?,
        projector_residual_max: outcome.residual,
        parameters: tensors.values().map(Tensor::elem_count).sum(),
        seconds: outcome.seconds,
    };
    run.write_arm_report(&report)?;
    Ok(report)
}
