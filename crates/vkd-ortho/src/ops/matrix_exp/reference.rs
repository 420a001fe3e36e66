//! Taylor series of the padded `n x n` matrix with scaling and squaring.

use crate::ops::common;
use candle_core::{D, DType, Result, Tensor};

/// Twin of [`matrix_exp`](crate::matrix_exp): halve until the largest row sum is below ½, 18 terms by Horner, square back.
///
/// # Errors
/// Those of the fast version, except that values are not looked at.
pub fn matrix_exp(raw: &Tensor) -> Result<Tensor> {
    common::check("reference::matrix_exp", raw)?;
    let (n, k) = (raw.dim(D::Minus2)?, raw.dim(D::Minus1)?);
    let a = common::padded_skew(raw)?;
    if a.elem_count() == 0 {
        return a.narrow(D::Minus1, 0, k);
    }
    let rows = a.detach().abs()?.sum(D::Minus1)?;
    let norm = rows.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    let squarings = (2. * norm).max(1.).log2().ceil();
    let a = (a * (-squarings).exp2())?;
    let eye = Tensor::eye(n, raw.dtype(), raw.device())?;
    let mut exp = a.zeros_like()?.broadcast_add(&eye)?;
    for term in (1..=18).rev() {
        exp = (a.matmul(&exp)? / f64::from(term))?.broadcast_add(&eye)?;
    }
    for _ in 0..squarings as usize {
        exp = exp.matmul(&exp)?;
    }
    exp.narrow(D::Minus1, 0, k)?.contiguous()
}
