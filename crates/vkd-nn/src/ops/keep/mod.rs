//! Sets runs of values to zero and scales the others: what dropout and stochastic depth do once their draws are made.

mod cpu;
pub(crate) mod reference;

use crate::ops::{Real, dense, in_native, unsupported};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use std::sync::Arc;

/// `xs` with run `i` of `run` consecutive values times `scale` where `kept[i]`, and zero elsewhere, be it NaN.
///
/// # Gradient
/// Flows to `xs`, through the runs that are kept.
pub(crate) fn keep(xs: &Tensor, kept: Vec<bool>, run: usize, scale: f64) -> Result<Tensor> {
    if kept.len() * run != xs.elem_count() {
        bail!("keep: expected {} draws of {run} values, got {}", xs.elem_count(), kept.len())
    }
    if !xs.device().is_cpu() {
        return reference::keep(xs, &kept, run, scale);
    }
    let op = Keep { kept: kept.into(), run, scale };
    in_native(xs, |xs| xs.contiguous()?.apply_op1(op))
}

#[derive(Clone)]
struct Keep {
    kept: Arc<[bool]>,
    run: usize,
    scale: f64,
}

impl Keep {
    fn run<T: Real>(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let xs = dense::<T>("keep", storage, layout)?;
        let scale = <T as WithDType>::from_f64(self.scale);
        Ok(T::to_cpu_storage_owned(cpu::keep(xs, &self.kept, self.run, scale)))
    }
}

impl CustomOp1 for Keep {
    fn name(&self) -> &'static str {
        "keep"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ys = match storage {
            CpuStorage::F32(_) => self.run::<f32>(storage, layout)?,
            CpuStorage::F64(_) => self.run::<f64>(storage, layout)?,
            _ => return Err(unsupported("keep", storage)),
        };
        Ok((ys, layout.shape().clone()))
    }

    fn bwd(&self, _xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        // The map is linear and symmetric: it is its own gradient.
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(self)?))
    }
}
