//! Padded `n x n` solve by Gauss-Jordan elimination.

use crate::ops::common;
use candle_core::{D, Result, Tensor};

/// Twin of [`cayley`](crate::cayley): eliminates `[I - A/2 | (I + A/2) E]` column by column.
///
/// No pivoting: the symmetric part of `I - A/2` is the identity, so every pivot is at least 1.
///
/// # Errors
/// Those of the fast version, except that values are not looked at.
pub fn cayley(raw: &Tensor) -> Result<Tensor> {
    common::check("reference::cayley", raw)?;
    let (n, k) = (raw.dim(D::Minus2)?, raw.dim(D::Minus1)?);
    let half = (common::padded_skew(raw)? * 0.5)?;
    let eye = Tensor::eye(n, raw.dtype(), raw.device())?;
    let left = half.neg()?.broadcast_add(&eye)?;
    let right = half.broadcast_add(&eye)?.narrow(D::Minus1, 0, k)?;
    let mut system = Tensor::cat(&[&left, &right], D::Minus1)?;
    for j in 0..n {
        let pivot = system.narrow(D::Minus2, j, 1)?.narrow(D::Minus1, j, 1)?;
        let row = system.narrow(D::Minus2, j, 1)?.broadcast_div(&pivot)?;
        // Minus one in the pivot's own place leaves the divided row there.
        let unit = eye.narrow(1, j, 1)?;
        let factors = system.narrow(D::Minus1, j, 1)?.broadcast_sub(&unit)?;
        system = (&system - factors.broadcast_mul(&row)?)?;
    }
    system.narrow(D::Minus1, n, k)?.contiguous()
}
