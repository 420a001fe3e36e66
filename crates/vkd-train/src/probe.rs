//! What a validation logs beside the accuracy: how the features lie, and how hard each loss term pulls.

use crate::recipe::RecipeOf;
use crate::workload::{Stream, Workload};
use candle_core::{DType, Result};
use std::collections::{BTreeMap, HashMap};
use vkd_nn::{Context, VarStore};
use vkd_tasks::DistillTask;

/// Measures; changes nothing and draws nothing, so a run with it has the bits of one without.
pub(crate) struct Probe<'a, W: Workload> {
    pub(crate) task: &'a W::Task,
    pub(crate) recipe: &'a RecipeOf<W>,
    pub(crate) data: &'a W::Data,
    pub(crate) store: &'a VarStore,
    /// The batches again, where the terms' gradients are wanted.
    pub(crate) batches: Option<W::Batches>,
}

impl<W: Workload> Probe<'_, W> {
    /// The numbers after `done` updates; empty for a task without a tap.
    pub(crate) fn measure(&mut self, done: u64) -> Result<BTreeMap<String, f64>> {
        let geometry = W::geometry(self.task, self.recipe, self.data)?;
        let mut found: BTreeMap<String, f64> = geometry.into_iter().collect();
        if let Some(batches) = &mut self.batches {
            // A pass in training moves running statistics; they go back to where they were.
            let mut before = HashMap::new();
            for (name, tensor) in self.store.tensors() {
                before.insert(name, tensor.copy()?);
            }
            let (step, each) = (done.saturating_sub(1), self.recipe.training.accumulate);
            for phase in self.task.phases() {
                // The last batch that the phase's last update before the validation was made of.
                let round = step * self.task.rounds() + self.task.repeats(phase).saturating_sub(1);
                let number = ((round + 1) * each).saturating_sub(1);
                let batch = batches.get(number)?;
                let ctx = Context::train(self.recipe.seed, number, W::Task::sample_ids(&batch));
                for term in self.task.step(&batch, phase, &ctx)?.terms {
                    let grads = (&term.value * term.weight)?.backward()?;
                    let mut squares = 0.;
                    for (_, var) in self.store.parameters() {
                        if let Some(grad) = grads.get(&var) {
                            let square = grad.to_dtype(DType::F64)?.sqr()?.sum_all()?;
                            squares += square.to_scalar::<f64>()?;
                        }
                    }
                    let name = self.task.term_name(phase, &term.name);
                    found.insert(format!("gradient.{name}"), squares.sqrt());
                }
            }
            self.store.load(&before)?;
        }
        Ok(found)
    }
}
