//! Deformable attention on a CUDA device.

use super::cpu::Geometry;
use super::{Gradients, launch};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};
use vkd_norm::program::{Source, run, run_on_tensors};

const SOURCE: Source = Source {
    module: "vkd_nn::deformable_attention",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/deformable_attention.ptx")),
};

pub(super) fn forward(
    g: &Geometry,
    inputs: [(&CudaStorage, &Layout); 3],
) -> Result<(CudaStorage, Shape)> {
    let program = launch::forward(g, inputs[0].0.dtype())?;
    let mut buffers = run(SOURCE, &program, &inputs)?;
    Ok((buffers.swap_remove(0), (g.batch, g.queries, g.heads * g.dim).into()))
}

/// The gradients of the inputs that want one.
pub(super) fn backward(g: &Geometry, inputs: [&Tensor; 3], grad: &Tensor) -> Result<Gradients> {
    let [values, locations, weights] = inputs;
    let of_points = locations.track_op() || weights.track_op();
    let program = launch::backward(g, values.dtype(), values.track_op(), of_points)?;
    let buffers = run_on_tensors(SOURCE, &program, &[values, locations, weights, grad])?;
    let of = |i: usize, like: &Tensor| {
        like.track_op().then(|| buffers[i].reshape(like.shape())).transpose()
    };
    Ok((of(0, values)?, of(1, locations)?, of(2, weights)?))
}
