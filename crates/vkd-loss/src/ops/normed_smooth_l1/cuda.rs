//! The fused loss on a CUDA device.

use super::{Terms, launch};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};
use vkd_norm::program::{Source, run, run_on_tensors};

const SOURCE: Source = Source {
    module: "vkd_loss::normed_smooth_l1",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/normed_smooth_l1.ptx")),
};

pub(super) fn forward(
    terms: Terms,
    student: (&CudaStorage, &Layout),
    teacher: (&CudaStorage, &Layout),
) -> Result<(CudaStorage, Shape)> {
    let rows = student.1.shape().elem_count() / terms.channels;
    let program = launch::forward(terms, student.0.dtype(), rows)?;
    let mut buffers = run(SOURCE, &program, &[student, teacher])?;
    Ok((buffers.swap_remove(0), Shape::from(())))
}

/// Gradient of the student; the incoming one stays on the device.
pub(super) fn backward(
    terms: Terms,
    student: &Tensor,
    teacher: &Tensor,
    grad: &Tensor,
) -> Result<Tensor> {
    let program = launch::backward(terms, student.dtype(), student.elem_count() / terms.channels)?;
    run_on_tensors(SOURCE, &program, &[student, teacher, grad])?[0].reshape(student.shape())
}
