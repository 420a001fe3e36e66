//! The training loop.

use crate::checkpoints::{Checkpoints, Note, Saved};
use crate::event::{Event, EventKind, Observer, Validation};
use crate::guard::{Detached, Guard};
use crate::ranks::Ranks;
use crate::recipe::TrainingConfig;
use crate::state::{PhaseState, State};
use crate::workload::Goal;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use std::collections::BTreeMap;
use std::time::Instant;
use vkd_nn::{Context, GradAccumulator, VarStore};
use vkd_norm::flags;
use vkd_tasks::{DistillTask, PUBLISHED_PARAMETER, Term};

/// Settings of one [`train`] call.
pub struct TrainerConfig<'a> {
    /// `teacher`, or the name of an arm.
    pub arm: &'a str,
    /// Seed of everything random in the layers.
    pub seed: u64,
    /// What a validation measures.
    pub goal: Goal,
    /// Steps, rates and cadence; the batches are the caller's.
    pub training: &'a TrainingConfig,
    /// Where checkpoints go.
    pub checkpoints: &'a Checkpoints,
    /// Those that train together; [`Ranks::alone`] for one process.
    pub ranks: &'a Ranks,
}

/// What a training leaves beside its variables.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Largest projector residual seen, final state included; `None` without an orthogonal projector.
    pub residual: Option<f64>,
    /// Seconds of training, those before earlier stops included.
    pub seconds: f64,
}

/// Whether weight decay applies to a variable: matrices and kernels of the networks. Not the projector (decay would work
/// against the frame's parameter), nor biases, norms, tokens and positions, as in DeiT and the published V_kD code. The
/// published code's own projector decays, as it did there: that is its flaw.
pub fn decays(name: &str, rank: usize) -> bool {
    // Most teachers' variables stand without a prefix.
    let parts = ["student.", "teacher.", "judge.", "generator.", "discriminator."];
    let name = parts.iter().find_map(|part| name.strip_prefix(part)).unwrap_or(name);
    if name.starts_with("projector.") && name.ends_with(PUBLISHED_PARAMETER) {
        return true;
    }
    let free = [
        "projector.",
        "cls_token",
        "dist_token",
        "pos_embed",
        "backbone.det_token",
        "backbone.det_pos_embed",
    ];
    rank > 1 && !free.iter().any(|prefix| name.starts_with(prefix))
}

/// Trains the variables of `store` on `task`, from the start or `from` a checkpoint on.
///
/// `batch` gives the batch of a number, counted from zero: round `r` of step `s` takes the `accumulate` batches from
/// `(s · rounds + r) · accumulate` on, with the task's [`rounds`](DistillTask::rounds), which are 1 but for a GAN. `validate` gives the score of
/// what the variables hold at the call, by which the best state is kept. A training
/// that was stopped and goes on from a checkpoint ends at the same bits as one that was not stopped, if both
/// closures depend on nothing but their arguments and the variables.
///
/// With `ema_decay` the averages are what is validated, and what `store` holds in the end. Of an orthogonal projector
/// the free parameter is averaged, not the weight: the map makes an orthonormal weight of every parameter, so the average's
/// projector is orthonormal too.
///
/// With several ranks each calls this with the same arguments, but `batch` gives its own part of each batch; statistics, losses and
/// gradients are those of the whole batch, to rounding. All ranks call `validate`, of which the first one's value counts; the first
/// rank alone writes and calls `observer`, and whenever it does the ranks compare their variables.
///
/// # Errors
/// A variable that does not learn ([`gradient_audit`](crate::gradient_audit), within its first three steps), a loss term or a variable that is not finite (the first
/// term is named, and the last good checkpoint), a checkpoint that doesn't fit, and whatever the parts refuse.
pub fn train<T: DistillTask>(
    task: &T,
    store: &VarStore,
    config: &TrainerConfig,
    from: Option<&Saved>,
    mut batch: impl FnMut(u64) -> Result<T::Batch>,
    validate: impl Fn() -> Result<f64>,
    observer: &mut Observer,
) -> Result<Outcome> {
    let TrainerConfig { arm, seed, goal, training, checkpoints, ranks } = *config;
    let (started, before) = (Instant::now(), from.map_or(0., |s| s.note.seconds));
    let seconds = || before + started.elapsed().as_secs_f64();
    let mut state = State::new(task, store, training)?;
    if let Some(saved) = from {
        state.load(saved, arm, seed)?;
    }
    let mut guard = Guard { arm, checkpoints, last: from.map(|s| s.note.step) };
    let mut emit = |step, kind| match ranks.leads() {
        true => observer(&Event { arm: arm.to_owned(), step, kind }),
        false => Ok(()),
    };
    let replicas = ranks.replicas();
    guard.at(state.step, same(&state, ranks))?;
    while state.step < training.steps {
        let step = state.step;
        // Read with the numbers of the first update.
        let mut unread = guard.at(step, task.residual())?;
        let mut residual = None;
        let learning_rate = training.learning_rate_at(step);
        let micro_batch = |number| {
            let data = batch(number)?;
            let ctx = Context::train(seed, number, T::sample_ids(&data));
            Ok((data, ctx.with_replicas(replicas.clone())))
        };
        let each = training.accumulate * task.rounds();
        let drawn: Vec<_> =
            (step * each..(step + 1) * each).map(micro_batch).collect::<Result<_>>()?;
        let rounds = || drawn.chunks(training.accumulate as usize);
        let (mut loss, mut terms) = (0., BTreeMap::new());
        for phase in &mut state.phases {
            let repeats = task.repeats(&phase.phase);
            for (round, micro_batches) in (0..repeats).zip(rounds()) {
                let waiting = unread.take();
                let mut found =
                    gradients(task, phase, micro_batches, waiting.as_ref(), &guard, step)?;
                residual = larger(residual, found.residual);
                state.residual = larger(state.residual, found.residual);
                guard.at(step, found.join(phase, training.bucket_bytes(), ranks))?;
                let last = round + 1 == repeats;
                if phase.audit.wants(step) && last {
                    let end = step + 1 == training.steps;
                    match ranks.any(micro_batches.iter().any(|(data, _)| T::speaks(data)))? {
                        true => {
                            let (parameters, grads) = (&phase.parameters, &found.grads);
                            phase.audit.look(parameters, grads, &found.output, end, ranks)?;
                        }
                        false => phase.audit.pass(end)?,
                    }
                }
                let update =
                    phase.optimizer.update(&found.grads, learning_rate, training.clip_norm);
                guard.at(step, update)?;
                if last {
                    loss += found.loss;
                    let name = |(name, value)| (task.term_name(&phase.phase, name), value);
                    terms.extend(found.terms.iter().map(|(n, v)| name((n.as_str(), *v))));
                }
            }
        }
        if step % training.log_every == 0 || step + 1 == training.steps {
            emit(step, EventKind::Step { loss, terms, learning_rate, residual })?;
        }
        if let Some(ema) = &mut state.ema {
            ema.update()?;
        }
        state.step += 1;
        let due = |every: u64| state.step % every == 0 || state.step == training.steps;
        let (to_validate, to_save) = (due(training.evaluate_every), due(training.checkpoint_every));
        if !(to_validate || to_save) {
            continue;
        }
        // What the update itself found: it came after its numbers.
        guard.at(step, flags::check(store.builder().device()))?;
        guard.variables(&state, step)?;
        guard.at(step, same(&state, ranks))?;
        let note = Note { arm: arm.to_owned(), seed, step: state.step, seconds: seconds() };
        if to_validate {
            let value = state.averaged(|| {
                let here = validate()?;
                flags::check(store.builder().device())?;
                // As bits: a score that is not finite has no other form in text.
                let value = f64::from_bits(ranks.from_first(|| Ok(here.to_bits()))?);
                let validation = Validation { metric: goal.name.to_owned(), value };
                // An observer that measures the variables sees what was validated.
                ranks.all_well(emit(state.step, EventKind::Validation(validation)))?;
                Ok(value)
            })?;
            if goal.improves(value, state.best) {
                state.best = Some(value);
                let save = || checkpoints.save_best(&state.tensors()?, &note);
                guard.at(step, ranks.from_first(save))?;
            }
        }
        // Last, so that it holds all of the step.
        if to_save {
            let save = || checkpoints.save(&state.tensors()?, &note);
            guard.at(step, ranks.from_first(save))?;
            guard.last = Some(state.step);
        }
    }
    let now = || {
        let residual = guard.at(training.steps, task.residual())?;
        Ok::<_, candle_core::Error>(guard.numbers(residual.as_ref(), &[], training.steps)?.residual)
    };
    let residual = larger(state.residual, now()?);
    state.settle()?;
    // Of the averages, where those are the result.
    let residual = larger(residual, now()?);
    Ok(Outcome { residual, seconds: seconds() })
}

/// Refuses ranks whose states differ.
fn same(state: &State, ranks: &Ranks) -> Result<()> {
    match ranks.size() {
        1 => Ok(()),
        _ => ranks.same_tensors(&state.tensors()?),
    }
}

/// What a phase found on its micro-batches: means over them.
struct Found {
    grads: GradStore,
    /// The projectors' before the update.
    residual: Option<f64>,
    loss: f64,
    /// Before weighting, by name.
    terms: BTreeMap<String, f64>,
    /// Those of the last micro-batch.
    output: Vec<Term>,
}

impl Found {
    /// Makes of what each rank found the means over all.
    fn join(&mut self, phase: &PhaseState, bucket: usize, ranks: &Ranks) -> Result<()> {
        ranks.mean_gradients(&phase.parameters, &mut self.grads, bucket)?;
        let size = ranks.size() as f64;
        let mut numbers: Vec<f64> =
            std::iter::once(self.loss).chain(self.terms.values().copied()).collect();
        ranks.sum(&mut numbers)?;
        let mut means = numbers.into_iter().map(|sum| sum / size);
        let places = std::iter::once(&mut self.loss).chain(self.terms.values_mut());
        places.zip(&mut means).for_each(|(place, mean)| *place = mean);
        Ok(())
    }
}

fn gradients<T: DistillTask>(
    task: &T,
    phase: &PhaseState,
    micro_batches: &[(T::Batch, Context)],
    residual: Option<&Tensor>,
    guard: &Guard,
    step: u64,
) -> Result<Found> {
    let share = 1. / micro_batches.len() as f64;
    let mut sum = GradAccumulator::new(phase.parameters.clone());
    let (mut one, mut last, mut outputs) = (None, Vec::new(), Vec::new());
    for (data, ctx) in micro_batches {
        // A loss that meets NaN says in which tensor; where the run stands is added here.
        let output = guard.at(step, task.step(data, &phase.phase, ctx))?;
        let grads = guard.at(step, output.loss.backward())?;
        // One alone is no sum.
        match micro_batches.len() {
            1 => one = Some(grads),
            _ => sum.add(&grads, share)?,
        }
        outputs.push(Detached::of(&output));
        last = output.terms;
    }
    // When all is queued: a device is waited for once.
    let numbers = guard.numbers(residual, &outputs, step)?;
    let (mut loss, mut terms) = (0., BTreeMap::new());
    for (of_one, named) in numbers.outputs {
        loss += share * of_one;
        for (name, value) in named {
            *terms.entry(name).or_insert(0.) += share * value;
        }
    }
    let grads = one.unwrap_or_else(|| sum.take());
    Ok(Found { grads, residual: numbers.residual, loss, terms, output: last })
}

fn larger(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}
