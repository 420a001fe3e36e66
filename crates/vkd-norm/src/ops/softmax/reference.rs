//! Softmax and log-softmax from plain tensor ops: slow, differentiable, any device.

use candle_core::{D, Result, Tensor};

fn shifted(xs: &Tensor) -> Result<Tensor> {
    xs.broadcast_sub(&xs.max_keepdim(D::Minus1)?.detach())
}

/// Twin of [`super::softmax`].
pub(crate) fn softmax(xs: &Tensor) -> Result<Tensor> {
    let weights = shifted(xs)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}

/// Twin of [`super::log_softmax`].
pub(crate) fn log_softmax(xs: &Tensor) -> Result<Tensor> {
    let shifted = shifted(xs)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
