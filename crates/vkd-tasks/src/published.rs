//! The projector of the published classification code, flaw included.

use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use vkd_ortho::{householder_product, sample_stiefel, stiefel_residual_tensor};

/// Last part of the name of its parameter. The published code puts the parameter into the group with weight decay, and without
/// that it would not be what was published: a trainer asks for this name.
pub const PUBLISHED_PARAMETER: &str = "original";

/// What `torch.nn.utils.parametrizations.orthogonal` makes of a `Linear(in, out, bias=False)` that is not square.
///
/// The weight is `base · (H₁ ⋯ H_k I) · diag(s)`, where the reflectors come from the part of `original` strictly below its
/// diagonal and `s` is the *integer part* of the diagonal, which starts at -1 and gets no gradient. One step of weight decay
/// makes it -0.99.., whose integer part is 0: the whole weight is zero from then on, and so is the gradient that the student
/// gets from its features. Here to show what that does to a student; for anything else take `ProjectorConfig::Orthogonal`.
///
/// `original` is `(n, k)` with `n` the larger width, `base` a fixed `n x n` orthogonal matrix drawn from the seed.
pub struct PublishedProjector {
    original: Tensor,
    base: Tensor,
    wide: bool,
}

impl PublishedProjector {
    /// Reads `original` and `base` from `vb`; a `base` that is all zero counts as fresh, and both then start as PyTorch's do.
    ///
    /// # Errors
    /// A zero width, or a `vb` of another dtype than f32 and f64.
    pub fn new(in_dim: usize, out_dim: usize, seed: u64, vb: VarBuilder) -> Result<Self> {
        let (n, k) = (in_dim.max(out_dim), in_dim.min(out_dim));
        if k == 0 {
            bail!("published projector: expected widths above 0, got {in_dim} -> {out_dim}")
        }
        let original = vb.get_with_hints((n, k), PUBLISHED_PARAMETER, Init::Const(0.))?;
        let base = vb.get_with_hints((n, n), "base", Init::Const(0.))?;
        // The one look at a value, once: a device is waited for here.
        if base.abs()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()? == 0. {
            let (dtype, device) = (base.dtype(), base.device());
            base.slice_set(&sample_stiefel(n, n, seed, dtype, device)?, 0, 0)?;
            let minus = Tensor::eye(n, dtype, device)?.narrow(1, 0, k)?.neg()?.contiguous()?;
            original.slice_set(&minus, 0, 0)?;
        }
        Ok(Self { original, base: base.detach(), wide: in_dim > out_dim })
    }

    /// The weight `(out, in)`, on the tape of `original`.
    ///
    /// # Errors
    /// A parameter that is not finite.
    pub fn weight(&self) -> Result<Tensor> {
        let signs = self.signs()?;
        let tall =
            self.base.matmul(&householder_product(&self.original)?.broadcast_mul(&signs)?)?;
        if self.wide { tall.t()?.contiguous() } else { Ok(tall) }
    }

    /// Integer parts of the diagonal, `(1, k)`, off the tape as PyTorch's cast is.
    fn signs(&self) -> Result<Tensor> {
        let raw = self.original.detach();
        let k = raw.dim(1)?;
        let eye = Tensor::eye(raw.dim(0)?, raw.dtype(), raw.device())?.narrow(1, 0, k)?;
        let diagonal = (raw * eye)?.sum_keepdim(0)?;
        diagonal.sign()? * diagonal.abs()?.floor()?
    }

    /// `max|WᵀW − I|`, of rank 0 in f64: 1 once the weight is zero.
    ///
    /// # Errors
    /// Those of [`weight`](Self::weight).
    pub fn residual(&self) -> Result<Tensor> {
        stiefel_residual_tensor(&self.weight()?)
    }
}

impl Module for PublishedProjector {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.matmul(&self.weight()?.t()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use candle_nn::VarMap;
    use vkd_ortho::{OrthogonalMap, torch_weight};
    use vkd_testkit::{Tolerance, assert_close, gradcheck, normal};

    fn parts(map: &VarMap, name: &str) -> Var {
        map.data().lock().unwrap()[name].clone()
    }

    #[test]
    fn starts_orthonormal_and_one_step_of_decay_zeroes_it() -> Result<()> {
        for (in_dim, out_dim) in [(3, 7), (7, 3)] {
            let map = VarMap::new();
            let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
            let projector = PublishedProjector::new(in_dim, out_dim, 1, vb)?;
            assert_eq!(projector.weight()?.dims(), [out_dim, in_dim]);
            assert!(projector.residual()?.to_scalar::<f64>()? <= 1e-6);
            // The published learning rate and decay.
            let original = parts(&map, PUBLISHED_PARAMETER);
            original.set(&(original.as_tensor().detach() * (1. - 5e-4 * 0.05))?)?;
            let sum = projector.weight()?.abs()?.sum_all()?.to_scalar::<f32>()?;
            assert_eq!((sum, projector.residual()?.to_scalar::<f64>()?), (0., 1.));
        }
        Ok(())
    }

    #[test]
    fn is_what_torch_makes_of_the_same_state() -> Result<()> {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
        let projector = PublishedProjector::new(3, 6, 2, vb)?;
        let (original, base) = (parts(&map, PUBLISHED_PARAMETER), parts(&map, "base"));
        let start = original.as_tensor().detach();
        // Off the start, the diagonal still beyond -1: its integer part is -1 everywhere.
        let below = (normal(&[6, 3], DType::F64, 3)?.abs()? * -0.3)?;
        original.set(&(start + below)?)?;
        let torch = torch_weight(OrthogonalMap::Householder, &original, Some(&base))?;
        assert_eq!(torch.fault.map(|f| f.columns), None);
        let ours = projector.weight()?;
        assert_close("weight", &ours, &torch.weight, Tolerance::relative(1e-13))?;
        // The gradient of the reflectors' part: away from integers the signs are constant.
        let (below, base) = (original.as_tensor().detach(), base.as_tensor().detach());
        let weight = |x: &[Tensor]| {
            let (original, base) = (x[0].clone(), base.clone());
            PublishedProjector { original, base, wide: false }.weight()
        };
        gradcheck(weight, &[below])
    }
}
