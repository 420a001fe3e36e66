//! Rows through a whitening that was made before.

use super::check;
use super::cpu::Centred;
use crate::Whitener;
use crate::dense::{Real, dense, with_slices};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

const OP: &str = "whiten_with";

/// `(x - mean) Wᵀ` for every row.
pub(crate) fn apply(xs: &Tensor, whitener: &Whitener) -> Result<Tensor> {
    if matches!(xs.dtype(), DType::F16 | DType::BF16) {
        return apply(&xs.to_dtype(DType::F32)?, whitener)?.to_dtype(xs.dtype());
    }
    let (_, channels) = check(OP, xs)?;
    if channels != whitener.channels() {
        bail!("{OP}: expected (N, {}), got {:?}", whitener.channels(), xs.dims())
    }
    let device = xs.device().clone();
    let xs = xs.to_device(&Device::Cpu)?.contiguous()?;
    xs.apply_op1(Apply(whitener.clone()))?.to_device(&device)
}

struct Apply(Whitener);

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ys = match storage {
            CpuStorage::F32(_) => self.forward::<f32>(storage, layout)?,
            _ => self.forward::<f64>(storage, layout)?,
        };
        Ok((ys, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dxs = match xs.dtype() {
            DType::F32 => self.backward::<f32>(xs, &grad),
            _ => self.backward::<f64>(xs, &grad),
        };
        dxs.map(Some)
    }
}

impl Apply {
    fn forward<T: Real>(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let xs = Centred::about(dense::<T>(OP, storage, layout)?, self.0.mean());
        Ok(T::to_cpu_storage_owned(xs.through::<T>(self.0.w(), self.0.shape())))
    }

    fn backward<T: Real>(&self, xs: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let dxs = with_slices::<T, _, 1>(OP, [grad], |[grad]| {
            let grad = Centred::about(grad, &vec![0.; self.0.channels()]);
            Ok(grad.through_transposed::<T>(self.0.w(), self.0.shape()))
        })?;
        Tensor::from_vec(dxs, xs.shape(), xs.device())
    }
}
