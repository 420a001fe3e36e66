//! One run: its teacher and its arms.

use crate::build::{fresh_teacher, start_student, starting_teacher, teacher_parameters};
use crate::checkpoint;
use crate::checkpoints::{Checkpoints, Saved};
use crate::event::{Event, EventKind, EventLog, Observer};
use crate::fingerprint::common;
use crate::folder::{RunFolderOf, named};
use crate::probe::Probe;
use crate::recipe::TEACHER;
use crate::report::{ArmReport, TeacherReport};
use crate::result::RunFacts;
use crate::trainer::{TrainerConfig, train};
use crate::workload::{Goal, Stream, Workload};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::BTreeMap;
use vkd_nn::VarStore;
use vkd_norm::flags;
use vkd_tasks::DistillTask;

/// Trains the teacher, or takes the one that the folder or the recipe holds, scores it and checks its floor. A training
/// that was stopped goes on from its newest checkpoint.
///
/// # Errors
/// A validation score below `teacher.floor`, a checkpoint that does not fit, and whatever training refuses.
pub fn train_teacher<W: Workload>(
    run: &RunFolderOf<W>,
    data: &W::Data,
    observer: &mut Observer,
) -> Result<TeacherReport> {
    let (config, ranks) = (&run.recipe().teacher, run.ranks());
    agree(run, data)?;
    let report = match ranks.from_first(|| run.teacher_report())? {
        Some(report) => report,
        None => fit_teacher(run, data, observer)?,
    };
    // Written whole; the states on the way there have no further use.
    ranks.from_first(|| run.remove_checkpoints(TEACHER))?;
    let got = W::floor_score(&report.metrics);
    // By the first rank's bits. Negated so that NaN stops the run.
    ranks.from_first(|| match !(got >= config.floor) {
        false => Ok(()),
        true => bail!(
            "teacher: expected a validation {} of at least {} (teacher.floor), got {got:.4}; a student can't learn \
             from a teacher that has not learnt",
            W::TEACHER_METRIC,
            config.floor
        ),
    })?;
    Ok(report)
}

/// Refuses ranks that would train something else than the first.
fn agree<W: Workload>(run: &RunFolderOf<W>, data: &W::Data) -> Result<()> {
    match run.ranks().size() {
        1 => Ok(()),
        size => {
            run.ranks().agree(&common(run.recipe(), data, run.worker().commit.as_deref())?)?;
            run.recipe().training.device.for_ranks(size)
        }
    }
}

fn fit_teacher<W: Workload>(
    run: &RunFolderOf<W>,
    data: &W::Data,
    observer: &mut Observer,
) -> Result<TeacherReport> {
    let (recipe, ranks) = (run.recipe(), run.ranks());
    let mut log = open_log(run, TEACHER, observer)?;
    // Finished while this one waited for the log.
    if let Some(report) = ranks.from_first(|| run.teacher_report())? {
        return Ok(report);
    }
    let (device, config) = (recipe.device()?, &recipe.teacher);
    let store = starting_teacher(recipe, data, &device)?;
    let Some(task) = W::teacher_task(recipe, data, &store)? else {
        return keep_teacher(run, data, &store, 0.);
    };
    let mut batches = W::teacher_batches(recipe, data)?;
    batches.share(ranks.share()?)?;
    let training = &recipe.training.of_teacher(config);
    let (checkpoints, newest) = take_up(run, TEACHER, log.as_mut())?;
    let trainer = TrainerConfig {
        arm: TEACHER,
        seed: recipe.seed,
        goal: Goal::more(W::TEACHER_METRIC),
        training,
        checkpoints: &checkpoints,
        ranks,
    };
    let batch = |number| batches.get(number);
    let validate = || W::validate_teacher(&task, recipe, data, ranks);
    let log = &mut |e: &Event| log.as_mut().map_or(Ok(()), |log| log.write(e));
    let outcome = train(&task, &store, &trainer, newest.as_ref(), batch, validate, log)?;
    keep_teacher(run, data, &store, outcome.seconds)
}

/// The log of a part, which the first rank alone has; the others wait until it does.
fn open_log<'a, 'b, W: Workload>(
    run: &RunFolderOf<W>,
    name: &str,
    observer: &'a mut Observer<'b>,
) -> Result<Option<EventLog<'a, 'b>>> {
    let mut log = None;
    run.ranks().from_first(|| {
        log = Some(EventLog::open(run, name, observer)?);
        Ok(())
    })?;
    Ok(log)
}

/// The checkpoints of a part and the newest that can be read, with the log cut back to it. Needs the log, which nobody else
/// has at the same time; the other ranks take the first one's state.
fn take_up<W: Workload>(
    run: &RunFolderOf<W>,
    name: &str,
    log: Option<&mut EventLog>,
) -> Result<(Checkpoints, Option<Saved>)> {
    let checkpoints = run.checkpoints(name);
    let mut newest = None;
    let step = run.ranks().from_first(|| {
        std::fs::create_dir_all(checkpoints.dir()).map_err(|e| named(checkpoints.dir(), &e))?;
        checkpoints.sweep()?;
        newest = checkpoints.newest()?.0;
        let step = newest.as_ref().map(|saved| saved.note.step);
        // A kill may have come between a write and this.
        checkpoints.prune(step.unwrap_or(0))?;
        log.map_or(Ok(()), |log| log.cut(step.unwrap_or(0)))?;
        Ok(step)
    })?;
    // Nobody goes on, and removes it, before all have read it.
    let newest = match (newest, step) {
        (None, Some(step)) => Some(run.ranks().all_well(checkpoints.of_step(step))?),
        (newest, Some(_)) => run.ranks().all_well(Ok(newest))?,
        (_, None) => None,
    };
    Ok((checkpoints, newest))
}

/// Scores a teacher as its students will ask it, and writes it with its report.
fn keep_teacher<W: Workload>(
    run: &RunFolderOf<W>,
    data: &W::Data,
    store: &VarStore,
    seconds: f64,
) -> Result<TeacherReport> {
    let teacher = W::teacher(run.recipe(), data, store)?;
    let metrics = W::teacher_scores(&teacher, run.recipe(), data, run.ranks())?;
    flags::check(&run.recipe().device()?)?;
    run.ranks().from_first(|| {
        let report = TeacherReport { metrics, parameters: teacher_parameters::<W>(store), seconds };
        let note = serde_json::to_value(&report).map_err(candle_core::Error::wrap)?;
        checkpoint::save(&run.teacher_path(), &store.tensors(), &note)?;
        Ok(report)
    })
}

/// What the folder holds of the teacher, on `device`.
pub(crate) fn load_teacher<W: Workload>(
    run: &RunFolderOf<W>,
    data: &W::Data,
    device: &Device,
) -> Result<VarStore> {
    let (tensors, _) = checkpoint::load(&run.teacher_path())?;
    let store = fresh_teacher(run.recipe(), data, device)?;
    store.load(&tensors)?;
    Ok(store)
}

/// Trains one arm and writes its student, or takes the result that the folder holds. A training that was stopped goes on
/// from its newest checkpoint and ends at the same bits; [`Checkpoints::newest`] tells before what that will be.
///
/// # Errors
/// An arm without a table, sizes that don't fit, a missing teacher, and whatever training refuses.
pub fn train_arm<W: Workload>(
    run: &RunFolderOf<W>,
    data: &W::Data,
    name: &str,
    observer: &mut Observer,
) -> Result<ArmReport> {
    let (recipe, ranks) = (run.recipe(), run.ranks());
    agree(run, data)?;
    if let Some(report) = ranks.from_first(|| run.arm_report(name))? {
        return Ok(report);
    }
    let folder = run.arm_path(name, "");
    ranks.from_first(|| std::fs::create_dir_all(&folder).map_err(|e| named(&folder, &e)))?;
    let mut log = open_log(run, name, observer)?;
    // Finished while this one waited for the log.
    if let Some(report) = ranks.from_first(|| run.arm_report(name))? {
        return Ok(report);
    }
    let (arm, training) = (recipe.arm(name)?, &recipe.training);
    let device = recipe.device()?;
    let store = VarStore::new(recipe.seed, DType::F32, &device);
    let (teacher, finish) = match W::wants_teacher(arm) {
        true => {
            let own = load_teacher(run, data, &device)?;
            let (teacher, finish) = W::remembering_teacher(run, data, &own)?;
            (Some(teacher), finish)
        }
        false => (None, None),
    };
    let distiller = match arm.uses_teacher() {
        true => Some(W::distiller(recipe, arm, data, &store, teacher.as_ref())?),
        false => None,
    };
    let task = W::student_task(recipe, data, &store, teacher, distiller)?;
    start_student(recipe, &store)?;
    W::check_task(&task, recipe, data)?;
    ranks.from_first(|| run.check_extractor(W::extractor(&task).as_deref()))?;
    let (mut batches, labels) = W::batches(recipe, data, arm)?;
    batches.share(ranks.share()?)?;
    let (checkpoints, newest) = take_up(run, name, log.as_mut())?;
    // Before any result, so that none is ever taken for another program's.
    ranks.from_first(|| {
        let earlier = if newest.is_some() { run.facts(name)? } else { None };
        run.write_facts(name, &RunFacts::begun(run, batches.workers(), task.rounds(), earlier)?)
    })?;
    let trainer = TrainerConfig {
        arm: name,
        seed: recipe.seed,
        goal: W::GOAL,
        training,
        checkpoints: &checkpoints,
        ranks,
    };
    let batch = |number| batches.get(number);
    let validate = || W::validate(&task, recipe, data, ranks);
    let again = match training.term_gradients && ranks.leads() {
        true => Some(W::batches(recipe, data, arm)?.0),
        false => None,
    };
    let mut probe = Probe::<W> { task: &task, recipe, data, store: &store, batches: again };
    let observe = &mut |event: &Event| {
        let Some(log) = &mut log else { return Ok(()) };
        log.write(event)?;
        if let EventKind::Validation(_) = event.kind {
            W::illustrate(&task, &folder, event.step)?;
            let geometry = probe.measure(event.step)?;
            if !geometry.is_empty() {
                let kind = EventKind::Geometry { geometry };
                log.write(&Event { kind, ..event.clone() })?;
            }
        }
        Ok(())
    };
    let outcome = train(&task, &store, &trainer, newest.as_ref(), batch, validate, observe)?;
    if let Some(finish) = finish {
        finish()?;
    }
    let prefix = format!("{}.", W::SAVED);
    let tensors: BTreeMap<_, _> = store
        .tensors()
        .into_iter()
        .filter_map(|(n, t)| Some((n.strip_prefix(&prefix)?.to_owned(), t)))
        .collect();
    ranks.from_first(|| {
        W::save(&run.arm_path(name, "student.safetensors"), recipe, data, &tensors)
    })?;
    let metrics = W::scores(&task, recipe, data, ranks)?;
    flags::check(&recipe.device()?)?;
    ranks.from_first(|| {
        let report = ArmReport {
            name: name.to_owned(),
            terms: W::term_weights(recipe, arm),
            labels,
            metrics,
            extractor: W::extractor(&task),
            projector_residual_max: outcome.residual,
            parameters: tensors.values().map(Tensor::elem_count).sum(),
            seconds: outcome.seconds,
        };
        run.write_arm_report(&report)?;
        Ok(report)
    })
}
