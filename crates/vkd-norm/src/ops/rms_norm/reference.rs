//! RMS norm from plain tensor ops: slow, differentiable, any device.

use candle_core::{D, Result, Tensor};

/// Twin of [`super::rms_norm`].
pub(crate) fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let root = (xs.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    xs.broadcast_div(&root)?.broadcast_mul(weight)
}
