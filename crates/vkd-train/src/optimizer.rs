//! The optimiser that a recipe names.

use crate::recipe::{OptimizerKind, TrainingConfig};
use crate::trainer::decays;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use std::collections::{BTreeMap, HashMap};
use vkd_nn::{AdamW, AdamWConfig, Lamb, LambConfig, Optimizer, Rule, Sgd, SgdConfig};

/// An optimiser of any rule.
pub(crate) trait AnyOptimizer {
    /// One update, with the gradients clipped to a global norm of `clip`.
    fn update(&mut self, grads: &GradStore, learning_rate: f64, clip: Option<f64>) -> Result<()>;

    /// Its state by name; the number of updates travels beside it.
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>>;

    /// Takes up a state after `step` updates.
    fn take_up(&mut self, step: u64, state: &HashMap<String, Tensor>) -> Result<()>;
}

impl<R: Rule> AnyOptimizer for Optimizer<R> {
    fn update(&mut self, grads: &GradStore, learning_rate: f64, clip: Option<f64>) -> Result<()> {
        match clip {
            Some(norm) => self.clipped_step(grads, learning_rate, norm).map(|_| ()),
            None => self.step(grads, learning_rate),
        }
    }

    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        Ok(self.state()?.1)
    }

    fn take_up(&mut self, step: u64, state: &HashMap<String, Tensor>) -> Result<()> {
        self.load_state(step, state)
    }
}

pub(crate) fn optimizer(
    training: &TrainingConfig,
    parameters: Vec<(String, Var)>,
) -> Result<Box<dyn AnyOptimizer>> {
    let (weight_decay, beta1) = (training.weight_decay, training.beta1);
    let decays = |name: &str, var: &Var| decays(name, var.rank());
    Ok(match training.optimizer {
        OptimizerKind::Adamw => {
            let config = AdamWConfig { weight_decay, beta1, ..AdamWConfig::default() };
            Box::new(AdamW::new(parameters, config, decays)?)
        }
        OptimizerKind::Sgd => {
            let config =
                SgdConfig { momentum: training.momentum, weight_decay, ..SgdConfig::default() };
            Box::new(Sgd::new(parameters, config, decays)?)
        }
        OptimizerKind::Lamb => {
            let config = LambConfig { weight_decay, beta1, ..LambConfig::default() };
            Box::new(Lamb::new(parameters, config, decays)?)
        }
    })
}
