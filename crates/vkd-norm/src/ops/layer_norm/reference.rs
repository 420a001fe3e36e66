//! Layer norm from plain tensor ops: slow, differentiable, any device.

use candle_core::{D, Result, Tensor};

/// Twin of [`super::layer_norm`].
pub(crate) fn layer_norm(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)
}

/// Twin of [`super::layer_norm_affine`].
pub(crate) fn layer_norm_affine(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    layer_norm(xs, eps)?.broadcast_mul(weight)?.broadcast_add(bias)
}
