//! Per-channel standardisation from plain tensor ops: slow, differentiable, any device.

use super::Variance;
use candle_core::{DType, Result, Tensor};

/// Twin of [`super::standardize_masked`]; a channel that is all zero divides by zero here.
pub(crate) fn standardize(
    xs: &Tensor,
    mask: Option<&Tensor>,
    variance: Variance,
    eps: f64,
) -> Result<Tensor> {
    let kept = |ys: Tensor| match mask {
        None => Ok(ys),
        Some(mask) => {
            let mask = mask.unsqueeze(1)?.broadcast_as(ys.shape())?.contiguous()?;
            mask.where_cond(&ys, &ys.zeros_like()?)
        }
    };
    let rows = match mask {
        None => xs.dim(0)?,
        Some(mask) => mask.ne(0u8)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? as usize,
    };
    if rows == 0 {
        return xs * 0.;
    }
    let mean = (kept(xs.clone())?.sum_keepdim(0)? / rows as f64)?;
    let centred = kept(xs.broadcast_sub(&mean)?)?;
    let v = (centred.sqr()?.sum_keepdim(0)? * variance.weight(rows))?;
    let squared = ((v * (1. + eps * eps))? + (mean.sqr()? * (eps * eps))?)?;
    centred.broadcast_div(&squared.sqrt()?)
}

/// Twin of [`super::standardize_with`].
pub(crate) fn standardize_with(
    xs: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let squared = ((variance * (1. + eps * eps))? + (mean.sqr()? * (eps * eps))?)?;
    xs.broadcast_sub(mean)?.broadcast_div(&squared.sqrt()?)
}
