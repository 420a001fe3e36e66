//! Activations on a CUDA device.

use super::{Activation, launch};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};
use vkd_norm::program::{Source, run, run_on_tensors};

const SOURCE: Source = Source {
    module: "vkd_nn::activation",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/activation.ptx")),
};

pub(super) fn forward(
    activation: Activation,
    xs: &CudaStorage,
    layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let shape = layout.shape().clone();
    let program = launch::forward(activation, xs.dtype(), shape.elem_count())?;
    let mut buffers = run(SOURCE, &program, &[(xs, layout)])?;
    Ok((buffers.swap_remove(0), shape))
}

pub(super) fn backward(activation: Activation, xs: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let program = launch::backward(activation, xs.dtype(), xs.elem_count())?;
    run_on_tensors(SOURCE, &program, &[xs, grad])?[0].reshape(xs.shape())
}
