//! Affine map of the last dimension.

use crate::ops::{self, Activation};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// `act(xs · weightᵀ + bias)` over the last dimension; see [`ops::linear`].
#[derive(Clone, Debug)]
pub struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) activation: Activation,
}

/// Creates a [`Linear`] with variables `weight` `(out_dim, in_dim)` and `bias` `(out_dim)`.
///
/// The weight starts normal with standard deviation `sqrt(1 / in_dim)`, which keeps the variance of unit inputs; the
/// bias starts at zero.
///
/// # Errors
/// A zero width.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    let bias = vb.clone();
    let layer = linear_no_bias(in_dim, out_dim, vb)?;
    Ok(Linear { bias: Some(bias.get_with_hints(out_dim, "bias", Init::Const(0.))?), ..layer })
}

/// As [`linear`], without a bias.
///
/// # Errors
/// A zero width.
pub fn linear_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    if in_dim == 0 || out_dim == 0 {
        bail!("linear {}: expected widths above 0, got {in_dim} -> {out_dim}", vb.prefix())
    }
    let init = Init::Randn { mean: 0., stdev: (in_dim as f64).sqrt().recip() };
    let weight = vb.get_with_hints((out_dim, in_dim), "weight", init)?;
    Ok(Linear { weight, bias: None, activation: Activation::Identity })
}

impl Linear {
    /// The same layer with an activation at its end, in the same op.
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }
}

impl Module for Linear {
    /// `(.., in_dim)` to `(.., out_dim)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::linear(xs, &self.weight, self.bias.as_ref(), self.activation)
    }
}
