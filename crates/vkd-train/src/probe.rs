//! What a validation logs beside the accuracy: how the features lie, and how hard each loss term pulls.

use crate::batches::{Batches, readable_images};
use crate::data::Dataset;
use crate::score::EVALUATION_BATCH;
use candle_core::{DType, Result};
use std::collections::{BTreeMap, HashMap};
use vkd_nn::{Context, VarStore};
use vkd_tasks::{ClassificationTask, DistillTask};

/// Measures; changes nothing and draws nothing, so a run with it has the bits of one without.
pub(crate) struct Probe<'a> {
    pub(crate) task: &'a ClassificationTask,
    pub(crate) data: &'a Dataset,
    pub(crate) store: &'a VarStore,
    pub(crate) seed: u64,
    /// Batches a step.
    pub(crate) accumulate: u64,
    /// The batches again, where the terms' gradients are wanted.
    pub(crate) batches: Option<Batches>,
}

impl Probe<'_> {
    /// The numbers after `done` updates; empty for a task without a tap.
    pub(crate) fn measure(&mut self, done: u64) -> Result<BTreeMap<String, f64>> {
        let images = &self.data.validation[..self.data.validation.len().min(EVALUATION_BATCH)];
        let mut found = BTreeMap::new();
        // Two images at least: one alone has no rank.
        if images.len() > 1 {
            let (images, _) = readable_images(self.data, images, self.data.preprocessing())?;
            found.extend(self.task.geometry(&images)?);
        }
        if let Some(batches) = &mut self.batches {
            // The last batch that the step before the validation was made of.
            let step = (done * self.accumulate).saturating_sub(1);
            let batch = batches.get(step)?;
            let ctx = Context::train(self.seed, step, batch.sample_ids.clone());
            // A pass in training moves running statistics; they go back to where they were.
            let mut before = HashMap::new();
            for (name, tensor) in self.store.tensors() {
                before.insert(name, tensor.copy()?);
            }
            for phase in self.task.phases() {
                for term in self.task.step(&batch, phase, &ctx)?.terms {
                    let grads = (&term.value * term.weight)?.backward()?;
                    let mut squares = 0.;
                    for (_, var) in self.store.parameters() {
                        if let Some(grad) = grads.get(&var) {
                            let square = grad.to_dtype(DType::F64)?.sqr()?.sum_all()?;
                            squares += square.to_scalar::<f64>()?;
                        }
                    }
                    found.insert(format!("gradient.{}", term.name), squares.sqrt());
                }
            }
            self.store.load(&before)?;
        }
        Ok(found)
    }
}
