//! Cholesky whitening from plain tensor ops: slow, differentiable, any device.

use super::{NotPositiveDefinite, pivot_floor};
use candle_core::{DType, Error, Result, Tensor};

/// Twin of [`super::whiten_cholesky`]: elimination channel by channel in f64, one read-back for each.
pub(crate) fn whiten_cholesky(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let (rows, channels) = xs.dims2()?;
    let dtype = xs.dtype();
    let xs = &xs.to_dtype(DType::F64)?;
    let mut left = xs.broadcast_sub(&xs.mean_keepdim(0)?)?;
    let eye = Tensor::eye(channels, xs.dtype(), xs.device())?;
    let covariance = left.t()?.matmul(&left)?.affine((1. - eps) / (rows - 1) as f64, 0.)?;
    let mut s = (covariance + eye.affine(eps, 0.)?)?;
    let variances = (&s * &eye)?.sum(1)?.to_vec1::<f64>()?;
    let mut ys = Vec::with_capacity(channels);
    for (j, variance) in variances.into_iter().enumerate() {
        let rest = channels - j - 1;
        let corner = s.narrow(0, 0, 1)?.narrow(1, 0, 1)?;
        let pivot = corner.sum_all()?.to_scalar::<f64>()? / variance;
        if pivot.is_nan() || pivot <= pivot_floor(rows, channels) {
            return Err(Error::wrap(NotPositiveDefinite { rows, channels, eps, index: j, pivot }));
        }
        let root = corner.sqrt()?;
        let y = left.narrow(1, 0, 1)?.broadcast_div(&root)?;
        if rest > 0 {
            let column = s.narrow(0, 1, rest)?.narrow(1, 0, 1)?.broadcast_div(&root)?;
            let row = column.t()?;
            left = (left.narrow(1, 1, rest)? - y.matmul(&row)?)?;
            s = (s.narrow(0, 1, rest)?.narrow(1, 1, rest)? - column.matmul(&row)?)?;
        }
        ys.push(y);
    }
    Tensor::cat(&ys, 1)?.to_dtype(dtype)
}
