//! The choices of projector that a tap can compare.

use crate::PublishedProjector;
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use vkd_ortho::{OrthogonalConfig, OrthogonalProjector, orthogonal};

/// Which projector a tap gets.
#[derive(Clone, Debug)]
pub enum ProjectorConfig {
    /// Orthonormal columns: V_kD.
    Orthogonal(OrthogonalConfig),
    /// The same, then a learnt gain and bias for each channel, as in the published detection code.
    ///
    /// With a gain the map is no isometry any more. Where the student is standardised afterwards (as there), the size of the gain
    /// and the bias cancel, and only a change of sign could matter.
    OrthogonalAffine(OrthogonalConfig),
    /// Unconstrained and bias-free, so that the constraint is the only difference to [`Self::Orthogonal`].
    Linear,
    /// Two such matrices with relu between, as several baselines have it; it can bend the features to the teacher's.
    Mlp {
        /// Width between the two.
        hidden: usize,
    },
    /// None: the student's features as they are, for losses that compare relations and need no common width.
    Identity,
    /// The published classification code's, flaw included: see [`PublishedProjector`].
    Published {
        /// Seed of its base.
        seed: u64,
    },
}

impl ProjectorConfig {
    /// Width of what comes out of a projector between features of these widths; refused where the loss
    /// compares rows entry by entry and the widths would differ.
    pub(crate) fn width(&self, student: usize, teacher: usize, entrywise: bool) -> Result<usize> {
        match self {
            Self::Identity if entrywise && student != teacher => bail!(
                "projector: expected one between features of width {student} and {teacher} with a loss that compares rows, got none"
            ),
            Self::Identity => Ok(student),
            _ => Ok(teacher),
        }
    }
}

/// A projector `(M, Cs)` to `(M, Ct)`.
pub enum Projector {
    /// Orthonormal columns.
    Orthogonal(OrthogonalProjector),
    /// Orthonormal columns, then gain and bias `(Ct)`.
    OrthogonalAffine(OrthogonalProjector, Tensor, Tensor),
    /// Unconstrained weight `(Ct, Cs)`.
    Linear(Tensor),
    /// Weights `(hidden, Cs)` and `(Ct, hidden)`.
    Mlp(Tensor, Tensor),
    /// None.
    Identity,
    /// The published code's.
    Published(PublishedProjector),
}

impl Projector {
    /// Creates the projector that `config` names.
    ///
    /// A linear weight starts normal with standard deviation `1 / sqrt(out_dim)`: its columns then have unit length
    /// on average, as an orthonormal frame's have exactly. The two weights of an MLP start normal with standard deviations
    /// `sqrt(2 / in_dim)` and `sqrt(in_dim / (out_dim hidden))`: it keeps the length of a row on average too. They
    /// are named `hidden.weight` and `weight`. `gain` and `bias` start at 1 and 0.
    ///
    /// # Errors
    /// A zero width, hidden ones included, and what [`orthogonal`] refuses.
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
            ProjectorConfig::OrthogonalAffine(config) => Ok(Self::OrthogonalAffine(
                orthogonal(in_dim, out_dim, *config, vb.clone())?,
                vb.get_with_hints(out_dim, "gain", Init::Const(1.))?,
                vb.get_with_hints(out_dim, "bias", Init::Const(0.))?,
            )),
            ProjectorConfig::Linear => {
                let init = Init::Randn { mean: 0., stdev: (out_dim as f64).sqrt().recip() };
                Ok(Self::Linear(vb.get_with_hints((out_dim, in_dim), "weight", init)?))
            }
            ProjectorConfig::Mlp { hidden } => {
                if *hidden == 0 {
                    bail!("projector {}: expected a hidden width above 0, got 0", vb.prefix())
                }
                let normal = |variance: f64| Init::Randn { mean: 0., stdev: variance.sqrt() };
                let (inner, outer) = (in_dim as f64, (out_dim * hidden) as f64);
                Ok(Self::Mlp(
                    vb.get_with_hints((*hidden, in_dim), "hidden.weight", normal(2. / inner))?,
                    vb.get_with_hints((out_dim, *hidden), "weight", normal(inner / outer))?,
                ))
            }
            ProjectorConfig::Identity => Ok(Self::Identity),
            ProjectorConfig::Published { seed } => {
                Ok(Self::Published(PublishedProjector::new(in_dim, out_dim, *seed, vb)?))
            }
        }
    }

    /// `max|WᵀW − I|` of the orthogonal weight, of rank 0 in f64, as [`stiefel_residual_tensor`](vkd_ortho::stiefel_residual_tensor)
    /// gives it; `None` for a projector that claims no orthogonality.
    pub fn residual(&self) -> Result<Option<Tensor>> {
        match self {
            Self::Orthogonal(projector) | Self::OrthogonalAffine(projector, ..) => {
                Ok(Some(projector.residual_tensor()?))
            }
            Self::Published(projector) => Ok(Some(projector.residual()?)),
            Self::Linear(_) | Self::Mlp(..) | Self::Identity => Ok(None),
        }
    }
}

impl Module for Projector {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Orthogonal(projector) => projector.forward(xs),
            Self::OrthogonalAffine(projector, gain, bias) => {
                // The gain on the weight, which has fewer rows than there are features.
                let weight = projector.weight()?.broadcast_mul(&gain.unsqueeze(1)?)?;
                xs.matmul(&weight.t()?)?.broadcast_add(bias)
            }
            Self::Linear(weight) => xs.matmul(&weight.t()?),
            Self::Mlp(hidden, weight) => xs.matmul(&hidden.t()?)?.relu()?.matmul(&weight.t()?),
            Self::Identity => Ok(xs.clone()),
            Self::Published(projector) => projector.forward(xs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Projector, ProjectorConfig};
    use candle_core::{DType, Device, Module, Result};
    use candle_nn::{VarBuilder, VarMap};
    use vkd_testkit::normal;

    #[test]
    fn an_mlp_keeps_lengths_on_average_at_first() -> Result<()> {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
        let config = ProjectorConfig::Mlp { hidden: 300 };
        let projector = Projector::new(40, 200, &config, vb.pp("p"))?;
        let xs = normal(&[100, 40], DType::F64, 1)?;
        let ys = projector.forward(&xs)?;
        assert_eq!(ys.dims(), [100, 200]);
        let square = |t: &candle_core::Tensor| t.sqr()?.sum_all()?.to_scalar::<f64>();
        // 60,000 weights that candle draws unseeded: the ratio's deviation is about 3 per cent.
        let ratio = square(&ys)? / square(&xs)?;
        assert!((0.7..1.3).contains(&ratio), "{ratio}");
        assert!(projector.residual()?.is_none());
        let none = Projector::new(4, 2, &ProjectorConfig::Mlp { hidden: 0 }, vb.pp("q"));
        let message = none.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("projector q: expected a hidden width above 0"), "{message}");
        Ok(())
    }
}
