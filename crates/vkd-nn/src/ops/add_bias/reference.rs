//! A bias from tensor ops.

use candle_core::{Result, Tensor};

/// Twin of [`crate::ops::add_bias`].
pub fn add_bias(xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
    xs.broadcast_add(bias)
}
