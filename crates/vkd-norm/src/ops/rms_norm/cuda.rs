//! RMS norm on a CUDA device.

use super::launch;
use crate::ops::program::{Source, run, run_on_tensors};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};

const SOURCE: Source = Source {
    module: "vkd_norm::rms_norm",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/rms_norm.ptx")),
};

pub(super) fn forward(
    xs: (&CudaStorage, &Layout),
    weight: (&CudaStorage, &Layout),
    channels: usize,
    eps: f64,
) -> Result<(CudaStorage, Shape)> {
    let shape = xs.1.shape().clone();
    let program = launch::forward(xs.0.dtype(), shape.elem_count() / channels, channels, eps)?;
    let mut buffers = run(SOURCE, &program, &[xs, weight])?;
    Ok((buffers.swap_remove(0), shape))
}

/// Gradients of input and gain.
pub(super) fn backward(
    xs: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
    channels: usize,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let program = launch::backward(xs.dtype(), xs.elem_count() / channels, channels, eps)?;
    let mut buffers = run_on_tensors(SOURCE, &program, &[xs, weight, grad])?;
    Ok((buffers[0].reshape(xs.shape())?, buffers.swap_remove(1)))
}
