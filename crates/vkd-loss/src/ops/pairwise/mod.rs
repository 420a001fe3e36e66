//! Distances between all pairs of rows, fused.

mod cpu;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::dense::{Real, dense, with_storage};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

const OP: &str = "pairwise_distance";

/// `(B, C)` to `(B, B)`: Euclidean distances, from the differences themselves and not from inner products, so that close
/// rows lose nothing and equal ones have distance zero, with a gradient of zero.
///
/// The backward pass reads input and output. Arithmetic is in f64. NaN propagates.
pub(crate) fn pairwise_distance(xs: &Tensor) -> Result<Tensor> {
    if !xs.device().is_cpu() {
        return reference::pairwise_distance(xs);
    }
    let (rows, channels) = xs.dims2()?;
    xs.contiguous()?.apply_op1(PairwiseDistance { rows, channels })
}

struct PairwiseDistance {
    rows: usize,
    channels: usize,
}

impl CustomOp1 for PairwiseDistance {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let distances = match storage {
            CpuStorage::F32(_) => self.forward::<f32>(storage, layout)?,
            _ => self.forward::<f64>(storage, layout)?,
        };
        Ok((distances, Shape::from((self.rows, self.rows))))
    }

    fn bwd(&self, xs: &Tensor, distances: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dxs = match xs.dtype() {
            DType::F32 => self.backward::<f32>(xs, distances, &grad),
            _ => self.backward::<f64>(xs, distances, &grad),
        };
        dxs.map(Some)
    }
}

impl PairwiseDistance {
    fn forward<T: Real>(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let xs = dense::<T>(OP, storage, layout)?;
        Ok(T::to_cpu_storage_owned(cpu::forward(xs, self.rows, self.channels)))
    }

    fn backward<T: Real>(&self, xs: &Tensor, distances: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let dxs = with_storage(OP, xs, |x, x_layout| {
            with_storage(OP, distances, |d, d_layout| {
                with_storage(OP, grad, |g, g_layout| {
                    let x = dense::<T>(OP, x, x_layout)?;
                    let d = dense::<T>(OP, d, d_layout)?;
                    let g = dense::<T>(OP, g, g_layout)?;
                    Ok(cpu::backward(x, d, g, self.rows, self.channels))
                })
            })
        })?;
        Tensor::from_vec(dxs, xs.shape(), xs.device())
    }
}
