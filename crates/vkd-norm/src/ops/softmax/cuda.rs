//! Softmax and its logarithm on a CUDA device.

use super::launch;
use crate::ops::program::{Source, run, run_on_tensors};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};

const SOURCE: Source = Source {
    module: "vkd_norm::softmax",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/softmax.ptx")),
};

pub(super) fn forward(
    xs: &CudaStorage,
    layout: &Layout,
    classes: usize,
    log: bool,
) -> Result<(CudaStorage, Shape)> {
    let shape = layout.shape().clone();
    let program = launch::forward(xs.dtype(), shape.elem_count() / classes, classes, log)?;
    let mut buffers = run(SOURCE, &program, &[(xs, layout)])?;
    Ok((buffers.swap_remove(0), shape))
}

pub(super) fn backward(ys: &Tensor, grad: &Tensor, classes: usize, log: bool) -> Result<Tensor> {
    let program = launch::backward(ys.dtype(), ys.elem_count() / classes, classes, log)?;
    run_on_tensors(SOURCE, &program, &[ys, grad])?[0].reshape(ys.shape())
}
