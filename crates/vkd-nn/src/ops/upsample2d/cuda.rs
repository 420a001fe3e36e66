//! Resampling on a CUDA device.

use super::cpu::Geometry;
use super::launch;
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};
use vkd_norm::program::{Source, run, run_on_tensors};

const SOURCE: Source = Source {
    module: "vkd_nn::upsample2d",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/upsample2d.ptx")),
};

pub(super) fn forward(
    g: &Geometry,
    xs: &CudaStorage,
    layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let mut buffers = run(SOURCE, &launch::forward(g, xs.dtype())?, &[(xs, layout)])?;
    Ok((buffers.swap_remove(0), g.result()))
}

pub(super) fn backward(g: &Geometry, grad: &Tensor) -> Result<Tensor> {
    let [h, w, channels] = g.input;
    let program = launch::backward(g, grad.dtype())?;
    run_on_tensors(SOURCE, &program, &[grad])?[0].reshape((g.batch, h, w, channels))
}
