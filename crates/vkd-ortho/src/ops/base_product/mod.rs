//! The weight of a trivialisation: the product of its constant base and the frame of its map.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod launch;

use super::common::dense;
use crate::base::Base;
use crate::linalg::Real;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor};
use std::sync::Arc;

const OP: &str = "base_product";

/// `Q₀ + H (sign Y - E)` for an `n x k` frame `Y` in f32 or f64, in its dtype; a base that is further from orthonormal than
/// rounding gives `H sign Y` instead, which repairs it. See [`Base`].
///
/// One pass each way: candle's own products would spend as much again on gradients of the constant factors.
pub(crate) fn base_product(base: &Arc<Base>, frame: &Tensor, sign: f64) -> Result<Tensor> {
    if !frame.device().is_cpu() {
        return base.apply_exactly(&(frame * sign)?);
    }
    let op = BaseProduct { base: base.clone(), sign, transposed: false };
    frame.contiguous()?.apply_op1(op)
}

struct BaseProduct {
    base: Arc<Base>,
    sign: f64,
    /// The backward pass.
    transposed: bool,
}

impl CustomOp1 for BaseProduct {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = match storage {
            CpuStorage::F32(y) => CpuStorage::F32(self.run(dense(OP, y, layout)?)),
            CpuStorage::F64(y) => CpuStorage::F64(self.run(dense(OP, y, layout)?)),
            _ => return Err(Error::UnsupportedDTypeForOp(storage.dtype(), OP).bt()),
        };
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = Self { base: self.base.clone(), sign: self.sign, transposed: true };
        grad.contiguous()?.apply_op1_no_bwd(&op).map(Some)
    }
}

impl BaseProduct {
    fn run<T: Real>(&self, y: &[T]) -> Vec<T> {
        let Base { h, exact, source, .. } = &*self.base;
        let y = y.iter().map(|y| self.sign * y.to_f64()).collect();
        if self.transposed {
            return h.backward(y).into_iter().map(T::from_f64).collect();
        }
        let y = h.forward(y, *exact);
        match exact {
            true => y.into_iter().zip(source).map(|(y, q)| T::from_f64(q + y)).collect(),
            false => y.into_iter().map(T::from_f64).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    fn largest(a: &Tensor, b: &Tensor) -> Result<f64> {
        (a - b)?.abs()?.to_dtype(DType::F64)?.max_all()?.to_scalar()
    }

    #[test]
    fn agrees_with_plain_tensor_ops_in_value_and_gradient() -> Result<()> {
        for (n, k) in [(1, 1), (5, 5), (7, 3), (40, 12), (300, 64)] {
            for dtype in [DType::F32, DType::F64] {
                let tolerance = if dtype == DType::F32 { 2e-6 } else { 1e-13 };
                let haar = crate::sample_stiefel(n, k, 7, dtype, &Device::Cpu)?;
                let unit = crate::base::unit_columns(n, k, dtype, &Device::Cpu)?;
                // The last is off by more than rounding.
                for (base, exact) in
                    [(&haar, true), (&unit, true), (&(&haar * (1. + 2e-6))?, false)]
                {
                    let base = Arc::new(Base::new(base)?);
                    assert_eq!(base.exact, exact, "({n}, {k})");
                    let y = crate::sample_stiefel(n, k, 8, dtype, &Device::Cpu)?;
                    let weights = crate::sample_stiefel(n, k, 9, dtype, &Device::Cpu)?;
                    for sign in [1., -1.] {
                        let y = Var::from_tensor(&y)?;
                        let ours = base_product(&base, &y, sign)?;
                        let twin = base.apply_exactly(&(y.as_tensor() * sign)?)?;
                        assert!(largest(&ours, &twin)? <= tolerance, "({n}, {k}) {dtype:?}");
                        let gradient = |out: &Tensor| -> Result<Option<Tensor>> {
                            Ok((out * &weights)?.sum_all()?.backward()?.remove(&y))
                        };
                        let (Some(ours), Some(twin)) = (gradient(&ours)?, gradient(&twin)?) else {
                            panic!("no gradient")
                        };
                        assert!(largest(&ours, &twin)? <= tolerance, "({n}, {k}) {dtype:?}");
                    }
                }
            }
        }
        Ok(())
    }
}
