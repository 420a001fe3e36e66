//! Per-channel standardisation from plain tensor ops: slow, differentiable, any device.

use candle_core::{Result, Tensor};

/// Twin of [`super::standardize`]; a channel that is all zero divides by zero here.
pub(crate) fn standardize(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let rows = xs.dim(0)?;
    let centred = xs.broadcast_sub(&xs.mean_keepdim(0)?)?;
    let variance = (centred.sqr()?.sum_keepdim(0)? / (rows.max(2) - 1) as f64)?;
    let guard = (xs.sqr()?.mean_keepdim(0)? * (eps * eps))?;
    centred.broadcast_div(&(variance + guard)?.sqrt()?)
}
