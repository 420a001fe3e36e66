//! ReLU whose gradient at zero is zero.

mod cpu;
pub(crate) mod reference;

use candle_core::{Result, Tensor};

crate::ops::elementwise!("relu", cpu::value, cpu::gradient);

/// `max(x, 0)`, with gradient 0 at exactly 0 as in PyTorch; candle's own has 1 there.
///
/// # Shapes
/// Any shape and strides; f32 or f64; the output is contiguous. NaN stays NaN.
///
/// # Errors
/// Another dtype or device.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    xs.contiguous()?.apply_op1(Forward)
}
