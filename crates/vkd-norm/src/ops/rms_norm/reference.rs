//! RMS norm from plain tensor ops: slow, differentiable, any device.

use crate::ops::centre::over_root;
use candle_core::{Result, Tensor};

/// Twin of [`super::rms_norm`].
pub(crate) fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    over_root(xs, &[xs.rank() - 1], eps)?.broadcast_mul(weight)
}
