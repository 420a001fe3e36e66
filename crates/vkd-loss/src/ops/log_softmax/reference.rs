//! Log-softmax from plain tensor ops: slow, differentiable, any device.

use candle_core::{D, Result, Tensor};

/// Twin of [`super::log_softmax`].
pub(crate) fn log_softmax(xs: &Tensor) -> Result<Tensor> {
    let largest = xs.max_keepdim(D::Minus1)?.detach();
    let shifted = xs.broadcast_sub(&largest)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
