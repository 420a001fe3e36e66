//! All scores of a generator at once, from features that are gathered batch by batch.

use super::{ManifoldScores, Moments, frechet_distance, kernel_distance, manifold_scores};
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::Rng;
use serde::Serialize;
use vkd_nn::stream;

const OP: &str = "generation scores";

/// Features of images by one extractor: mean and covariance of all, and a sample of the rows themselves.
///
/// The Fréchet distance needs the former, which do not grow with the number of images; kernel distance, precision, recall, density and
/// coverage need rows, of which so many are kept as is said: all, or an even sample of all (Vitter's algorithm R), drawn by the images'
/// numbers alone, so that it does not depend on the batches.
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
        let before = self.moments.count() as u64;
        self.moments.merge(&Moments::from_rows(&features, None)?)?;
        let values = features.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        for (number, row) in (before..before + batch as u64).zip(values.chunks_exact(width)) {
            if self.kept() < self.keep {
                self.rows.extend(row);
                continue;
            }
            let place = stream(0, "generation-scores.rows", 0, number).random_range(0..=number);
            if let Some(old) = self.rows.chunks_exact_mut(width).nth(place as usize) {
                old.copy_from_slice(row);
            }
        }
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

    /// The rows that were kept, `(N, width)`.
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
    /// Rows of real images that were kept.
    pub real_rows: usize,
    /// Rows of generated images that were kept.
    pub generated_rows: usize,
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
            real_rows: real.kept(),
            generated_rows: generated.kept(),
            frechet: frechet_distance(&real.moments, &generated.moments)?,
            kernel: kernel_distance(&rows, &samples)?,
            manifold: manifold_scores(&rows, &samples, k)?,
        })
    }
}
