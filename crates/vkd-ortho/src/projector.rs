//! The layer: a linear map without bias whose weight is orthonormal whatever its parameter holds.

use crate::linalg::{product, solve_upper, upper_half};
use crate::{OrthogonalMap, sample_stiefel, stiefel_residual};
use candle_core::{DType, Device, Error, Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use faer::linalg::solvers::Qr;
use faer::{Mat, MatRef};
use std::sync::{Arc, Mutex, PoisonError};

/// A loaded base may be this far from orthonormal: above the rounding of f32, below that of bf16.
const BASE_RESIDUAL: f64 = 1e-5;

/// Choices of an [`OrthogonalProjector`]; its widths are arguments of [`orthogonal`].
///
/// There is no default: the paper uses the matrix exponential, its published code the map that PyTorch picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrthogonalConfig {
    /// Map from the parameter to the weight.
    pub map: OrthogonalMap,
    /// Seed of the initial weight; the name of the layer enters too, so that layers of one model differ.
    pub seed: u64,
}

/// Linear layer without bias and with an orthonormal weight, made by [`orthogonal`].
///
/// With `n` the larger width and `k` the smaller, the `n x k` weight is `base · map(raw)` (static trivialisation): `raw`
/// is the trained parameter, zero at first; `base` is an `n x n` orthogonal matrix that is never formed. Its first
/// `k` columns, the weight at `raw = 0`, are what is stored; it acts as `k` reflectors.
///
/// | tensor | shape | trained | content |
/// | --- | --- | --- | --- |
/// | `raw` | `(n, k)` | yes | free parameter; only the part below the diagonal is read |
/// | `base` | `(n, k)` | no: no gradient reaches it | the initial weight |
///
/// Weight decay on `raw` pulls the weight back towards its start and does nothing else. An optimiser over all variables of a
/// `VarMap` leaves `base` alone as long as it skips variables without a gradient, as candle's do.
#[derive(Clone, Debug)]
pub struct OrthogonalProjector {
    map: OrthogonalMap,
    in_dim: usize,
    out_dim: usize,
    raw: Tensor,
    base: Tensor,
    reflectors: Arc<Mutex<Arc<Base>>>,
}

/// Creates an [`OrthogonalProjector`] from `in_dim` to `out_dim` features; dtype and device are those of `vb`.
///
/// Reads `raw` and `base`, each `(max(in_dim, out_dim), min(in_dim, out_dim))`, from `vb`. A `base` that is all zero counts as
/// freshly created: it is filled in place with a Haar draw, so that it lands in the store that `vb` reads from, if that store
/// hands out its own memory, as `VarMap` does. Values that are loaded into the store later take effect on the next use.
///
/// # Errors
/// A width of zero, a dtype other than f32 and f64, a `base` that is not orthonormal to 1e-5, or an error of `vb`.
///
/// # References
/// Miles, Elezi, Deng, arXiv:2403.06213. Lezcano-Casado, *Trivializations for gradient-based optimization on manifolds*,
/// NeurIPS 2019, arXiv:1909.09501.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use vkd_ortho::{OrthogonalConfig, OrthogonalMap, orthogonal};
///
/// let store = VarMap::new();
/// let vb = VarBuilder::from_varmap(&store, DType::F32, &Device::Cpu);
/// let config = OrthogonalConfig { map: OrthogonalMap::Householder, seed: 1 };
/// let projector = orthogonal(16, 48, config, vb.pp("projector"))?;
/// let ys = projector.forward(&Tensor::ones((2, 10, 16), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(ys.dims(), [2, 10, 48]);
/// assert!(projector.residual()? <= 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn orthogonal(
    in_dim: usize,
    out_dim: usize,
    config: OrthogonalConfig,
    vb: VarBuilder,
) -> Result<OrthogonalProjector> {
    if in_dim == 0 || out_dim == 0 {
        bail!("orthogonal: expected widths of at least 1, got {in_dim} -> {out_dim}")
    }
    if !matches!(vb.dtype(), DType::F32 | DType::F64) {
        return Err(Error::UnsupportedDTypeForOp(vb.dtype(), "orthogonal").bt());
    }
    let (n, k) = (in_dim.max(out_dim), in_dim.min(out_dim));
    let raw = vb.get_with_hints((n, k), "raw", Init::Const(0.))?;
    let base = vb.get_with_hints((n, k), "base", Init::Const(0.))?;
    if values(&base)?.iter().all(|&x| x == 0.) {
        let seed = named_seed(config.seed, &vb.prefix());
        base.slice_set(&sample_stiefel(n, k, seed, base.dtype(), base.device())?, 0, 0)?;
    }
    let reflectors = Arc::new(Mutex::new(Arc::new(Base::new(&base)?)));
    Ok(OrthogonalProjector { map: config.map, in_dim, out_dim, raw, base, reflectors })
}

impl OrthogonalProjector {
    /// The weight, `(out_dim, in_dim)`, on the tape of `raw`: computed anew by every call.
    ///
    /// With `out_dim >= in_dim` the columns are orthonormal and the layer keeps all lengths and angles. With `out_dim < in_dim`
    /// that is impossible; the rows are orthonormal, as in PyTorch: a co-isometry, which forgets a subspace of
    /// `in_dim - out_dim` dimensions and so does not keep the similarities of a batch.
    ///
    /// # Gradient
    /// Flows to `raw`; none reaches `base`.
    ///
    /// # Numerics
    /// Map and base are applied in f64 and rounded once. The residual is at most 1e-6 in f32 and 1e-13 in f64. `raw = 0` gives
    /// `base` to rounding.
    ///
    /// # Errors
    /// A `raw` that is not finite, or a `base` that has been overwritten by something that is not orthonormal.
    pub fn weight(&self) -> Result<Tensor> {
        let frame = self.map.apply(&self.raw.to_dtype(DType::F64)?);
        let frame = frame.map_err(|e| e.context("orthogonal projector: no weight from `raw`"))?;
        // Zero maps to minus the identity under Householder, to the identity under the others.
        let frame = match self.map {
            OrthogonalMap::Householder => frame.neg()?,
            OrthogonalMap::Cayley | OrthogonalMap::MatrixExp => frame,
        };
        let tall = self.current_base()?.apply(&frame)?.to_dtype(self.raw.dtype())?;
        if self.out_dim >= self.in_dim { Ok(tall) } else { tall.t()?.contiguous() }
    }

    /// How far the weight is from orthonormal: [`stiefel_residual`] of [`weight`](Self::weight).
    ///
    /// # Errors
    /// Those of [`weight`](Self::weight).
    pub fn residual(&self) -> Result<f64> {
        stiefel_residual(&self.weight()?)
    }

    /// The reflectors of `base` as it is now: a checkpoint loaded after construction changes it behind our back.
    fn current_base(&self) -> Result<Arc<Base>> {
        // What a panicking thread left behind is a whole value or the old one.
        let mut cached = self.reflectors.lock().unwrap_or_else(PoisonError::into_inner);
        if !cached.made_from(&self.base)? {
            *cached = Arc::new(Base::new(&self.base)?);
        }
        Ok(cached.clone())
    }
}

impl Module for OrthogonalProjector {
    /// `xs Wᵀ`: `(.., in_dim)` to `(.., out_dim)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut dims = xs.dims().to_vec();
        match dims.last_mut() {
            Some(last) if *last == self.in_dim => *last = self.out_dim,
            _ => bail!("orthogonal projector: expected (.., {}), got {:?}", self.in_dim, xs.dims()),
        }
        let rows = xs.elem_count() / self.in_dim;
        xs.reshape((rows, self.in_dim))?.matmul(&self.weight()?.t()?)?.reshape(dims)
    }
}

/// The orthogonal matrix `(I - V T Vᵀ) diag(signs, I)` whose first `k` columns are the stored tensor; all parts in f64.
#[derive(Debug)]
struct Base {
    source: Vec<f64>,
    v: Tensor,
    t: Tensor,
    signs: Tensor,
}

impl Base {
    /// Householder QR: the factor `R` of an orthonormal matrix is diagonal, with entries 1 and -1.
    fn new(base: &Tensor) -> Result<Self> {
        let residual = stiefel_residual(base)?;
        // Infinite, not NaN, where the base has a NaN.
        if residual > BASE_RESIDUAL {
            bail!(
                "orthogonal projector: expected an orthonormal `base` (residual at most {BASE_RESIDUAL:e}), got residual {residual:.1e}"
            )
        }
        let (n, k) = base.dims2()?;
        let source = values(base)?;
        let qr = Qr::new(MatRef::from_row_major_slice(&source, n, k));
        let basis = qr.Q_basis();
        let v = Mat::from_fn(n, k, |i, j| match i.cmp(&j) {
            std::cmp::Ordering::Less => 0.,
            std::cmp::Ordering::Equal => 1.,
            std::cmp::Ordering::Greater => basis[(i, j)],
        });
        let s = upper_half(&product(v.transpose(), v.as_ref()));
        let t = solve_upper(s.as_ref(), Mat::identity(k, k));
        // A reflector without a tail turns its column where the factorisation did not: read the signs off the result.
        let turned = product(v.as_ref(), product(t.as_ref(), v.subrows(0, k).transpose()).as_ref());
        let sign = |j: usize| {
            let kept = |i: usize| f64::from(u8::from(i == j)) - turned[(i, j)];
            (0..n).map(|i| kept(i) * source[i * k + j]).sum::<f64>().signum()
        };
        let signs = Mat::from_fn(n, 1, |i, _| if i < k { sign(i) } else { 1. });
        let device = base.device();
        let (v, t, signs) = (tensor(&v, device)?, tensor(&t, device)?, tensor(&signs, device)?);
        Ok(Self { source, v, t, signs })
    }

    fn made_from(&self, base: &Tensor) -> Result<bool> {
        let now = values(base)?;
        Ok(now.iter().map(|x| x.to_bits()).eq(self.source.iter().map(|x| x.to_bits())))
    }

    /// The base times an `n x k` f64 matrix.
    fn apply(&self, y: &Tensor) -> Result<Tensor> {
        let y = y.broadcast_mul(&self.signs)?;
        let inner = self.t.matmul(&self.v.t()?.matmul(&y)?)?;
        &y - self.v.matmul(&inner)?
    }
}

fn values(xs: &Tensor) -> Result<Vec<f64>> {
    xs.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

fn tensor(a: &Mat<f64>, device: &Device) -> Result<Tensor> {
    let (n, k) = (a.nrows(), a.ncols());
    let values: Vec<f64> = (0..n * k).map(|at| a[(at / k, at % k)]).collect();
    Tensor::from_vec(values, (n, k), device)
}

/// FNV-1a over the seed and the name. Stable: a change of it would change every run.
fn named_seed(seed: u64, name: &str) -> u64 {
    seed.to_le_bytes()
        .into_iter()
        .chain(name.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_seed_of_a_name_is_pinned() {
        // Recorded once: another value changes every run.
        assert_eq!(super::named_seed(1, "embed"), 0xecfc_1e2e_c779_e8c9);
    }
}
