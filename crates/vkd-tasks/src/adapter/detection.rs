//! One row per position or token.

use super::FeatureAdapter;
use crate::{FeatureMap, Layout};
use candle_core::{DType, Result, Tensor, bail};
use vkd_norm::flags;

const OP: &str = "detection adapter";

/// What becomes of the padded cells of a grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// They count as any cell, as in the published detection code.
    #[default]
    Counted,
    /// Their rows are left out; every grid needs its mask, [`FeatureMap::with_padding`]. How many rows are left the host has to know: a mask that
    /// lies on the CPU, as a batch's does, costs a device no copy, and one that lies there is copied.
    Masked,
}

/// Every position and token a row, so that student and teacher are compared where they are: V_kD for detection
/// (arXiv:2403.06213, published code `criterion.py`).
///
/// | layout | rows |
/// | --- | --- |
/// | `(B, C, H, W)` | `B · H · W`, in the order (image, y, x), those of [`Padding`] included or not |
/// | `(B, N, C)` | `B · N`, in the order (image, token) |
/// | `(L, B, N, C)` | `L · B · N`, in the order (layer, image, token) |
/// | `(B, C)` | `B` |
///
/// Tokens are matched by their number: the n-th of the student learns the n-th of the teacher. So both must have the same
/// number of them, and grids the same height, width and, where [`Padding::Masked`] leaves it out, padding (masks are not looked at
/// else); [`Distiller::check_features`](crate::Distiller::check_features)
/// says so before any training.
///
/// # Example: two detectors of anyone's
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use vkd_norm::{Context, Normalizer};
/// use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
/// use vkd_tasks::{
///     DetectionAdapter, Distiller, FeatureLoss, FeatureMap, Layout, ProjectorConfig, TapConfig, Taps, weighted_sum,
/// };
///
/// # fn main() -> Result<()> {
/// // All that is asked of a detector is what it computes on its way: here a map and, after three layers, twenty queries.
/// let detector = |width: usize| {
///     move |images: &Tensor| -> Result<Taps> {
///         let map = images.avg_pool2d(8)?.repeat((1, width, 1, 1))?;
///         let queries = map.flatten_from(2)?.narrow(2, 0, 20)?.transpose(1, 2)?;
///         Ok(Taps::from([
///             ("map".to_owned(), FeatureMap::new(map, Layout::Grid)?),
///             ("queries".to_owned(), FeatureMap::new(Tensor::stack(&[&queries; 3], 0)?, Layout::Queries)?),
///         ]))
///     }
/// };
/// let (student, teacher) = (detector(4), detector(6));
///
/// // One projector a tap; both sides are standardised, as in the published code.
/// let tap = |name: &str| TapConfig {
///     student: name.into(),
///     student_width: 4,
///     teacher: name.into(),
///     teacher_width: 6,
///     projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 0)),
///     student_normalizer: Normalizer::Standardize { eps: 1e-6 },
///     teacher_normalizer: Normalizer::Standardize { eps: 1e-6 },
///     loss: FeatureLoss::SmoothL1 { beta: 1. },
///     weight: 4.,
/// };
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let distiller = Distiller::new(vec![tap("map"), tap("queries")], None, vb)?
///     .with_adapter(DetectionAdapter::default());
///
/// let images = Tensor::rand(0f32, 1., (2, 1, 40, 48), &Device::Cpu)?;
/// let (student, teacher) = (student(&images)?, teacher(&images)?);
/// distiller.check_features(&student, &teacher)?;
/// let terms = distiller.feature_terms(&student, &teacher, &Context::eval())?;
/// assert_eq!(terms[1].name, "feature.queries");
/// // Added to the detector's own loss, this is what is trained.
/// weighted_sum(&terms)?.backward()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DetectionAdapter {
    /// What becomes of the padded cells of a grid.
    pub padding: Padding,
}

/// Where one of two masks of a shape has padding and the other none, 1 and else 0, u8 and where they are.
fn unlike(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let padded = |mask: &Tensor| mask.to_dtype(DType::F32)?.ne(0.);
    padded(student)?.ne(&padded(teacher)?)
}

impl DetectionAdapter {
    /// The mask of a grid whose padding is left out; `None` where all rows count.
    fn mask<'a>(&self, features: &'a FeatureMap) -> Result<Option<&'a Tensor>> {
        if features.layout() != Layout::Grid || self.padding == Padding::Counted {
            return Ok(None);
        }
        match features.padding() {
            Some(mask) => Ok(Some(mask)),
            None => bail!("{OP}: expected a grid with a padding mask, got none"),
        }
    }

    /// Indices of the rows that are no padding; `None` where all rows count.
    fn kept(&self, features: &FeatureMap) -> Result<Option<Vec<u32>>> {
        let Some(mask) = self.mask(features)? else { return Ok(None) };
        let mask = mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let kept = (0u32..).zip(mask).filter(|(_, padded)| *padded == 0.).map(|(row, _)| row);
        Ok(Some(kept.collect()))
    }
}

impl FeatureAdapter for DetectionAdapter {
    /// # Errors
    /// A grid without a mask where padding is to be left out, or no row at all: losses of nothing would be NaN.
    fn adapt(&self, features: &FeatureMap) -> Result<Tensor> {
        let xs = features.tensor();
        let last = match features.layout() {
            Layout::Grid => xs.permute((0, 2, 3, 1))?,
            Layout::Tokens | Layout::Queries | Layout::Pooled => xs.clone(),
        };
        let rows = last.reshape(((), features.width()))?;
        let rows = match self.kept(features)? {
            Some(kept) => {
                let count = kept.len();
                rows.index_select(&Tensor::from_vec(kept, count, xs.device())?, 0)?
            }
            None => rows,
        };
        if rows.dim(0)? == 0 {
            bail!("{OP}: expected at least one row, got {:?}", xs.dims())
        }
        Ok(rows)
    }

    fn check_pair(&self, student: &FeatureMap, teacher: &FeatureMap) -> Result<()> {
        let shape = |features: &FeatureMap| -> Vec<usize> {
            let mut dims = features.tensor().dims().to_vec();
            match features.layout() {
                Layout::Grid | Layout::Pooled => dims.remove(1),
                Layout::Tokens | Layout::Queries => dims.remove(dims.len() - 1),
            };
            dims
        };
        let (s, t) = (shape(student), shape(teacher));
        if student.layout() != teacher.layout() || s != t {
            bail!(
                "{OP}: expected the student's {:?} {s:?}, without channels, to be the teacher's, got {:?} {t:?}",
                student.layout(),
                teacher.layout()
            )
        }
        let (Some(own), Some(other)) = (self.mask(student)?, self.mask(teacher)?) else {
            return Ok(());
        };
        if !own.device().is_cpu() && own.device().same_device(other.device()) {
            let what = "the student's padding to be the teacher's";
            return flags::expect(OP, what, &unlike(own, other)?, [0., 0.]);
        }
        if self.kept(student)? != self.kept(teacher)? {
            bail!("{OP}: expected the student's padding to be the teacher's, got another mask")
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use vkd_testkit::{Tolerance, assert_close, gradcheck, normal};

    const MASKED: DetectionAdapter = DetectionAdapter { padding: Padding::Masked };

    fn counted(xs: &Tensor, layout: Layout) -> Result<Tensor> {
        DetectionAdapter::default().adapt(&FeatureMap::new(xs.clone(), layout)?)
    }

    #[test]
    fn rows_come_image_by_image_and_row_by_row() -> Result<()> {
        let grid = normal(&[2, 3, 4, 5], DType::F64, 1)?;
        let rows = counted(&grid, Layout::Grid)?;
        assert_eq!(rows.dims(), [40, 3]);
        // Image 1, y 2, x 3.
        let want = grid.get(1)?.narrow(1, 2, 1)?.narrow(2, 3, 1)?.flatten_all()?;
        assert_close("grid", &rows.get(20 + 2 * 5 + 3)?, &want, Tolerance::EXACT)?;
        let queries = normal(&[2, 3, 4, 5], DType::F64, 2)?;
        let rows = counted(&queries, Layout::Queries)?;
        assert_eq!(rows.dims(), [24, 5]);
        // Layer 1, image 2, token 3.
        let want = queries.get(1)?.get(2)?.get(3)?;
        assert_close("queries", &rows.get(12 + 2 * 4 + 3)?, &want, Tolerance::EXACT)?;
        assert_eq!(counted(&queries.get(0)?, Layout::Tokens)?.dims(), [12, 5]);
        assert_eq!(counted(&queries.get(0)?.get(0)?, Layout::Pooled)?.dims(), [4, 5]);
        gradcheck(|x| counted(&x[0], Layout::Grid), &[grid])?;
        gradcheck(|x| counted(&x[0], Layout::Queries), &[queries])
    }

    #[test]
    fn padding_is_left_out_with_its_gradient() -> Result<()> {
        let grid = normal(&[2, 3, 2, 2], DType::F64, 1)?;
        let mask = Tensor::new(&[[[0u8, 1], [0, 1]], [[0, 0], [0, 1]]], &Device::Cpu)?;
        let map = |x: &Tensor| FeatureMap::new(x.clone(), Layout::Grid)?.with_padding(mask.clone());
        let rows = MASKED.adapt(&map(&grid)?)?;
        let all = counted(&grid, Layout::Grid)?;
        let other = Tensor::new(&[[[0u8, 1], [0, 1]], [[0, 0], [1, 0]]], &Device::Cpu)?;
        // Any number but zero is padding.
        assert_eq!(
            unlike(&mask, &(mask.to_dtype(DType::F32)? * 2.)?)?.max_all()?.to_scalar::<u8>()?,
            0
        );
        let apart = unlike(&mask, &other)?.flatten_all()?.to_vec1::<u8>()?;
        assert_eq!(apart, [0, 0, 0, 0, 0, 0, 1, 1]);
        let kept = Tensor::new(&[0u32, 2, 4, 5, 6], &Device::Cpu)?;
        assert_close("masked", &rows, &all.index_select(&kept, 0)?, Tolerance::EXACT)?;
        let plain = DetectionAdapter::default().adapt(&map(&grid)?)?;
        assert_close("counted", &plain, &all, Tolerance::EXACT)?;
        gradcheck(|x| MASKED.adapt(&map(&x[0])?), &[grid])
    }

    #[test]
    fn what_can_not_be_paired_is_named() -> Result<()> {
        let of = |dims: &[usize], layout| FeatureMap::new(normal(dims, DType::F32, 1)?, layout);
        let plain = DetectionAdapter::default();
        let pair = |a: &FeatureMap, b: &FeatureMap| match MASKED.check_pair(a, b) {
            Ok(()) => String::new(),
            Err(e) => e.to_string(),
        };
        // Widths may differ, counts may not.
        plain.check_pair(&of(&[2, 5, 3], Layout::Tokens)?, &of(&[2, 5, 8], Layout::Tokens)?)?;
        let e = pair(&of(&[2, 5, 3], Layout::Tokens)?, &of(&[2, 6, 3], Layout::Tokens)?);
        assert!(
            e.contains(
                "student's Tokens [2, 5], without channels, to be the teacher's, got Tokens [2, 6]"
            ),
            "{e}"
        );
        let grid = of(&[2, 3, 4, 4], Layout::Grid)?;
        assert!(pair(&grid, &of(&[2, 3, 2, 2], Layout::Grid)?).contains("got Grid [2, 2, 2]"));
        assert!(pair(&grid, &of(&[2, 16, 3], Layout::Tokens)?).contains("got Tokens [2, 16]"));
        assert!(pair(&grid, &grid).contains("a padding mask, got none"));
        plain.check_pair(&grid, &grid)?;
        let mask = |value: f32| Tensor::full(value, (2, 4, 4), &Device::Cpu);
        let (none, all) =
            (grid.clone().with_padding(mask(0.)?)?, grid.clone().with_padding(mask(1.)?)?);
        assert_eq!(pair(&none, &none), "");
        assert!(pair(&none, &all).contains("padding to be the teacher's"));
        assert!(MASKED.adapt(&all).unwrap_err().to_string().contains("at least one row"));
        assert!(
            grid.clone().with_padding(Tensor::zeros((2, 4, 5), DType::U8, &Device::Cpu)?).is_err()
        );
        assert!(of(&[2, 5, 3], Layout::Tokens)?.with_padding(mask(0.)?).is_err());
        assert!(of(&[2, 5, 3], Layout::Queries).is_err());
        Ok(())
    }
}
