//! The training loop.

use crate::audit::gradient_audit;
use crate::checkpoint;
use crate::event::{Event, EventKind, Observer};
use candle_core::{DType, Result, Tensor, bail};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use vkd_nn::{AdamW, AdamWConfig, Context, VarStore, cosine};
use vkd_tasks::{Batch, DistillTask, PUBLISHED_PARAMETER, StepOutput};

/// Settings of one [`train`] call.
pub struct TrainerConfig {
    /// `teacher`, or the name of an arm.
    pub arm: String,
    /// Seed of everything random in the layers.
    pub seed: u64,
    /// Number of updates.
    pub steps: u64,
    /// Peak learning rate; cosine to zero.
    pub learning_rate: f64,
    /// Weight decay of the variables that [`decays`] accepts.
    pub weight_decay: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Steps between two step events.
    pub log_every: u64,
    /// Steps between two validations.
    pub evaluate_every: u64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Where checkpoints go.
    pub checkpoint: PathBuf,
}

/// Whether weight decay applies to a variable: matrices and kernels of the networks. Not the projector (decay would work
/// against the frame's parameter), nor biases, norms, tokens and positions, as in DeiT and the published V_kD code. The
/// published code's own projector decays, as it did there: that is its flaw.
pub fn decays(name: &str, rank: usize) -> bool {
    if name.starts_with("projector.") && name.ends_with(PUBLISHED_PARAMETER) {
        return true;
    }
    let free = ["projector.", "student.cls_token", "student.pos_embed"];
    rank > 1 && !free.iter().any(|prefix| name.starts_with(prefix))
}

/// Trains the variables of `store` on `task` and returns the largest projector residual seen, final state included.
///
/// `batch` gives the batch of a step and `validate` the validation accuracy.
///
/// # Errors
/// A variable that does not learn ([`gradient_audit`]), a loss term or a variable that is not finite (the first
/// term is named, and the last good checkpoint), and whatever the parts refuse.
pub fn train(
    task: &dyn DistillTask,
    store: &VarStore,
    config: &TrainerConfig,
    mut batch: impl FnMut(u64) -> Result<Batch>,
    validate: impl Fn() -> Result<f64>,
    observer: &mut Observer,
) -> Result<Option<f64>> {
    let mut optimisers = Vec::new();
    for phase in task.phases() {
        let parameters: Vec<_> = store
            .parameters()
            .into_iter()
            .filter(|(name, _)| name.starts_with(phase.prefix))
            .collect();
        let adamw = AdamWConfig { weight_decay: config.weight_decay, ..AdamWConfig::default() };
        let optimiser =
            AdamW::new(parameters.clone(), adamw, |name, var| decays(name, var.rank()))?;
        optimisers.push((phase.clone(), parameters, optimiser));
    }
    let mut emit = |step, kind| observer(&Event { arm: config.arm.clone(), step, kind });
    let mut worst = None;
    let mut last_checkpoint = None;
    for step in 0..config.steps {
        let data = batch(step)?;
        let ctx = Context::train(config.seed, step, data.sample_ids.clone());
        let learning_rate = cosine(step, config.steps, config.warmup, config.learning_rate, 0.);
        let residual = finite_residual(task, config, step, last_checkpoint)?;
        worst = larger(worst, residual);
        for (phase, parameters, optimiser) in &mut optimisers {
            // A loss that meets NaN says in which tensor; where the run stands is added here.
            let output = match task.step(&data, phase, &ctx) {
                Ok(output) => output,
                Err(e) => bail!(
                    "{}: step {step}: {}; {}",
                    config.arm,
                    crate::plain(&e),
                    kept(config, last_checkpoint)
                ),
            };
            let terms = finite_terms(&output, config, step, last_checkpoint)?;
            let grads = output.loss.backward()?;
            if step == 0 {
                gradient_audit(parameters, &grads)?;
            }
            optimiser.step(&grads, learning_rate)?;
            if step % config.log_every == 0 || step + 1 == config.steps {
                let loss = scalar(&output.loss)?;
                emit(step, EventKind::Step { loss, terms, learning_rate, residual })?;
            }
        }
        let done = step + 1;
        // First, because it checks that the variables are finite.
        if done % config.checkpoint_every == 0 || done == config.steps {
            save(
                store,
                &optimisers.iter().map(|o| &o.2).collect::<Vec<_>>(),
                config,
                done,
                last_checkpoint,
            )?;
            last_checkpoint = Some(done);
        }
        if done % config.evaluate_every == 0 || done == config.steps {
            emit(done, EventKind::Validation { validation_accuracy: validate()? })?;
        }
    }
    let residual = finite_residual(task, config, config.steps, last_checkpoint)?;
    Ok(larger(worst, residual))
}

fn scalar(value: &Tensor) -> Result<f64> {
    value.to_dtype(DType::F64)?.to_scalar::<f64>()
}

fn larger(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

fn finite_residual(
    task: &dyn DistillTask,
    config: &TrainerConfig,
    step: u64,
    last_checkpoint: Option<u64>,
) -> Result<Option<f64>> {
    let place = || format!("{}: step {step}", config.arm);
    match task.residual() {
        Ok(Some(r)) if !r.is_finite() => {
            bail!(
                "{}: expected a finite max|WᵀW−I|, got {r}; {}",
                place(),
                kept(config, last_checkpoint)
            )
        }
        Ok(residual) => Ok(residual),
        // A projector whose parameter broke refuses to give a weight.
        Err(e) => bail!("{}: {}; {}", place(), crate::plain(&e), kept(config, last_checkpoint)),
    }
}

fn finite_terms(
    output: &StepOutput,
    config: &TrainerConfig,
    step: u64,
    last_checkpoint: Option<u64>,
) -> Result<BTreeMap<String, f64>> {
    let mut values = BTreeMap::new();
    for term in &output.terms {
        let value = scalar(&term.value)?;
        // The weight can take a finite term out of range.
        if !scalar(&(&term.value * term.weight)?)?.is_finite() {
            bail!(
                "{}: step {step}: expected a finite loss, got {} · {value} in the term {}; {}",
                config.arm,
                term.weight,
                term.name,
                kept(config, last_checkpoint)
            )
        }
        values.insert(term.name.clone(), value);
    }
    Ok(values)
}

fn kept(config: &TrainerConfig, last_checkpoint: Option<u64>) -> String {
    match last_checkpoint {
        Some(step) => format!("{} holds the state after step {step}", config.checkpoint.display()),
        None => "no checkpoint had been written yet".to_owned(),
    }
}

fn save(
    store: &VarStore,
    optimisers: &[&AdamW],
    config: &TrainerConfig,
    step: u64,
    last_checkpoint: Option<u64>,
) -> Result<()> {
    let mut tensors = store.tensors();
    // A finite loss says nothing of the update that followed it.
    for (name, tensor) in &tensors {
        if !scalar(&tensor.abs()?.sum_all()?)?.is_finite() {
            bail!(
                "{}: step {step}: expected finite variables, got others in {name}; {}",
                config.arm,
                kept(config, last_checkpoint)
            )
        }
    }
    for optimiser in optimisers {
        let (_, state) = optimiser.state()?;
        tensors.extend(state.into_iter().map(|(name, t)| (format!("adamw.{name}"), t)));
    }
    checkpoint::save(
        &config.checkpoint,
        &tensors,
        &json!({ "arm": config.arm, "step": step, "seed": config.seed }),
    )
}
