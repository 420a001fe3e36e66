//! Standardisation on a CUDA device; nothing is copied to the host.

use super::launch::Columns;
use super::{ChannelMoments, OP, Variance};
use crate::ops::program::{Source, run, run_on_tensors};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail,
};
use std::sync::OnceLock;

const SOURCE: Source = Source {
    module: "vkd_norm::standardize",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/standardize.ptx")),
};

pub(super) fn standardize(
    xs: &Tensor,
    mask: Option<&Tensor>,
    variance: Variance,
    eps: f64,
) -> Result<Tensor> {
    let (rows, channels) = xs.dims2()?;
    let masked = mask.is_some();
    let columns = Columns { dtype: xs.dtype(), rows, channels, masked, variance, eps };
    let mask = mask.map(Tensor::contiguous).transpose()?;
    xs.contiguous()?.apply_op1(Standardize { columns, mask, stats: OnceLock::new() })
}

/// Number of rows that count, and the moments of every channel over them; the numbers of chunks and channels are copied
/// to the host and joined there.
pub(super) fn moments(xs: &Tensor, mask: Option<&Tensor>) -> Result<(usize, Vec<ChannelMoments>)> {
    let (rows, channels) = xs.dims2()?;
    let (masked, variance) = (mask.is_some(), Variance::Biased);
    let columns = Columns { dtype: xs.dtype(), rows, channels, masked, variance, eps: 0.5 };
    let (xs, mask) = (xs.contiguous()?, mask.map(Tensor::contiguous).transpose()?);
    let inputs: Vec<&Tensor> = std::iter::once(&xs).chain(&mask).collect();
    let parts = run_on_tensors(SOURCE, &columns.moments()?, &inputs)?[0].to_vec1::<f64>()?;
    Ok(ChannelMoments::joined(&parts, channels))
}

struct Standardize {
    columns: Columns,
    mask: Option<Tensor>,
    /// Set by the forward pass.
    stats: OnceLock<Tensor>,
}

impl CustomOp1 for Standardize {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("{OP}: expected a tensor on a CUDA device, got one on the CPU")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let program = self.columns.forward()?;
        let guard = self.mask.as_ref().map(Tensor::storage_and_layout);
        let mut inputs = vec![(storage, layout)];
        match guard.as_ref().map(|(mask, layout)| (&**mask, *layout)) {
            None => {}
            Some((Storage::Cuda(mask), layout)) => inputs.push((mask, layout)),
            Some(_) => bail!("{OP}: expected the mask on the device of xs; move it with to_device"),
        }
        let mut buffers = run(SOURCE, &program, &inputs)?;
        let stats = Storage::Cuda(buffers.swap_remove(1));
        let shape = (3, self.columns.channels);
        let stats = Tensor::from_storage(stats, shape, BackpropOp::none(), false);
        // A second forward pass of one op would find the same.
        let _ = self.stats.set(stats);
        Ok((buffers.swap_remove(0), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(stats) = self.stats.get() else {
            bail!("{OP}: expected a forward pass before the backward pass")
        };
        let grad = grad.contiguous()?;
        let inputs: Vec<&Tensor> = [xs, &grad, stats].into_iter().chain(&self.mask).collect();
        let buffers = run_on_tensors(SOURCE, &self.columns.backward()?, &inputs)?;
        buffers[0].reshape(xs.shape()).map(Some)
    }
}
