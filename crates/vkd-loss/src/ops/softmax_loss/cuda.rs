//! The losses on logits on a CUDA device.

use super::SoftmaxLoss;
use super::launch::Logits;
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Tensor};
use vkd_norm::program::{Source, run, run_on_tensors};

const SOURCE: Source = Source {
    module: "vkd_loss::softmax_loss",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/softmax_loss.ptx")),
};

impl SoftmaxLoss {
    fn logits(&self, dtype: DType, entries: usize) -> Logits {
        let Self { op, kind, classes, divisor } = *self;
        Logits { op, kind, dtype, rows: entries / classes, classes, divisor }
    }

    pub(super) fn forward_on_device(
        &self,
        logits: (&CudaStorage, &Layout),
        target: (&CudaStorage, &Layout),
    ) -> Result<(CudaStorage, Shape)> {
        let sizes = self.logits(logits.0.dtype(), logits.1.shape().elem_count());
        let mut buffers = run(SOURCE, &sizes.forward()?, &[logits, target])?;
        let shape = if self.divisor.is_some() { Shape::from(()) } else { Shape::from(sizes.rows) };
        Ok((buffers.swap_remove(0), shape))
    }

    /// Gradient of the logits; the incoming one stays on the device.
    pub(super) fn backward_on_device(
        &self,
        logits: &Tensor,
        target: &Tensor,
        grad: &Tensor,
    ) -> Result<Tensor> {
        let program = self.logits(logits.dtype(), logits.elem_count()).backward()?;
        run_on_tensors(SOURCE, &program, &[logits, target, grad])?[0].reshape(logits.shape())
    }
}
