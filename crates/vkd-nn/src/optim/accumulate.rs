//! Gradients summed over micro-batches.

use super::blend::{Pair, blend_all};
use crate::ops::native_dtype;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var, bail};
use std::collections::BTreeMap;

const OP: &str = "accumulate";

/// Sums the gradients of several backward passes, by variable name, for one step of an optimiser. Sums of a half type are
/// f32, and optimisers take them as they are.
///
/// # Example
/// ```
/// # use candle_core::{Device, Var};
/// use vkd_nn::{GradAccumulator, Sgd, SgdConfig};
/// let var = Var::new(&[1f64], &Device::Cpu)?;
/// let mut sgd = Sgd::new(vec![("w".to_owned(), var.clone())], SgdConfig::default(), |_, _| false)?;
/// let mut sum = GradAccumulator::new(vec![("w".to_owned(), var.clone())]);
/// for micro_batch in [1., 3.] {
///     // Half the weight for each: the gradient of the mean over both.
///     sum.add(&(var.as_tensor() * micro_batch)?.sum_all()?.backward()?, 0.5)?;
/// }
/// sgd.step(&sum.take(), 0.25)?;
/// assert_eq!(var.to_vec1::<f64>()?, [0.5]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct GradAccumulator {
    parameters: Vec<(String, Var)>,
    sums: BTreeMap<String, Tensor>,
}

impl GradAccumulator {
    /// Sums of nothing over `parameters`.
    pub fn new(parameters: Vec<(String, Var)>) -> Self {
        Self { parameters, sums: BTreeMap::new() }
    }

    /// Adds `weight` times the gradients in `grads`. A parameter that no pass has reached has no sum.
    ///
    /// # Errors
    /// A weight that is not finite, or a gradient that is no float.
    pub fn add(&mut self, grads: &GradStore, weight: f64) -> Result<()> {
        if !weight.is_finite() {
            bail!("{OP}: expected a finite weight, got {weight}")
        }
        let mut pairs = Vec::new();
        for (name, var) in &self.parameters {
            let Some(grad) = grads.get(var) else { continue };
            let (to, keep) = match self.sums.get(name) {
                Some(sum) => (sum.clone(), 1.),
                // The first is copied: two variables may share one gradient tensor.
                None => (grad.to_dtype(native_dtype(grad.dtype()))?.force_contiguous()?, 0.),
            };
            pairs.push((name, Pair { to, from: grad.clone(), keep, take: weight }));
        }
        let (names, pairs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        blend_all(OP, &pairs)?;
        let sums = names.into_iter().cloned().zip(pairs.into_iter().map(|pair| pair.to));
        self.sums.extend(sums);
        Ok(())
    }

    /// The sums, as an optimiser takes them; starts again from nothing.
    pub fn take(&mut self) -> GradStore {
        let mut grads = GradStore::default();
        let mut sums = std::mem::take(&mut self.sums);
        for (name, var) in &self.parameters {
            if let Some(sum) = sums.remove(name) {
                grads.insert(var, sum);
            }
        }
        grads
    }
}
