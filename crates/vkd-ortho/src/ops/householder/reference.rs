//! Reflectors applied one at a time.

use crate::ops::common;
use candle_core::{D, Result, Tensor};

/// Twin of [`householder_product`](crate::householder_product): for `j = k .. 1`, `Q <- Q - τ_j v_j (v_jᵀ Q)`.
///
/// # Errors
/// Those of the fast version, except that values are not looked at.
pub fn householder_product(v: &Tensor) -> Result<Tensor> {
    common::check("reference::householder_product", v)?;
    let (n, k) = (v.dim(D::Minus2)?, v.dim(D::Minus1)?);
    let eye = Tensor::eye(n, v.dtype(), v.device())?;
    let mut q = eye.narrow(1, 0, k)?.broadcast_as(v.shape())?.contiguous()?;
    for j in (0..k).rev() {
        let column = v.narrow(D::Minus1, j, 1)?;
        let one = column.narrow(D::Minus2, j, 1)?.ones_like()?;
        // candle's `cat` doesn't take a slice without rows.
        let column = match n - j - 1 {
            0 => one,
            rows => Tensor::cat(&[&one, &column.narrow(D::Minus2, j + 1, rows)?], D::Minus2)?,
        };
        let column = column.pad_with_zeros(D::Minus2, j, 0)?;
        let tau = column.sqr()?.sum_keepdim(D::Minus2)?.recip()?.affine(2., 0.)?;
        let row = column.broadcast_mul(&q)?.sum_keepdim(D::Minus2)?.broadcast_mul(&tau)?;
        q = (&q - column.broadcast_mul(&row)?)?;
    }
    Ok(q)
}
