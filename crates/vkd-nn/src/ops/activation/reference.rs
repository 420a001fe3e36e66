//! Activations from tensor ops.

use super::Activation;
use candle_core::{Result, Tensor};
use std::f64::consts::{FRAC_2_PI, SQRT_2};

/// Twin of [`crate::gelu`]; its gradient is candle's `erf` derivative, good to about 1e-6.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    (xs * 0.5)? * ((xs / SQRT_2)?.erf()? + 1.)?
}

/// Twin of [`crate::gelu_tanh`].
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    let inner = (xs + (xs.sqr()? * xs)?.affine(0.044715, 0.)?)?.affine(FRAC_2_PI.sqrt(), 0.)?;
    (xs * 0.5)? * (inner.tanh()? + 1.)?
}

/// Twin of [`crate::relu`]: the values times a constant mask.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    xs * xs.detach().gt(0.)?.to_dtype(xs.dtype())?
}

/// Twin of [`crate::relu6`]: two ReLUs, the second taking back what is above 6.
pub fn relu6(xs: &Tensor) -> Result<Tensor> {
    relu(xs)? - relu(&(xs - 6.)?)?
}

/// Twin of [`crate::silu`].
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    xs / (xs.neg()?.exp()? + 1.)?
}

/// The twin of an activation by its name.
pub fn activate(xs: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(xs.clone()),
        Activation::Gelu => gelu(xs),
        Activation::GeluTanh => gelu_tanh(xs),
        Activation::Relu => relu(xs),
        Activation::Relu6 => relu6(xs),
        Activation::Silu => silu(xs),
    }
}
