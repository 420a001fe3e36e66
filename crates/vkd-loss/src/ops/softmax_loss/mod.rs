//! Losses between the softmax of logits and a fixed target, fused.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::Reduction;
use crate::checks::flag_labels;
use crate::dense::{Real, check_logits, check_pair, check_positive, dense, with_storage};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use cpu::{SUM_TOLERANCE, Values};
use vkd_norm::{flags, program};

/// What the softmax is compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// Class indices, smoothed.
    Labels { smoothing: f64 },
    /// A distribution per row.
    Probabilities,
    /// Logits, both sides divided by the temperature: a divergence.
    Logits { temperature: f64 },
}

impl Target {
    fn temperature(self) -> f64 {
        match self {
            Self::Logits { temperature } => temperature,
            _ => 1.,
        }
    }

    /// Keeps the size of the gradient independent of the temperature.
    fn factor(self) -> f64 {
        self.temperature() * self.temperature()
    }
}

/// Checks the arguments, in the name of `op`, and applies the fused op, on the CPU and where there is a kernel, or its
/// twin elsewhere. Only the CPU refuses values; on a device a label that is no class makes the loss NaN, and it and probabilities
/// that are none set a bit of [`flags`].
pub(crate) fn softmax_loss(
    op: &'static str,
    kind: Target,
    logits: &Tensor,
    target: &Tensor,
    reduction: Reduction,
) -> Result<Tensor> {
    let (batch, classes) = check_logits(op, logits)?;
    match kind {
        Target::Labels { smoothing } => {
            if !(0. ..1.).contains(&smoothing) {
                bail!("{op}: expected 0 <= smoothing < 1, got {smoothing}")
            }
            if target.dtype() != DType::U32 || target.dims() != [batch] {
                bail!(
                    "{op}: expected U32 labels of shape [{batch}], got {:?} {:?}",
                    target.dtype(),
                    target.dims()
                )
            }
            flag_labels(op, target, classes)?;
        }
        Target::Probabilities => {
            check_pair(op, logits, target, "probabilities")?;
            if !target.device().is_cpu() {
                flag_probabilities(op, target)?;
            }
        }
        Target::Logits { temperature } => {
            check_positive(op, "temperature", temperature)?;
            // Beyond it the divergence is nothing but rounding, times the temperature squared.
            if temperature > 1e6 {
                bail!("{op}: expected a temperature of at most 1e6, got {temperature:e}")
            }
            check_pair(op, logits, target, "teacher logits")?;
        }
    }
    if !logits.device().is_cpu() && !program::applies(logits) {
        return reference::softmax_loss(kind, logits, target, reduction);
    }
    let op = SoftmaxLoss { op, kind, classes, divisor: reduction.divisor(batch, batch) };
    logits.contiguous()?.apply_op2(&target.contiguous()?, op)
}

/// What the CPU refuses with its row, on a device. An infinite probability has no sum of one.
fn flag_probabilities(op: &str, probabilities: &Tensor) -> Result<()> {
    flags::expect(op, "probabilities >= 0", probabilities, [0., f64::INFINITY])?;
    let sums = probabilities.detach().to_dtype(DType::F64)?.sum(1)?;
    let what = format!("probabilities that sum to 1 within {SUM_TOLERANCE:e}");
    flags::expect(op, &what, &sums, [1. - SUM_TOLERANCE, 1. + SUM_TOLERANCE])
}

struct SoftmaxLoss {
    /// The loss that it is for, in messages.
    op: &'static str,
    kind: Target,
    classes: usize,
    /// What the sum over rows is divided by; without it there is no sum.
    divisor: Option<f64>,
}

impl CustomOp2 for SoftmaxLoss {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        target: &CpuStorage,
        target_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let rows = logits_layout.shape().elem_count() / self.classes;
        let shape = if self.divisor.is_some() { Shape::from(()) } else { Shape::from(rows) };
        let (logits, target) = ((logits, logits_layout), (target, target_layout));
        let loss = match logits.0 {
            CpuStorage::F32(_) => self.forward::<f32>(logits, target)?,
            _ => self.forward::<f64>(logits, target)?,
        };
        Ok((loss, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        logits: &CudaStorage,
        logits_layout: &Layout,
        target: &CudaStorage,
        target_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward_on_device((logits, logits_layout), (target, target_layout))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        target: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if logits.device().is_cuda() {
            let ds = self.backward_on_device(logits, target, &grad)?;
            let dt = if target.track_op() { Some(target.zeros_like()?) } else { None };
            return Ok((Some(ds), dt));
        }
        let ds = match logits.dtype() {
            DType::F32 => self.backward::<f32>(logits, target, &grad)?,
            _ => self.backward::<f64>(logits, target, &grad)?,
        };
        // The target is checked to be untracked; zeros keep candle from panicking all the same.
        let dt = if target.track_op() { Some(target.zeros_like()?) } else { None };
        Ok((Some(ds), dt))
    }
}

type Stored<'a> = (&'a CpuStorage, &'a Layout);

impl SoftmaxLoss {
    fn values<'a, T: Real>(&self, target: Stored<'a>) -> Result<Values<'a, T>> {
        let op = self.op;
        Ok(match target.0 {
            CpuStorage::U32(_) => Values::Labels(dense(op, target.0, target.1)?),
            _ => Values::Dense(dense(op, target.0, target.1)?),
        })
    }

    fn forward<T: Real>(&self, logits: Stored<'_>, target: Stored<'_>) -> Result<CpuStorage> {
        let xs = dense::<T>(self.op, logits.0, logits.1)?;
        let values = self.values(target)?;
        let loss = cpu::forward((self.op, self.kind), xs, values, self.classes, self.divisor)?;
        Ok(T::to_cpu_storage_owned(loss))
    }

    fn backward<T: Real>(&self, logits: &Tensor, target: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let op = self.op;
        let ds = with_storage(op, logits, |x, x_layout| {
            with_storage(op, target, |t, t_layout| {
                with_storage(op, grad, |g, g_layout| {
                    let (xs, g) = (dense::<T>(op, x, x_layout)?, dense::<T>(op, g, g_layout)?);
                    let values = self.values((t, t_layout))?;
                    cpu::backward((op, self.kind), xs, values, self.classes, g, self.divisor)
                })
            })
        })?;
        Tensor::from_vec(ds, logits.shape(), logits.device())
    }
}
