//! Batch norm and group norm on a CUDA device.

use super::launch::Channels;
use crate::ops::program::{Source, run, run_on_tensors};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};
use std::sync::{Arc, OnceLock};

const SOURCE: Source = Source {
    module: "vkd_norm::channel_norm",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/channel_norm.ptx")),
};

/// With means and variances `given`, of one dtype, or with the input's own. The second result is mean and biased variance of every set,
/// `(2, sets)` in f64, of the input's own.
pub(super) fn channel_norm(
    channels: Channels,
    [xs, weight, bias]: [&Tensor; 3],
    given: Option<[Tensor; 2]>,
) -> Result<(Tensor, Option<Tensor>)> {
    let found = Arc::new(OnceLock::new());
    let op = ChannelNorm { channels, given, found: found.clone() };
    let ys = xs.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?;
    let moments = found.get().and_then(|found: &Found| found.moments.clone());
    Ok((ys, moments))
}

struct ChannelNorm {
    channels: Channels,
    given: Option<[Tensor; 2]>,
    /// Set by the forward pass.
    found: Arc<OnceLock<Found>>,
}

struct Found {
    /// Mean and 1 / deviation of each set in f64.
    stats: Tensor,
    moments: Option<Tensor>,
}

impl CustomOp3 for ChannelNorm {
    fn name(&self) -> &'static str {
        self.channels.op
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{}: expected a tensor on a CUDA device, got one on the CPU", self.name())
    }

    fn cuda_fwd(
        &self,
        xs: &CudaStorage,
        xs_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let mut inputs = vec![(xs, xs_layout), (weight, weight_layout), (bias, bias_layout)];
        let given = self.given.iter().flatten();
        let guards: Vec<_> = given.map(Tensor::storage_and_layout).collect();
        for (storage, layout) in &guards {
            match &**storage {
                Storage::Cuda(storage) => inputs.push((storage, *layout)),
                _ => bail!("{}: expected the statistics on the device of xs", self.name()),
            }
        }
        let program = self.channels.forward(self.given.as_ref().map(|[mean, _]| mean.dtype()))?;
        let mut buffers = run(SOURCE, &program, &inputs)?.into_iter();
        let (Some(ys), Some(stats)) = (buffers.next(), buffers.next()) else {
            bail!("{}: expected an output and statistics", self.name())
        };
        let sets = self.channels.sets();
        let tensor = |buffer, dims: (usize, usize)| {
            Tensor::from_storage(Storage::Cuda(buffer), dims, BackpropOp::none(), false)
        };
        let moments = match self.given {
            Some(_) => None,
            None => buffers.next().map(|moments| tensor(moments, (2, sets))),
        };
        // A second forward pass of one op would find the same.
        let _ = self.found.set(Found { stats: tensor(stats, (sets, 2)), moments });
        Ok((ys, xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(Found { stats, .. }) = self.found.get() else {
            bail!("{}: expected a forward pass before the backward pass", self.name())
        };
        let grad = grad.contiguous()?;
        let program = self.channels.backward(self.given.is_none())?;
        let buffers = run_on_tensors(SOURCE, &program, &[xs, weight, &grad, stats])?;
        let width = self.channels.grid.channels;
        let of = |t: &Tensor, at: usize| match t.track_op() {
            true => buffers[1].narrow(0, at, width).map(Some),
            false => Ok(None),
        };
        let dxs = xs.track_op().then(|| buffers[0].reshape(xs.shape())).transpose()?;
        Ok((dxs, of(weight, 0)?, of(bias, width)?))
    }
}
