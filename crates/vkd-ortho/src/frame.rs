//! The bare parameter: an orthonormal weight without a layer around it.

use crate::base::{Base, rounding, unit_columns, values};
use crate::ops::base_product;
use crate::parametrization::{check_orthonormal, parameters, tolerance};
use crate::polar::polar_of;
use crate::{OrthogonalMap, sample_stiefel, stiefel_residual};
use candle_core::{DType, Error, Result, Tensor, Var, bail};
use candle_nn::VarBuilder;
use std::sync::{Arc, Mutex, PoisonError};

/// The weight that a fresh parameter starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Init {
    /// A draw from the Haar (uniform) distribution by the seed and the name of the parameter.
    #[default]
    Haar,
    /// The first unit vectors: ones on the diagonal, zero elsewhere. The seed is not read.
    Identity,
}

/// Choices of a [`Stiefel`] parameter or an [`OrthogonalProjector`](crate::OrthogonalProjector).
///
/// There is no default: the paper uses the matrix exponential, its published code the map that PyTorch picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrthogonalConfig {
    /// Map from the parameter to the weight.
    pub map: OrthogonalMap,
    /// Seed of the initial weight; the name of the layer enters too, so that layers of one model differ.
    pub seed: u64,
    /// Initial weight, where the store holds none.
    pub init: Init,
}

impl OrthogonalConfig {
    /// `map`, starting from a Haar draw by `seed`.
    pub fn new(map: OrthogonalMap, seed: u64) -> Self {
        Self { map, seed, init: Init::Haar }
    }
}

/// A trained `rows x columns` matrix with orthonormal columns, or rows where it is wide.
///
/// With `n` the larger width and `k` the smaller, the `n x k` weight is `base · map(raw)` (static trivialisation), and its
/// transpose when the matrix is wide. `raw` is the trained parameter, zero at first; `base` is an `n x n` orthogonal matrix that
/// is never formed. Its first `k` columns, the weight at `raw = 0`, are what is stored; it acts as `k` reflectors.
///
/// | tensor | shape | trained | content |
/// | --- | --- | --- | --- |
/// | `raw` | `(n, k)` | yes | free parameter; only the part below the diagonal is read |
/// | `base` | `(n, k)` | no: no gradient reaches it | the initial weight |
///
/// Weight decay on `raw` pulls the weight back towards its start and does nothing else. An optimiser over all variables of a
/// `VarMap` leaves `base` alone as long as it skips variables without a gradient, as candle's do.
///
/// # Averages
/// The moving average of such a weight is `base · map(mean of raw)`, with the same `base`: average `raw` as if it were any
/// parameter and copy `base`. The averaged weight is orthonormal at every step; a mean of *weights* would not be. After
/// [`keep`](Self::keep), [`nearest`](Self::nearest) or [`rebase`](Self::rebase) the old averages belong to another base: start
/// them anew. The moments of an optimiser are in the coordinates of `raw` as well.
///
/// # Dtypes
/// With a `VarBuilder` of f32 or f64 everything has that dtype. With f16 or bf16, `raw` and `base` are f32 and so is the
/// gradient of `raw`; only the weight is rounded. Orthonormality then ends where the half type does: entries are off by up to
/// 2⁻⁸ (bf16) or 2⁻¹¹ (f16) of themselves, which bounds the residual by 2⁻⁷ or 2⁻¹⁰, as columns have length one. Much of it
/// cancels: the tests hold widths of 16 to 48 to half of that.
///
/// # Clones
/// Clones share the tensors, as all candle layers do.
///
/// # Example: a recurrent step that keeps the length of its state
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use vkd_ortho::{Init, OrthogonalConfig, OrthogonalMap, Stiefel};
///
/// let store = VarMap::new();
/// let vb = VarBuilder::from_varmap(&store, DType::F32, &Device::Cpu);
/// let recurrent = Stiefel::new(8, 8, OrthogonalConfig::new(OrthogonalMap::Cayley, 1), vb.pp("rnn"))?;
/// // Once per sequence, used at every step: the gradient is the sum over the steps.
/// let weight = recurrent.weight()?;
/// let mut state = Tensor::randn(0f32, 1., (2, 8), &Device::Cpu)?;
/// let before = state.sqr()?.sum_all()?.to_scalar::<f32>()?;
/// for _ in 0..100 {
///     state = state.matmul(&weight.t()?)?; // plus the input and a nonlinearity
/// }
/// let after = state.sqr()?.sum_all()?.to_scalar::<f32>()?;
/// assert!((after / before - 1.).abs() < 1e-4, "nothing vanishes, nothing explodes");
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Example: a flow layer, whose log-determinant is zero and whose inverse is its transpose
/// ```
/// # use candle_core::{DType, Device, Tensor}; use candle_nn::{VarBuilder, VarMap};
/// # use vkd_ortho::{Init, OrthogonalConfig, OrthogonalMap, Stiefel};
/// # let store = VarMap::new();
/// # let vb = VarBuilder::from_varmap(&store, DType::F64, &Device::Cpu);
/// let config = OrthogonalConfig { map: OrthogonalMap::MatrixExp, seed: 0, init: Init::Identity };
/// let mixing = Stiefel::new(6, 6, config, vb.pp("mixing"))?.weight()?;
/// let xs = Tensor::randn(0f64, 1., (4, 6), &Device::Cpu)?;
/// let back = xs.matmul(&mixing.t()?)?.matmul(&mixing)?;
/// assert!((back - xs)?.abs()?.max_all()?.to_scalar::<f64>()? < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Stiefel {
    map: OrthogonalMap,
    rows: usize,
    columns: usize,
    raw: Tensor,
    base: Tensor,
    dtype: DType,
    reflectors: Arc<Mutex<Arc<Base>>>,
}

impl Stiefel {
    /// Creates a `rows x columns` parameter; dtype and device are those of `vb`.
    ///
    /// Reads `raw` and `base`, each `(max(rows, columns), min(rows, columns))`, from `vb`. A `base` that is all zero counts as
    /// freshly created: it is filled in place with the initial weight, so that it lands in the store that `vb` reads from, if
    /// that store hands out its own memory, as `VarMap` does. Values loaded into the store later take effect on the next use.
    ///
    /// # Errors
    /// A width of zero, a dtype that is no float of 16 to 64 bits, a `base` that is not orthonormal to 1e-5, or an error of `vb`.
    pub fn new(
        rows: usize,
        columns: usize,
        config: OrthogonalConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        if rows == 0 || columns == 0 {
            bail!("stiefel: expected widths of at least 1, got {rows} x {columns}")
        }
        let dtype = vb.dtype();
        let stored = match dtype {
            DType::F64 => DType::F64,
            DType::F32 | DType::F16 | DType::BF16 => DType::F32,
            _ => return Err(Error::UnsupportedDTypeForOp(dtype, "stiefel").bt()),
        };
        let (n, k) = (rows.max(columns), rows.min(columns));
        let zeros = candle_nn::Init::Const(0.);
        let raw = vb.get_with_hints_dtype((n, k), "raw", zeros, stored)?;
        let base = vb.get_with_hints_dtype((n, k), "base", zeros, stored)?;
        if values(&base)?.iter().all(|&x| x == 0.) {
            let (dtype, device) = (base.dtype(), base.device());
            let start = match config.init {
                Init::Haar => {
                    sample_stiefel(n, k, named_seed(config.seed, &vb.prefix()), dtype, device)?
                }
                Init::Identity => unit_columns(n, k, dtype, device)?,
            };
            base.slice_set(&start, 0, 0)?;
        }
        let reflectors = Arc::new(Mutex::new(Arc::new(Base::new(&base)?)));
        Ok(Self { map: config.map, rows, columns, raw, base, dtype, reflectors })
    }

    /// The weight, `(rows, columns)`, on the tape of `raw`: computed anew by every call.
    ///
    /// A tall weight keeps all lengths and angles of what it multiplies. A wide one can't; it forgets a subspace of
    /// `columns - rows` dimensions.
    ///
    /// # Gradient
    /// Flows to `raw`; none reaches `base`.
    ///
    /// # Numerics
    /// The residual is at most 1e-6 in f32 and 1e-13 in f64: the base is applied in f64 to what the map gives. `raw = 0` gives
    /// `base` to the bit (a negative zero counts as zero) where `base` is orthonormal to the rounding of its dtype: 5e-7 in f32,
    /// 5e-14 in f64. One that is further off is not returned as it is; the weight is its orthonormal QR factor.
    ///
    /// # Errors
    /// A `raw` that is not finite, or a `base` that has been overwritten by something that is not orthonormal. On a CUDA device,
    /// where nobody waits to hear of either, they make the weight NaN.
    pub fn weight(&self) -> Result<Tensor> {
        let frame = self.map.apply(&self.raw).map_err(no_weight)?;
        let tall = base_product(&self.current_base()?, &frame, self.sign())?;
        self.lay(&tall.to_dtype(self.dtype)?)
    }

    /// How far the weight is from orthonormal: [`stiefel_residual`] of [`weight`](Self::weight).
    ///
    /// # Errors
    /// Those of [`weight`](Self::weight).
    pub fn residual(&self) -> Result<f64> {
        stiefel_residual(&self.weight()?)
    }

    /// `(rows, columns)` of the weight.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Makes `q` the weight, to the bit of the stored dtype: `base` becomes `q`, `raw` zero.
    ///
    /// A negative zero may come back as zero.
    ///
    /// # Errors
    /// Another shape; a `q` that is not orthonormal to the rounding of the stored dtype (5e-7 in f32, 5e-14 in f64), for which
    /// [`nearest`](Self::nearest) is there; tensors that are not variables.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Tensor}; use candle_nn::{VarBuilder, VarMap};
    /// # use vkd_ortho::{OrthogonalConfig, OrthogonalMap, Stiefel, sample_stiefel};
    /// let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
    /// let mut weight = Stiefel::new(9, 4, OrthogonalConfig::new(OrthogonalMap::Cayley, 1), vb)?;
    /// let q = sample_stiefel(9, 4, 42, DType::F32, &Device::Cpu)?;
    /// weight.keep(&q)?;
    /// assert_eq!(weight.weight()?.to_vec2::<f32>()?, q.to_vec2::<f32>()?);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn keep(&mut self, q: &Tensor) -> Result<()> {
        let q = self.stand("stiefel keep", q)?.to_dtype(self.base.dtype())?;
        check_orthonormal("stiefel keep", &q, rounding(q.dtype()))?;
        self.move_to(&q)
    }

    /// Makes the orthonormal matrix nearest to `weight` the weight: [`polar`](crate::polar), then [`keep`](Self::keep).
    ///
    /// # Errors
    /// Another shape, a weight without full rank, tensors that are not variables.
    pub fn nearest(&mut self, weight: &Tensor) -> Result<()> {
        let digits = weight.dtype();
        let tall = self.stand("stiefel nearest", weight)?;
        self.move_to(&polar_of(&tall, digits)?.to_dtype(self.base.dtype())?)
    }

    /// Makes `q` the weight, to rounding, by `raw` alone; `base` stays: the map's right inverse.
    ///
    /// # Errors
    /// Another shape, a `q` that is not orthonormal (1e-5 in f32, 1e-10 in f64), one that the map does not reach from this
    /// base, tensors that are not variables.
    pub fn assign(&mut self, q: &Tensor) -> Result<()> {
        let q = self.stand("stiefel assign", q)?;
        let stored = self.raw.dtype();
        check_orthonormal("stiefel assign", &q, tolerance(stored))?;
        let frame = self.current_base()?.apply_transposed(&q)?;
        let raw = parameters(self.map, &(frame * self.sign())?, stored)?;
        variable("raw", &self.raw)?.set(&raw)
    }

    /// Makes the present weight the base and `raw` zero (dynamic trivialisation); the weight stays the same to rounding.
    ///
    /// For long runs: the map is best conditioned near zero. Weight decay then pulls towards the new base.
    ///
    /// # Errors
    /// Those of [`weight`](Self::weight); tensors that are not variables.
    ///
    /// # References
    /// Lezcano-Casado, arXiv:1909.09501.
    pub fn rebase(&mut self) -> Result<()> {
        // Without the rounding of the old base: it must not add up over many calls.
        let tall = self.current_base()?.apply(&self.frame()?.detach())?;
        self.move_to(&tall.to_dtype(self.base.dtype())?)
    }

    /// The map at `raw`, with zero at the identity: Householder has minus the identity there.
    fn frame(&self) -> Result<Tensor> {
        self.map.apply(&self.raw).map_err(no_weight)?.to_dtype(DType::F64)? * self.sign()
    }

    /// Of the map at zero.
    fn sign(&self) -> f64 {
        match self.map {
            OrthogonalMap::Householder => -1.,
            OrthogonalMap::Cayley | OrthogonalMap::MatrixExp => 1.,
        }
    }

    /// From `(n, k)` to `(rows, columns)`.
    fn lay(&self, tall: &Tensor) -> Result<Tensor> {
        if self.rows >= self.columns { Ok(tall.clone()) } else { tall.t()?.contiguous() }
    }

    /// From `(rows, columns)` to `(n, k)`, in f64 and off the tape.
    fn stand(&self, op: &str, weight: &Tensor) -> Result<Tensor> {
        if weight.dims() != [self.rows, self.columns] {
            bail!("{op}: expected ({}, {}), got {:?}", self.rows, self.columns, weight.dims())
        }
        let weight = weight.detach().to_dtype(DType::F64)?.to_device(self.base.device())?;
        if self.rows >= self.columns { weight.contiguous() } else { weight.t()?.contiguous() }
    }

    fn move_to(&self, base: &Tensor) -> Result<()> {
        // Both are looked at before one is written.
        let (raw_var, base_var) = (variable("raw", &self.raw)?, variable("base", &self.base)?);
        base_var.set(base)?;
        raw_var.set(&self.raw.zeros_like()?.detach())
    }

    /// The reflectors of `base` as it is now: a checkpoint loaded after construction changes it behind our back.
    fn current_base(&self) -> Result<Arc<Base>> {
        // What a panicking thread left behind is a whole value or the old one. The lock is not held while a base is made:
        // its products may run other tasks of the pool, which may want this weight.
        let lock = || self.reflectors.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = lock().clone();
        if cached.made_from(&self.base)? {
            return Ok(cached);
        }
        let made = Arc::new(Base::new(&self.base)?);
        *lock() = made.clone();
        Ok(made)
    }
}

fn no_weight(error: Error) -> Error {
    error.context("stiefel: no weight from `raw`")
}

/// The variable behind a tensor that a store handed out.
fn variable(name: &str, tensor: &Tensor) -> Result<Var> {
    if !tensor.is_variable() {
        bail!(
            "stiefel: expected `{name}` to be a variable (from a VarMap), got a frozen tensor: it can't be written"
        )
    }
    // Of a variable this is a second handle, not a copy.
    Var::from_tensor(tensor)
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
