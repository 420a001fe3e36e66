//! The choices of projector that a tap can compare.

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use vkd_ortho::{OrthogonalConfig, OrthogonalProjector, orthogonal};

/// Which projector a tap gets.
#[derive(Clone, Debug)]
pub enum ProjectorConfig {
    /// Orthonormal columns: V_kD.
    Orthogonal(OrthogonalConfig),
    /// Unconstrained and bias-free, so that the constraint is the only difference to [`Self::Orthogonal`].
    Linear,
}

/// A projector `(M, Cs)` to `(M, Ct)`, bias-free.
pub enum Projector {
    /// Orthonormal columns.
    Orthogonal(OrthogonalProjector),
    /// Unconstrained weight `(Ct, Cs)`.
    Linear(Tensor),
}

impl Projector {
    /// Creates the projector that `config` names.
    ///
    /// A linear weight starts normal with standard deviation `1 / sqrt(out_dim)`: its columns then have unit length
    /// on average, as an orthonormal frame's have exactly.
    ///
    /// # Errors
    /// A zero width, and what [`orthogonal`] refuses.
    pub fn new(
        in_dim: usize,
        out_dim: usize,
        config: &ProjectorConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        if in_dim == 0 || out_dim == 0 {
            bail!("projector {}: expected widths above 0, got {in_dim} -> {out_dim}", vb.prefix())
        }
        match config {
            ProjectorConfig::Orthogonal(config) => {
                Ok(Self::Orthogonal(orthogonal(in_dim, out_dim, *config, vb)?))
            }
            ProjectorConfig::Linear => {
                let init = Init::Randn { mean: 0., stdev: (out_dim as f64).sqrt().recip() };
                Ok(Self::Linear(vb.get_with_hints((out_dim, in_dim), "weight", init)?))
            }
        }
    }

    /// `max|WᵀW − I|`, measured in f64; `None` for a projector that claims no orthogonality.
    pub fn residual(&self) -> Result<Option<f64>> {
        match self {
            Self::Orthogonal(projector) => Ok(Some(projector.residual()?)),
            Self::Linear(_) => Ok(None),
        }
    }
}

impl Module for Projector {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Orthogonal(projector) => projector.forward(xs),
            Self::Linear(weight) => xs.matmul(&weight.t()?),
        }
    }
}
