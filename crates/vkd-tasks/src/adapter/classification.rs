//! One row per image.

use super::FeatureAdapter;
use crate::{FeatureMap, Layout};
use candle_core::{D, Result, Tensor, bail};

/// Mean over tokens or over space: `(B, N, C)` or `(B, C, H, W)` to `(B, C)`; pooled features stay as they are.
///
/// V_kD pools the student's patch tokens and the teacher's last map this way (published code, `engine.py`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassificationAdapter;

impl FeatureAdapter for ClassificationAdapter {
    /// # Errors
    /// No tokens or an empty map: their mean would be NaN.
    fn adapt(&self, features: &FeatureMap) -> Result<Tensor> {
        let xs = features.tensor();
        if matches!(features.layout(), Layout::Tokens) && xs.dim(1)? == 0
            || matches!(features.layout(), Layout::Grid) && xs.dim(2)? * xs.dim(3)? == 0
        {
            bail!("classification adapter: expected at least one position, got {:?}", xs.dims())
        }
        match features.layout() {
            Layout::Tokens => xs.mean(1),
            Layout::Grid => xs.flatten_from(2)?.mean(D::Minus1),
            Layout::Pooled => Ok(xs.clone()),
            Layout::Queries => {
                bail!("classification adapter: expected one layer's features, got {:?}", xs.dims())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use vkd_testkit::{Tolerance, assert_close, gradcheck, normal};

    #[test]
    fn tokens_and_grid_of_the_same_values_agree() -> Result<()> {
        let grid = normal(&[2, 3, 4, 5], DType::F64, 1)?;
        let tokens = grid.flatten_from(2)?.transpose(1, 2)?;
        let adapt = |t: Tensor, l| ClassificationAdapter.adapt(&FeatureMap::new(t, l)?);
        let want = adapt(tokens.clone(), Layout::Tokens)?;
        assert_eq!(want.dims(), [2, 3]);
        assert_close(
            "grid",
            &adapt(grid.clone(), Layout::Grid)?,
            &want,
            Tolerance::relative(1e-15),
        )?;
        assert_close("pooled", &adapt(want.clone(), Layout::Pooled)?, &want, Tolerance::EXACT)?;
        gradcheck(|x| adapt(x[0].clone(), Layout::Tokens), &[tokens.contiguous()?])?;
        gradcheck(|x| adapt(x[0].clone(), Layout::Grid), &[grid])
    }

    #[test]
    fn wrong_ranks_and_empty_maps_are_errors() -> Result<()> {
        let xs = normal(&[2, 3], DType::F64, 1)?;
        assert!(FeatureMap::new(xs.clone(), Layout::Tokens).is_err());
        let empty = FeatureMap::new(normal(&[2, 0, 3], DType::F64, 1)?, Layout::Tokens)?;
        assert!(ClassificationAdapter.adapt(&empty).is_err());
        let empty = FeatureMap::new(normal(&[2, 3, 0, 4], DType::F64, 1)?, Layout::Grid)?;
        assert!(ClassificationAdapter.adapt(&empty).is_err());
        Ok(())
    }
}
