//! All scores of a generator at once, from features that are gathered batch by batch.

use super::{ManifoldScores, Moments, frechet_distance, kernel_distance, manifold_scores};
use candle_core::{DType, Device, Result, Tensor, bail};
use serde::Serialize;

const OP: &str = "generation scores";

/// Features of images by one extractor: mean and covariance of all, and the first rows themselves.
///
/// The Fréchet distance needs the former, which do not grow with the number of images; kernel distance, precision, recall, density and
/// coverage need rows, of which so many are kept as is said.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use vkd_train::metrics::{Features, GenerationScores};
///
/// let rows = |shift: f32| Tensor::new(&[[shift, 0.], [shift + 1., 0.], [shift, 1.], [shift + 2., 3.]], &Device::Cpu);
/// let gathered = |shift: f32| -> candle_core::Result<Features> {
///     let mut features = Features::new("a classifier of these rows", 2, 100)?;
///     features.add(&rows(shift)?)?;
///     Ok(features)
/// };
/// let scores = GenerationScores::between(&gathered(0.)?, &gathered(3.)?, 2)?;
/// assert!((scores.frechet - 9.).abs() < 1e-9);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Features {
    extractor: String,
    moments: Moments,
    rows: Vec<f32>,
    keep: usize,
}

impl Features {
    /// Of no images yet. `extractor` says what made them: the numbers of two extractors are two scales.
    ///
    /// # Errors
    /// No name, or a width of zero.
    pub fn new(extractor: &str, width: usize, keep: usize) -> Result<Self> {
        if extractor.is_empty() {
            bail!("{OP}: expected the name of an extractor, got none")
        }
        let moments = Moments::new(width)?;
        Ok(Self { extractor: extractor.to_owned(), moments, rows: Vec::new(), keep })
    }

    /// Takes in features `(B, width)` of a batch of images.
    ///
    /// # Errors
    /// Another width, or a value that is not finite; nothing is changed then.
    pub fn add(&mut self, features: &Tensor) -> Result<()> {
        let (batch, width) = features.dims2()?;
        if width != self.moments.channels() {
            bail!("{OP}: expected features of width {}, got {width}", self.moments.channels())
        }
        let features = match features.dtype() {
            DType::F64 => features.clone(),
            _ => features.to_dtype(DType::F32)?,
        };
        self.moments.merge(&Moments::from_rows(&features, None)?)?;
        let room = self.keep - self.kept();
        let first = features.narrow(0, 0, batch.min(room))?.to_dtype(DType::F32)?;
        self.rows.extend(first.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    /// What made the features.
    pub fn extractor(&self) -> &str {
        &self.extractor
    }

    /// Mean and covariance of all images.
    pub fn moments(&self) -> &Moments {
        &self.moments
    }

    /// The rows that were kept, `(N, width)`: the first ones.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn rows(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.rows, (self.kept(), self.moments.channels()), &Device::Cpu)
    }

    fn kept(&self) -> usize {
        self.rows.len() / self.moments.channels()
    }
}

/// How samples of a generator compare with real images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerationScores {
    /// What made the features.
    pub extractor: String,
    /// Real images.
    pub real: usize,
    /// Generated images.
    pub generated: usize,
    /// [`frechet_distance`] of all images.
    pub frechet: f64,
    /// [`kernel_distance`] of the rows that were kept.
    pub kernel: f64,
    /// [`manifold_scores`] of the rows that were kept.
    pub manifold: ManifoldScores,
}

impl GenerationScores {
    /// Of two sets of features, with balls to the `k`-th neighbour.
    ///
    /// # Errors
    /// Features of two extractors, and those of the measures: too few images, another width.
    pub fn between(real: &Features, generated: &Features, k: usize) -> Result<Self> {
        if real.extractor != generated.extractor {
            bail!(
                "{OP}: expected features of one extractor, got {} and {}",
                real.extractor,
                generated.extractor
            )
        }
        let (rows, samples) = (real.rows()?, generated.rows()?);
        Ok(Self {
            extractor: real.extractor.clone(),
            real: real.moments.count() as usize,
            generated: generated.moments.count() as usize,
            frechet: frechet_distance(&real.moments, &generated.moments)?,
            kernel: kernel_distance(&rows, &samples)?,
            manifold: manifold_scores(&rows, &samples, k)?,
        })
    }
}
