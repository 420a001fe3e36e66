//! The base of a trivialisation: an `n x n` orthogonal matrix kept as `k` reflectors.

use crate::linalg::{product, reflectors, solve_upper, upper_half};
use crate::ops::Wy;
use crate::parametrization::check_orthonormal;
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use faer::{Mat, MatRef};

/// A loaded base may be this far from orthonormal: above the rounding of f32, below that of bf16.
const BASE_RESIDUAL: f64 = 1e-5;

/// What rounding leaves of `|QᵀQ - I|`, with room to stay below the laws of the weight: 1e-6 in f32, 1e-13 in f64.
pub(crate) fn rounding(dtype: DType) -> f64 {
    if dtype == DType::F64 { 5e-14 } else { 5e-7 }
}

/// The orthogonal matrix `H = (I - V T Vᵀ) diag(signs, I)` whose first `k` columns are the stored tensor.
#[derive(Debug)]
pub(crate) struct Base {
    /// The stored tensor.
    pub(crate) source: Vec<f64>,
    pub(crate) h: Wy,
    /// The stored tensor is orthonormal to rounding.
    pub(crate) exact: bool,
    v: Tensor,
    t: Tensor,
    signs: Tensor,
    resident: Option<Resident>,
}

/// What stays off the CPU beside the reflectors, so that no step carries it there.
///
/// Where there are kernels, a base that is overwritten changes these tensors and the reflectors in place; what stands in the rest
/// of [`Base`] is then of the old one, and only the CPU reads it.
#[derive(Debug)]
pub(crate) struct Resident {
    /// The stored tensor as it was.
    pub(crate) stored: Tensor,
    /// The identity's columns in f64.
    unit: Tensor,
    /// 1 or 0: [`Base::exact`]; and 1, or NaN where the base is not orthonormal.
    pub(crate) state: Tensor,
}

impl Base {
    pub(crate) fn new(base: &Tensor) -> Result<Self> {
        Self::kept(base, !base.device().is_cpu())
    }

    /// `resident`: with what a device keeps.
    pub(crate) fn kept(base: &Tensor, resident: bool) -> Result<Self> {
        check_orthonormal("stiefel: `base`", base, BASE_RESIDUAL)?;
        let exact = crate::stiefel_residual(base)? <= rounding(base.dtype());
        let (n, k) = base.dims2()?;
        let source = values(base)?;
        let (basis, _) = reflectors(MatRef::from_row_major_slice(&source, n, k));
        let mut v = Mat::from_fn(n, k, |i, j| match i.cmp(&j) {
            std::cmp::Ordering::Less => 0.,
            std::cmp::Ordering::Equal => 1.,
            std::cmp::Ordering::Greater => basis[(i, j)],
        });
        for j in 0..k {
            let length = v.col(j).norm_l2();
            v.col_mut(j).iter_mut().for_each(|x| *x /= length);
        }
        let s = upper_half(&product(v.transpose(), v.as_ref()));
        let t = solve_upper(s.as_ref(), Mat::identity(k, k));
        // A reflector without a tail turns its column where the factorisation did not: read the signs off the result.
        let turned = product(v.as_ref(), product(t.as_ref(), v.subrows(0, k).transpose()).as_ref());
        let sign = |j: usize| {
            let kept = |i: usize| f64::from(u8::from(i == j)) - turned[(i, j)];
            (0..n).map(|i| kept(i) * source[i * k + j]).sum::<f64>().signum()
        };
        let signs: Vec<f64> = (0..k).map(sign).collect();
        let device = base.device();
        let padded = Mat::from_fn(n, 1, |i, _| if i < k { signs[i] } else { 1. });
        let (v_tensor, t_tensor) = (tensor(&v, device)?, tensor(&t, device)?);
        let h = Wy::new(v, t, signs);
        let signs = tensor(&padded, device)?;
        let resident = match resident {
            false => None,
            true => Some(Resident {
                stored: base.detach().copy()?,
                unit: unit_columns(n, k, DType::F64, device)?,
                state: Tensor::new(&[f64::from(u8::from(exact)), 1.], device)?,
            }),
        };
        Ok(Self { source, h, exact, v: v_tensor, t: t_tensor, signs, resident })
    }

    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn resident(&self) -> Option<&Resident> {
        self.resident.as_ref()
    }

    /// The reflectors as columns of length one, their core, and the signs `(n, 1)`.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn factors(&self) -> [&Tensor; 3] {
        [&self.v, &self.t, &self.signs]
    }

    /// What a device runs to bring all of this up to what the stored tensor has become.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn renewal(&self) -> Result<vkd_norm::program::Program> {
        let dtype = self.resident.as_ref().map_or(DType::F64, |r| r.stored.dtype());
        crate::ops::renewal(dtype, self.v.dims2()?, [rounding(dtype), BASE_RESIDUAL])
    }

    /// Whether the stored tensor still is the one that this was made from. On a device without kernels one number comes to the
    /// host.
    pub(crate) fn made_from(&self, base: &Tensor) -> Result<bool> {
        #[cfg(feature = "cuda")]
        if crate::ops::renewed(self, base)? {
            return Ok(true);
        }
        if let Some(Resident { stored, .. }) = &self.resident {
            // NaN differs from all.
            let differs = base.detach().ne(stored)?.to_dtype(DType::F32)?.flatten_all()?.max(0)?;
            return Ok(differs.to_scalar::<f32>()? == 0.);
        }
        let (storage, layout) = base.storage_and_layout();
        let same = match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(now)), Some((start, end))) => {
                // Exact: the source was widened from f32.
                let now = now[start..end].iter().map(|x| f64::from(*x).to_bits());
                now.eq(self.source.iter().map(|x| x.to_bits()))
            }
            (Storage::Cpu(CpuStorage::F64(now)), Some((start, end))) => {
                let now = now[start..end].iter().map(|x| x.to_bits());
                now.eq(self.source.iter().map(|x| x.to_bits()))
            }
            _ => {
                drop(storage);
                let now = values(base)?;
                now.iter().map(|x| x.to_bits()).eq(self.source.iter().map(|x| x.to_bits()))
            }
        };
        Ok(same)
    }

    /// `H y` for an `n x k` f64 matrix; NaN on a device where the base is not orthonormal.
    pub(crate) fn apply(&self, y: &Tensor) -> Result<Tensor> {
        let y = y.broadcast_mul(&self.signs)?;
        let inner = self.t.matmul(&self.v.t()?.matmul(&y)?)?;
        self.sound(&y - self.v.matmul(&inner)?)
    }

    /// What was computed, or NaN.
    fn sound(&self, q: Result<Tensor>) -> Result<Tensor> {
        match &self.resident {
            Some(Resident { state, .. }) => q?.broadcast_mul(&state.narrow(0, 1, 1)?),
            None => q,
        }
    }

    /// `Q₀ + H (y - E)`: the same up to the rounding of `Q₀`, and `Q₀` to the bit at `y = E`.
    ///
    /// `H E` is orthonormal where the stored `Q₀` is rounded, so the two differ by its rounding; this form keeps that difference
    /// as a constant. A base that is further off than rounding gets the plain product, which repairs it. From plain tensor
    /// ops, on any device; on the CPU, [`base_product`](crate::ops::base_product) does the same.
    pub(crate) fn apply_exactly(&self, y: &Tensor) -> Result<Tensor> {
        let dtype = y.dtype();
        let y = y.to_dtype(DType::F64)?;
        if let Some(Resident { stored, unit, state }) = &self.resident {
            // Which of the two it is stands on the device.
            let exact = state.narrow(0, 0, 1)?;
            let turned = self.apply(&(y - unit.broadcast_mul(&exact)?)?)?;
            let kept = stored.to_dtype(DType::F64)?.broadcast_mul(&exact)?;
            return (kept + turned)?.to_dtype(dtype);
        }
        if !self.exact {
            return self.apply(&y)?.to_dtype(dtype);
        }
        let (n, k) = y.dims2()?;
        let stored = Tensor::from_slice(&self.source, (n, k), y.device())?;
        let unit = unit_columns(n, k, DType::F64, y.device())?;
        (stored + self.apply(&(y - unit)?)?)?.to_dtype(dtype)
    }

    /// `Hᵀ q`.
    pub(crate) fn apply_transposed(&self, q: &Tensor) -> Result<Tensor> {
        let inner = self.t.t()?.matmul(&self.v.t()?.matmul(q)?)?;
        self.sound((q - self.v.matmul(&inner)?)?.broadcast_mul(&self.signs))
    }
}

/// The first `k` columns of the `n x n` identity, which is not built.
pub(crate) fn unit_columns(n: usize, k: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let values = (0..n * k).map(|at| f64::from(u8::from(at / k == at % k))).collect();
    Tensor::from_vec(values, (n, k), device)?.to_dtype(dtype)
}

pub(crate) fn values(xs: &Tensor) -> Result<Vec<f64>> {
    xs.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

fn tensor(a: &Mat<f64>, device: &Device) -> Result<Tensor> {
    let (n, k) = (a.nrows(), a.ncols());
    let values: Vec<f64> = (0..n * k).map(|at| a[(at / k, at % k)]).collect();
    Tensor::from_vec(values, (n, k), device)
}

#[cfg(test)]
impl Base {
    /// Multiplies reflectors and core, so that a test sees whether they are made anew.
    pub(crate) fn disturb(&mut self, by: f64) -> Result<()> {
        self.v = (&self.v * by)?;
        self.t = (&self.t * by)?;
        Ok(())
    }

    /// What the kernels wrote in place.
    pub(crate) fn replace(&mut self, [v, t, signs]: [Tensor; 3], stored: Tensor, state: Tensor) {
        (self.v, self.t, self.signs) = (v, t, signs);
        if let Some(resident) = &mut self.resident {
            (resident.stored, resident.state) = (stored, state);
        }
    }
}
