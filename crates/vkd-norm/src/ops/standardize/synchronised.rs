//! Standardisation over the rows of all replicas.

use super::{Variance, check};
use crate::Replicas;
use crate::ops::centre::wide;
use candle_core::{Result, Tensor};

const OP: &str = "standardize_synchronised";

/// [`standardize`](super::standardize) of the rows of all replicas together, of which `xs` are this one's, with a choice of variance.
///
/// Mean and variance are those of all rows, with a gradient that goes through them: replicas that share a batch compute what one
/// would with all of it.
///
/// Replicas exchange `C + 1` numbers for the means and `C` for the squares, and each `C` again in the backward pass.
///
/// # Shapes
/// - `xs`: `(M, C)` with an `M >= 1` of each replica's own; f32, f64, f16 or bf16
/// - output: as `xs`
///
/// # Gradient
/// Flows to `xs`, through the statistics of all.
///
/// # Numerics
/// From plain tensor ops, all of them in f64: for deviations up to 1e150. A channel that is constant on all replicas gives zero, up to
/// rounding of its mean.
///
/// # Errors
/// Those of [`standardize`](super::standardize), and those of the way to the others.
///
/// # References
/// As [`standardize`](super::standardize).
pub fn standardize_synchronised(
    xs: &Tensor,
    variance: Variance,
    eps: f64,
    replicas: &Replicas,
) -> Result<Tensor> {
    let (rows, _) = check(OP, xs, eps)?;
    let all = replicas.total(rows as f64)?;
    let (dtype, device) = (xs.dtype(), xs.device());
    let xs = wide(xs, xs)?;
    // First the mean, so that the squares are about it and no digits cancel.
    let mean = (replicas.sum(&xs.sum_keepdim(0)?)? / all)?;
    let centred = xs.broadcast_sub(&mean)?;
    let v = (replicas.sum(&centred.sqr()?.sum_keepdim(0)?)? * variance.weight(all as usize))?;
    let squared = ((v * (1. + eps * eps))? + (mean * eps)?.sqr()?)?;
    // A channel that is all zero stays so, without gradient.
    let zero = squared.eq(0.)?;
    let ys = centred.broadcast_div(&zero.where_cond(&squared.ones_like()?, &squared)?.sqrt()?)?;
    let ys = zero.broadcast_as(ys.shape())?.where_cond(&ys.zeros_like()?, &ys)?;
    ys.to_dtype(dtype)?.to_device(device)
}
