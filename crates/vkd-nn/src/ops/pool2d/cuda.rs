//! Pools on a CUDA device.

use super::cpu::Geometry;
use super::launch::Pool;
use super::shape;
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};
use vkd_norm::program::{Program, Source, run, run_on_tensors};

const SOURCE: Source =
    Source { module: "vkd_nn::pool2d", ptx: include_str!(concat!(env!("OUT_DIR"), "/pool2d.ptx")) };

/// One pass of the pool `op` over an image.
pub(super) fn forward(
    op: &'static str,
    geometry: &Geometry,
    (xs, layout): (&CudaStorage, &Layout),
    program: impl FnOnce(Pool<'_>) -> Result<Program>,
) -> Result<(CudaStorage, Shape)> {
    let program = program(Pool { op, geometry, dtype: xs.dtype() })?;
    let mut buffers = run(SOURCE, &program, &[(xs, layout)])?;
    Ok((buffers.swap_remove(0), shape(geometry, geometry.output)))
}

/// The gradient of the image, from `inputs` that end in the result's gradient.
pub(super) fn backward(
    op: &'static str,
    geometry: &Geometry,
    inputs: &[&Tensor],
    program: impl FnOnce(Pool<'_>) -> Result<Program>,
) -> Result<Tensor> {
    let dtype = inputs[0].dtype();
    let program = program(Pool { op, geometry, dtype })?;
    let [h, w, _] = geometry.input;
    run_on_tensors(SOURCE, &program, inputs)?[0].reshape(shape(geometry, [h, w]))
}
