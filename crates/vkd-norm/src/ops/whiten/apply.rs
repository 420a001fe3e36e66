//! Rows through a whitening that was made before.

use super::check;
use super::cpu::Centred;
use crate::Whitener;
use crate::dense::{Real, dense, with_slices};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

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
    if !xs.device().is_cpu() {
        return plain(xs, whitener);
    }
    xs.contiguous()?.apply_op1(Apply(whitener.clone()))
}

/// The same from plain tensor ops in f64, where the rows are: only the whitener goes there.
fn plain(xs: &Tensor, whitener: &Whitener) -> Result<Tensor> {
    let mean = Tensor::from_slice(whitener.mean(), (1, whitener.channels()), xs.device())?;
    let w = whitener.matrix()?.to_device(xs.device())?;
    xs.to_dtype(DType::F64)?.broadcast_sub(&mean)?.matmul(&w.t()?)?.to_dtype(xs.dtype())
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

#[cfg(test)]
mod tests {
    use super::{apply, plain};
    use crate::{Moments, WhitenConfig, WhitenMethod, Whitener};
    use candle_core::{DType, Result, Tensor, Var};
    use vkd_testkit::{Tolerance, assert_close, normal};

    #[test]
    fn the_device_path_is_the_cpu_s() -> Result<()> {
        let rows = (normal(&[40, 6], DType::F64, 1)? + 0.7)?;
        for method in [WhitenMethod::Cholesky, WhitenMethod::Zca] {
            let moments = Moments::from_rows(&rows, None)?;
            let whitener =
                Whitener::new(&moments, WhitenConfig { method, ..WhitenConfig::default() })?;
            for (dtype, digits) in [(DType::F64, 1e-13), (DType::F32, 1e-6)] {
                let xs = Var::from_tensor(&normal(&[9, 6], dtype, 2)?)?;
                let g = normal(&[9, 6], dtype, 3)?;
                let both = |ys: Tensor| -> Result<[Tensor; 2]> {
                    let grads = (&ys * &g)?.sum_all()?.backward()?;
                    Ok([ys, grads.get(&xs).unwrap().clone()])
                };
                let (got, want) = (both(plain(&xs, &whitener)?)?, both(apply(&xs, &whitener)?)?);
                for (got, want) in got.iter().zip(&want) {
                    let what = format!("{method:?} {dtype:?}");
                    assert_close(&what, got, want, Tolerance::relative(digits))?;
                }
            }
        }
        Ok(())
    }
}
