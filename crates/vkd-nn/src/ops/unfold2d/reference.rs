//! Windows from tensor ops.

use candle_core::{Result, Tensor};

/// Twin of [`crate::unfold2d`]: one strided copy per position of the kernel.
///
/// # Errors
/// Its errors on shape and window.
pub fn unfold2d(xs: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    super::output_dims(xs.dims(), super::Window { kernel, stride, padding })?;
    let padded = xs.pad_with_zeros(1, padding, padding)?.pad_with_zeros(2, padding, padding)?;
    let (_, height, width, _) = padded.dims4()?;
    let steps = |size: usize, offset: usize| -> Result<Tensor> {
        let count = (size - kernel) / stride + 1;
        let indices: Vec<u32> = (0..count).map(|i| (offset + i * stride) as u32).collect();
        Tensor::new(indices, xs.device())
    };
    let mut parts = Vec::new();
    for i in 0..kernel {
        for j in 0..kernel {
            parts.push(
                padded.index_select(&steps(height, i)?, 1)?.index_select(&steps(width, j)?, 2)?,
            );
        }
    }
    Tensor::cat(&parts, 3)
}
