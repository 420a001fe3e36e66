//! Batch norm and group norm on a CUDA device.

use super::launch::Channels;
use crate::ops::program::{Source, run, run_on_tensors};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};
use std::sync::OnceLock;

const SOURCE: Source = Source {
    module: "vkd_norm::channel_norm",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/channel_norm.ptx")),
};

/// With the statistics `given`, mean and 1 / deviation of each set in f64, or with the input's own.
pub(super) fn channel_norm(
    channels: Channels,
    [xs, weight, bias]: [&Tensor; 3],
    given: Option<Tensor>,
) -> Result<Tensor> {
    let own = given.is_none();
    let stats = given.map_or_else(OnceLock::new, OnceLock::from);
    let op = ChannelNorm { channels, own, stats };
    xs.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

struct ChannelNorm {
    channels: Channels,
    own: bool,
    /// Given, or set by the forward pass.
    stats: OnceLock<Tensor>,
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
        let shape = xs_layout.shape().clone();
        let program = self.channels.forward(self.own)?;
        if self.own {
            let mut buffers = run(SOURCE, &program, &inputs)?;
            let stats = Storage::Cuda(buffers.swap_remove(1));
            let sets = self.channels.sets();
            let stats = Tensor::from_storage(stats, (sets, 2), BackpropOp::none(), false);
            // A second forward pass of one op would find the same.
            let _ = self.stats.set(stats);
            return Ok((buffers.swap_remove(0), shape));
        }
        let guard = self.stats.get().map(Tensor::storage_and_layout);
        match guard.as_ref().map(|(stats, layout)| (&**stats, *layout)) {
            Some((Storage::Cuda(stats), layout)) => inputs.push((stats, layout)),
            _ => bail!("{}: expected the statistics on the device of xs", self.name()),
        }
        let mut buffers = run(SOURCE, &program, &inputs)?;
        Ok((buffers.swap_remove(0), shape))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(stats) = self.stats.get() else {
            bail!("{}: expected a forward pass before the backward pass", self.name())
        };
        let grad = grad.contiguous()?;
        let program = self.channels.backward(self.own)?;
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
