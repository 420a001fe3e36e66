//! Layer norm from plain tensor ops: slow, differentiable, any device.

use crate::ops::centre::centred;
use candle_core::{D, Result, Tensor};

/// Twin of [`super::layer_norm`].
pub(crate) fn layer_norm(xs: &Tensor, eps: f64) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let (_, centred) = centred(xs, &[xs.rank() - 1])?;
    // Large rows over their largest deviation, which drops out again: so no square overflows.
    let size = centred.detach().abs()?.max_keepdim(D::Minus1)?.maximum(1.)?;
    let scaled = centred.broadcast_div(&size)?;
    let variance = (scaled.sqr()?.mean_keepdim(D::Minus1)? + (size.recip()?.sqr()? * eps)?)?;
    scaled.broadcast_div(&variance.sqrt()?)
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
