//! An affine map from tensor ops.

use crate::ops::Activation;
use crate::ops::activation::reference::activate;
use candle_core::{Result, Tensor};

/// Twin of [`crate::ops::linear`].
pub fn linear(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let ys = xs.contiguous()?.broadcast_matmul(&weight.t()?.contiguous()?)?;
    let ys = match bias {
        Some(bias) => ys.broadcast_add(bias)?,
        None => ys,
    };
    activate(&ys, activation)
}
