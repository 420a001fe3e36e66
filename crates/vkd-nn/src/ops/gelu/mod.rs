//! GELU in its exact form.

mod cpu;
pub(crate) mod reference;

use candle_core::{Result, Tensor};

crate::ops::elementwise!("gelu", cpu::value, cpu::gradient);

/// `x · Φ(x)` with the exact normal distribution function (Hendrycks and Gimpel, arXiv:1606.08415), as PyTorch's default.
///
/// candle's own GELU has derivative constants cut to six digits; this one's gradient is exact to the dtype.
///
/// # Shapes
/// Any shape and strides; f32 or f64; the output is contiguous.
///
/// # Numerics
/// The distribution function is good to 2e-7 absolute in f32 and to rounding in f64.
///
/// # Errors
/// Another dtype or device.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    xs.contiguous()?.apply_op1(Forward)
}
