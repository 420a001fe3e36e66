//! GELU from tensor ops.

use candle_core::{Result, Tensor};
use std::f64::consts::SQRT_2;

/// Twin of [`crate::gelu`]; its gradient is candle's `erf` derivative, good to about 1e-6.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    (xs * 0.5)? * ((xs / SQRT_2)?.erf()? + 1.)?
}
