//! What a recipe asks for, found without training: every arm is built and takes one small step in memory.

use crate::audit::FirstSteps;
use crate::build::{start_student, starting_teacher, teacher_parameters as parameters_of};
use crate::cache::CachePlan;
use crate::ranks::Ranks;
use crate::recipe::{ComputeKind, RecipeOf};
use crate::workload::{Stream, Workload};
use candle_core::{DType, Error, Result};
use std::collections::BTreeMap;
use std::time::Instant;
use vkd_nn::{Context, VarStore};
use vkd_norm::flags;
use vkd_tasks::{DistillTask, Phase};

/// How far the audit moves every value: enough to leave a zero.
const NUDGE: f64 = 1e-3;

/// Images of the trial step, at most.
const TRIAL: usize = 8;

/// The plan of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Trainable values of the teacher.
    pub teacher_parameters: usize,
    /// Bytes of its weights as its students ask it, in `teacher.compute`.
    pub teacher_bytes: usize,
    /// Multiply-adds of the teacher for one image.
    pub teacher_multiply_adds: usize,
    /// Multiply-adds of the student for one image.
    pub student_multiply_adds: usize,
    /// The arms in the recipe's order.
    pub arms: Vec<ArmPlan>,
    /// Images of a trial step.
    pub trial_images: usize,
    /// Batches of a step: one but for a GAN.
    pub rounds: u64,
    /// What the teacher's remembered answers take, where it remembers them.
    pub cache: Option<CachePlan>,
}

/// The plan of one arm.
#[derive(Clone, Debug, PartialEq)]
pub struct ArmPlan {
    /// Name.
    pub name: String,
    /// Weight of each loss term.
    pub terms: BTreeMap<String, f64>,
    /// Labels that it knows.
    pub labels: usize,
    /// Trainable values of the student.
    pub student_parameters: usize,
    /// Trainable values of its projectors.
    pub projector_parameters: usize,
    /// Bytes of all variables with their gradients and the optimiser's two moments.
    pub state_bytes: usize,
    /// Bytes of the student's weights in `training.compute` with their gradients, beside the variables in f32; 0 where it
    /// computes in f32.
    pub compute_bytes: usize,
    /// Seconds of the trial step, forward and backward.
    pub trial_seconds: f64,
    /// The loss of the trial step.
    pub loss: f64,
    /// Batches of a step.
    rounds: u64,
}

/// Builds everything, takes one step of a few images an arm with a teacher as it begins (or the given one), audits its
/// gradients, and throws all of it away. Nothing is written.
///
/// # Errors
/// What [`check`](crate::check) refuses, sizes of the two networks that don't fit, a loss that can't be computed or is not
/// finite, or a variable that would not learn.
pub fn plan<W: Workload>(recipe: &RecipeOf<W>, data: &W::Data) -> Result<Plan> {
    crate::check(recipe, data)?;
    let trial = TRIAL.min(recipe.training.batch);
    let (mut arms, mut teacher_parameters, mut teacher_bytes) = (Vec::new(), 0, 0);
    for name in &recipe.arms {
        let store = starting_teacher(recipe, data, &recipe.device()?)?;
        teacher_parameters = parameters_of::<W>(&store);
        let values: usize = store.tensors().values().map(|t| t.elem_count()).sum();
        teacher_bytes = values * recipe.teacher.compute.dtype().size_in_bytes();
        let teacher = W::teacher(recipe, data, &store)?;
        let named = |e: Error| Error::Msg(format!("arm {name}: {}", crate::plain(&e)));
        arms.push(arm::<W>(recipe, data, name, teacher, trial).map_err(named)?);
    }
    let [teacher_multiply_adds, student_multiply_adds] = W::multiply_adds(recipe, data)?;
    Ok(Plan {
        teacher_parameters,
        teacher_bytes,
        teacher_multiply_adds,
        student_multiply_adds,
        trial_images: trial,
        rounds: arms.first().map_or(1, |arm| arm.rounds),
        arms,
        cache: W::cache_plan(recipe, data)?,
    })
}

fn arm<W: Workload>(
    recipe: &RecipeOf<W>,
    data: &W::Data,
    name: &str,
    teacher: W::Teacher,
    trial: usize,
) -> Result<ArmPlan> {
    let config = recipe.arm(name)?;
    let store = VarStore::new(recipe.seed, DType::F32, &recipe.device()?);
    // Built twice, as only the first holds the student alone: variables are found again by their names.
    W::student_task(recipe, data, &store, None, None)?;
    start_student(recipe, &store)?;
    let student_parameters = store.parameter_count();
    let distiller = match config.uses_teacher() {
        // Without the teacher: what would be gathered from it over the data is the batch's here.
        true => Some(W::distiller(recipe, config, data, &store, None)?),
        false => None,
    };
    let teacher = W::wants_teacher(config).then_some(teacher);
    let task = W::student_task(recipe, data, &store, teacher, distiller)?;
    let (mut batches, labels) = W::batches(recipe, data, config)?;
    let batch = W::first(&batches.get(0)?, trial)?;
    W::check_task(&task, recipe, data)?;
    let (mut loss, mut fastest) = (0., f64::INFINITY);
    // The first time pays for thread pools and first pages; where a step is short it is taken again.
    for _ in 0..3 {
        let started = Instant::now();
        loss = 0.;
        for phase in task.phases() {
            let ctx = Context::train(recipe.seed, 0, W::Task::sample_ids(&batch));
            for repeat in 0..task.repeats(phase) {
                let output = task.step(&batch, phase, &ctx)?;
                output.loss.backward()?;
                if repeat == 0 {
                    loss += output.loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                }
            }
        }
        fastest = fastest.min(started.elapsed().as_secs_f64());
        if fastest > 0.5 {
            break;
        }
    }
    for phase in task.phases() {
        audit::<W>(&task, &store, phase, recipe.seed, &batch)?;
    }
    flags::check(&recipe.device()?)?;
    if !loss.is_finite() {
        return Err(Error::Msg(format!("expected a finite loss at the first step, got {loss}")));
    }
    let parameters = store.parameter_count();
    let buffers: usize =
        store.tensors().values().map(|t| t.elem_count()).sum::<usize>() - parameters;
    Ok(ArmPlan {
        name: name.to_owned(),
        terms: W::term_weights(recipe, config),
        labels,
        student_parameters,
        projector_parameters: parameters - student_parameters,
        state_bytes: (4 * parameters + buffers) * DType::F32.size_in_bytes(),
        compute_bytes: match recipe.training.compute {
            ComputeKind::F32 => 0,
            half => 2 * student_parameters * half.dtype().size_in_bytes(),
        },
        trial_seconds: fastest,
        loss,
        rounds: task.rounds(),
    })
}

/// The gradient audit of a phase's first steps, each moving every value a little downhill.
fn audit<W: Workload>(
    task: &W::Task,
    store: &VarStore,
    phase: &Phase,
    seed: u64,
    batch: &<W::Task as DistillTask>::Batch,
) -> Result<()> {
    let all = store.parameters().into_iter();
    let parameters: Vec<_> = all.filter(|(name, _)| name.starts_with(phase.prefix)).collect();
    let mut audit = FirstSteps::default();
    // Nothing shows of a batch that says nothing; the training looks at others.
    for step in 0..if W::Task::speaks(batch) { u64::MAX } else { 0 } {
        if !audit.wants(step) {
            break;
        }
        let ctx = Context::train(seed, step, W::Task::sample_ids(batch));
        let output = task.step(batch, phase, &ctx)?;
        let grads = output.loss.backward()?;
        audit.look(&parameters, &grads, &output.terms, false, &Ranks::alone())?;
        for (_, var) in &parameters {
            if let Some(grad) = grads.get(var) {
                var.set(&(var.as_tensor() - (grad.sign()? * NUDGE)?)?.detach())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dataset, Recipe};

    #[test]
    fn an_arm_is_built_and_steps_once() -> Result<()> {
        let set = ["arms=[\"none\", \"linear\", \"vkd\"]".to_owned()];
        let recipe = Recipe::parse(include_str!("../tests/tiny.toml"), "tiny.toml", &set)?;
        let found = plan(&recipe, &Dataset::open(&recipe.data)?)?;
        let [none, linear, vkd] = &found.arms[..] else { panic!("three arms") };
        assert_eq!((found.trial_images, none.projector_parameters), (8, 0));
        // From width 4 to 8, a parameter an entry; the orthogonal one has a base as large.
        assert_eq!((linear.projector_parameters, vkd.projector_parameters), (32, 32));
        assert_eq!(linear.state_bytes, 16 * (linear.student_parameters + 32));
        assert_eq!(vkd.state_bytes, linear.state_bytes + 4 * 32);
        assert!(found.arms.iter().all(|a| a.loss.is_finite() && a.labels == 20));
        assert_eq!((none.compute_bytes, found.teacher_bytes), (0, 4 * found.teacher_parameters));
        let half = ["training.compute=bf16", "teacher.compute=bf16"];
        let set: Vec<String> = set.iter().cloned().chain(half.map(str::to_owned)).collect();
        let recipe = Recipe::parse(include_str!("../tests/tiny.toml"), "tiny.toml", &set)?;
        let rounded = plan(&recipe, &Dataset::open(&recipe.data)?)?;
        let student = none.student_parameters;
        assert_eq!(rounded.teacher_bytes, 2 * found.teacher_parameters);
        for (half, single) in rounded.arms.iter().zip(&found.arms) {
            assert_eq!((half.compute_bytes, half.state_bytes), (4 * student, single.state_bytes));
            // A few roundings to eight bits; the same bits would mean that nothing was rounded.
            let apart = (half.loss / single.loss - 1.).abs();
            assert!(apart > 0. && apart < 0.02, "{}: {apart}", half.name);
        }
        Ok(())
    }
}
