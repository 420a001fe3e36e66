//! Per-channel standardisation from plain tensor ops: slow, differentiable, any device.

use super::Variance;
use crate::ops::centre::{centred, columns, wide};
use candle_core::{Result, Tensor};

/// Twin of [`super::standardize_masked`].
pub(crate) fn standardize(
    xs: &Tensor,
    mask: Option<&Tensor>,
    variance: Variance,
    eps: f64,
) -> Result<Tensor> {
    let Some(mask) = mask else { return of_all(xs, variance, eps) };
    let keep = (0..xs.dim(0)? as u32).zip(mask.to_vec1::<u8>()?);
    let kept: Vec<u32> = keep.filter(|(_, keep)| *keep != 0).map(|(i, _)| i).collect();
    if kept.is_empty() {
        // Zero, whatever is in the rows, and on the tape.
        let mask = mask.unsqueeze(1)?.broadcast_as(xs.shape())?.contiguous()?;
        return mask.where_cond(xs, &xs.zeros_like()?);
    }
    let kept = Tensor::new(kept, xs.device())?;
    let ys = of_all(&xs.index_select(&kept, 0)?, variance, eps)?;
    xs.zeros_like()?.index_add(&kept, &ys, 0)
}

fn of_all(xs: &Tensor, variance: Variance, eps: f64) -> Result<Tensor> {
    let (mean, centred) = centred(xs, &[0])?;
    // Each channel over its largest deviation (over its value if it is constant), which drops out again: so no square
    // leaves the range of the dtype.
    let or = |a: Tensor, b: &Tensor| a.eq(0.)?.where_cond(b, &a);
    let size = or(centred.detach().abs()?.max_keepdim(0)?, &mean.detach().abs()?)?;
    let size = or(size.clone(), &size.ones_like()?)?;
    let (mean, centred) = (mean.broadcast_div(&size)?, centred.broadcast_div(&size)?);
    let v = (centred.sqr()?.sum_keepdim(0)? * variance.weight(xs.dim(0)?))?;
    let squared = ((v * (1. + eps * eps))? + (mean * eps)?.sqr()?)?;
    // A channel that is all zero stays so, without gradient.
    let zero = squared.eq(0.)?;
    let ys = centred.broadcast_div(&zero.where_cond(&squared.ones_like()?, &squared)?.sqrt()?)?;
    zero.broadcast_as(ys.shape())?.where_cond(&ys.zeros_like()?, &ys)
}

/// Twin of [`super::standardize_with`]; shift and factor are made in f64.
pub(crate) fn standardize_with(
    xs: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let (mean, variance) = (wide(mean, xs)?, wide(variance, xs)?);
    let squared = ((variance * (1. + eps * eps))? + (&mean * eps)?.sqr()?)?;
    let zero = squared.eq(0.)?;
    let root = zero.where_cond(&squared.ones_like()?, &squared)?.sqrt()?;
    let inverse = zero.where_cond(&root.zeros_like()?, &root.recip()?)?;
    columns(xs, &mean, &inverse)
}
