//! Layer norm on a CUDA device.

use super::launch::Rows;
use crate::ops::program::{Source, run, run_on_tensors};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};

const SOURCE: Source = Source {
    module: "vkd_norm::layer_norm",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/layer_norm.ptx")),
};

/// The input, and gain and bias if there are any.
pub(super) fn forward(
    inputs: &[(&CudaStorage, &Layout)],
    channels: usize,
    eps: f64,
) -> Result<(CudaStorage, Shape)> {
    let (storage, layout) = inputs[0];
    let shape = layout.shape().clone();
    let rows = shape.elem_count() / channels;
    let rows = Rows { dtype: storage.dtype(), rows, channels, eps };
    let mut buffers = run(SOURCE, &rows.forward(inputs.len() > 1)?, inputs)?;
    Ok((buffers.swap_remove(0), shape))
}

/// Gradients of the input, and of gain and bias where there is a gain.
pub(super) fn backward(
    xs: &Tensor,
    weight: Option<&Tensor>,
    grad: &Tensor,
    channels: usize,
    eps: f64,
) -> Result<(Tensor, Option<[Tensor; 2]>)> {
    let rows = Rows { dtype: xs.dtype(), rows: xs.elem_count() / channels, channels, eps };
    let program = rows.backward(weight.is_some())?;
    let inputs: Vec<&Tensor> = [Some(xs), weight, Some(grad)].into_iter().flatten().collect();
    let buffers = run_on_tensors(SOURCE, &program, &inputs)?;
    let dxs = buffers[0].reshape(xs.shape())?;
    let Some(_) = weight else { return Ok((dxs, None)) };
    let sums = &buffers[1];
    let sums = [sums.narrow(0, 0, channels)?, sums.narrow(0, channels, channels)?];
    Ok((dxs, Some(sums)))
}
