//! Batch norm and group norm from plain tensor ops: slow, differentiable, any device.

use crate::ops::centre::{centred, columns, over_root, wide};
use candle_core::{Result, Tensor};

/// Twin of [`super::group_norm`], and with one sample and as many groups as channels of [`super::batch_norm`].
pub(crate) fn channel_norm(
    xs: &Tensor,
    groups: usize,
    samples: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let channels = weight.dim(0)?;
    let rows = xs.elem_count() / (samples * channels).max(1);
    let sets = xs.reshape((samples, rows, groups, channels / groups))?;
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let normed = over_root(&centred(&sets, &[1, 3])?.1, &[1, 3], eps)?.reshape(xs.shape())?;
    normed.broadcast_mul(weight)?.broadcast_add(bias)
}

/// Twin of [`super::batch_norm_with`].
pub(crate) fn batch_norm_with(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let inverse = (wide(variance, xs)? + eps)?.sqrt()?.recip()?;
    let normed = columns(xs, &wide(mean, xs)?, &inverse)?;
    normed.broadcast_mul(weight)?.broadcast_add(bias)
}
