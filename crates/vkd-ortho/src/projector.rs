//! The layer: a linear map whose weight is orthonormal whatever its parameter holds.

use crate::{OrthogonalConfig, Stiefel, stiefel_residual_tensor};
use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

/// Linear layer with an orthonormal weight, made by [`orthogonal`] or, with a bias, by [`orthogonal_linear`].
///
/// The weight is a [`Stiefel`] parameter; see there for what is stored, dtypes, averages and given weights
/// ([`stiefel_mut`](Self::stiefel_mut) leads to them).
#[derive(Clone, Debug)]
pub struct OrthogonalProjector {
    stiefel: Stiefel,
    bias: Option<Tensor>,
}

/// Creates an [`OrthogonalProjector`] from `in_dim` to `out_dim` features, without bias.
///
/// Reads what [`Stiefel::new`] reads: `raw` and `base`, each `(max(in_dim, out_dim), min(in_dim, out_dim))`. Dtype and device
/// are those of `vb`.
///
/// # Errors
/// A width of zero, a dtype that is no float of 16 to 64 bits, a `base` that is not orthonormal to 1e-5, or an error of `vb`.
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
/// let config = OrthogonalConfig::new(OrthogonalMap::Householder, 1);
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
    Ok(OrthogonalProjector { stiefel: Stiefel::new(out_dim, in_dim, config, vb)?, bias: None })
}

/// [`orthogonal`] with a trained `bias`, `(out_dim,)`, zero at first; f32 where `vb` is of a half type.
///
/// For layers of a network; a projector of features has no bias.
///
/// # Errors
/// Those of [`orthogonal`].
///
/// ```
/// # use candle_core::{DType, Device, Module, Tensor}; use candle_nn::{VarBuilder, VarMap};
/// # use vkd_ortho::{OrthogonalConfig, OrthogonalMap, orthogonal_linear};
/// let store = VarMap::new();
/// let vb = VarBuilder::from_varmap(&store, DType::F32, &Device::Cpu);
/// let query = orthogonal_linear(8, 8, OrthogonalConfig::new(OrthogonalMap::Cayley, 1), vb.pp("query"))?;
/// assert_eq!(store.all_vars().len(), 3);
/// assert_eq!(query.forward(&Tensor::ones((2, 5, 8), DType::F32, &Device::Cpu)?)?.dims(), [2, 5, 8]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn orthogonal_linear(
    in_dim: usize,
    out_dim: usize,
    config: OrthogonalConfig,
    vb: VarBuilder,
) -> Result<OrthogonalProjector> {
    let mut layer = orthogonal(in_dim, out_dim, config, vb.clone())?;
    let stored = if vb.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let zeros = candle_nn::Init::Const(0.);
    layer.bias = Some(vb.get_with_hints_dtype(out_dim, "bias", zeros, stored)?);
    Ok(layer)
}

impl OrthogonalProjector {
    /// The weight, `(out_dim, in_dim)`, on the tape of `raw`: computed anew by every call.
    ///
    /// With `out_dim >= in_dim` the columns are orthonormal and the layer keeps all lengths and angles. With `out_dim < in_dim`
    /// that is impossible; the rows are orthonormal, as in PyTorch: a co-isometry, which forgets a subspace of
    /// `in_dim - out_dim` dimensions and so does not keep the similarities of a batch.
    ///
    /// # Numerics, gradient
    /// Those of [`Stiefel::weight`].
    ///
    /// # Errors
    /// A `raw` that is not finite, or a `base` that has been overwritten by something that is not orthonormal.
    pub fn weight(&self) -> Result<Tensor> {
        self.stiefel.weight()
    }

    /// How far the weight is from orthonormal: [`stiefel_residual`](crate::stiefel_residual) of [`weight`](Self::weight).
    ///
    /// # Errors
    /// Those of [`weight`](Self::weight).
    pub fn residual(&self) -> Result<f64> {
        self.stiefel.residual()
    }

    /// [`residual`](Self::residual) as a tensor where the weight is, without waiting for it.
    ///
    /// # Errors
    /// Those of [`weight`](Self::weight).
    pub fn residual_tensor(&self) -> Result<Tensor> {
        stiefel_residual_tensor(&self.weight()?)
    }

    /// The parameter behind the weight.
    pub fn stiefel(&self) -> &Stiefel {
        &self.stiefel
    }

    /// The parameter behind the weight, to set it: [`Stiefel::keep`], [`Stiefel::nearest`], [`Stiefel::assign`],
    /// [`Stiefel::rebase`].
    pub fn stiefel_mut(&mut self) -> &mut Stiefel {
        &mut self.stiefel
    }

    /// The layer with its weight computed now: for more than one use within a step.
    ///
    /// [`forward`](Module::forward) computes the weight on every call. A built layer holds it, on the tape, so that several uses
    /// share one forward and one backward pass of the map; the gradient of `raw` is the sum over the uses. It does not follow
    /// later changes of `raw`: build anew after each optimiser step.
    ///
    /// # Errors
    /// Those of [`weight`](Self::weight).
    ///
    /// ```
    /// # use candle_core::{DType, Device, Module, Tensor}; use candle_nn::{VarBuilder, VarMap};
    /// # use vkd_ortho::{OrthogonalConfig, OrthogonalMap, orthogonal};
    /// # let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
    /// let layer = orthogonal(4, 4, OrthogonalConfig::new(OrthogonalMap::Cayley, 1), vb)?;
    /// let built = layer.build()?;
    /// let mut state = Tensor::ones((1, 4), DType::F32, &Device::Cpu)?;
    /// for _ in 0..10 {
    ///     state = built.forward(&state)?;
    /// }
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn build(&self) -> Result<BuiltProjector> {
        let weight = self.weight()?;
        let bias = self.bias.as_ref().map(|bias| bias.to_dtype(weight.dtype())).transpose()?;
        Ok(BuiltProjector { weight, bias })
    }
}

impl Module for OrthogonalProjector {
    /// `xs Wᵀ`, plus the bias if there is one: `(.., in_dim)` to `(.., out_dim)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        check_width(xs, self.stiefel.dims().1)?;
        self.build()?.forward(xs)
    }
}

/// An [`OrthogonalProjector`] whose weight has been computed, made by [`OrthogonalProjector::build`].
#[derive(Clone, Debug)]
pub struct BuiltProjector {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl BuiltProjector {
    /// The weight, `(out_dim, in_dim)`, on the tape of `raw`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}

impl Module for BuiltProjector {
    /// `xs Wᵀ`, plus the bias if there is one: `(.., in_dim)` to `(.., out_dim)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (out_dim, in_dim) = self.weight.dims2()?;
        check_width(xs, in_dim)?;
        let mut dims = xs.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = out_dim;
        }
        let rows = xs.elem_count() / in_dim;
        let ys = xs.reshape((rows, in_dim))?.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => ys.broadcast_add(bias)?.reshape(dims),
            None => ys.reshape(dims),
        }
    }
}

/// The last dimension must be the layer's; looked at before the weight is computed.
fn check_width(xs: &Tensor, in_dim: usize) -> Result<()> {
    if xs.dims().last() != Some(&in_dim) {
        bail!("orthogonal projector: expected (.., {in_dim}), got {:?}", xs.dims())
    }
    Ok(())
}
