//! Batch norm and group norm from plain tensor ops: slow, differentiable, any device.

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
    let n = (rows * (channels / groups)) as f64;
    let mean = |t: &Tensor| t.sum_keepdim(3)?.sum_keepdim(1)? / n;
    let centred = sets.broadcast_sub(&mean(&sets)?)?;
    let deviation = (mean(&centred.sqr()?)? + eps)?.sqrt()?;
    let normed = centred.broadcast_div(&deviation)?.reshape(xs.shape())?;
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
    let normed = xs.broadcast_sub(mean)?.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normed.broadcast_mul(weight)?.broadcast_add(bias)
}
