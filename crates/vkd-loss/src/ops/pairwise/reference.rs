//! All distances from plain tensor ops: slow, differentiable, any device.

use candle_core::{D, Result, Tensor};

/// Twin of [`super::pairwise_distance`].
pub(crate) fn pairwise_distance(xs: &Tensor) -> Result<Tensor> {
    let squares = xs.unsqueeze(1)?.broadcast_sub(&xs.unsqueeze(0)?)?.sqr()?.sum(D::Minus1)?;
    // Negated, so that NaN is not taken for zero.
    let same = squares.le(0.)?;
    let safe = same.where_cond(&squares.ones_like()?, &squares)?.sqrt()?;
    same.where_cond(&safe.zeros_like()?, &safe)
}
