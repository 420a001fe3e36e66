//! Layer norm from plain tensor ops: slow, differentiable, any device.

use crate::ops::centre::{centred, over_root};
use candle_core::{Result, Tensor};

/// Twin of [`super::layer_norm`].
pub(crate) fn layer_norm(xs: &Tensor, eps: f64) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let last = [xs.rank() - 1];
    over_root(&centred(xs, &last)?.1, &last, eps)
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
