//! The Inception score's formula, for any classifier.

use candle_core::{DType, Result, Tensor, bail};

const OP: &str = "inception score";

/// How far a row of probabilities may be from a sum of one: what f32 leaves of a softmax over some thousand classes.
const SUM: f64 = 1e-3;

/// `exp(mean KL(p ‖ mean p))` of the class probabilities of generated images, gathered batch by batch: memory does not depend
/// on the number of images.
///
/// From 1, where the classifier says the same of all images, to the number of classes. With Inception's probabilities it is the
/// published score; with another classifier the numbers are another scale, and a report should say which.
///
/// # References
/// Salimans et al., arXiv:1606.03498.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use vkd_train::metrics::InceptionScore;
///
/// let mut score = InceptionScore::new(2);
/// score.add(&Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?)?;
/// assert!((score.finish()? - 2.).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct InceptionScore {
    images: u64,
    /// `Σ p`.
    classes: Vec<f64>,
    /// `Σ Σ p ln p`.
    certainty: f64,
}

impl InceptionScore {
    /// Of no images yet.
    pub fn new(classes: usize) -> Self {
        Self { images: 0, classes: vec![0.; classes], certainty: 0. }
    }

    /// Takes in a batch of probabilities `(B, K)`.
    ///
    /// # Errors
    /// Another number of classes, or a row that is no distribution: a share below zero or not finite, or a sum that is not one; nothing
    /// is changed then.
    pub fn add(&mut self, probabilities: &Tensor) -> Result<()> {
        let classes = probabilities.dims2()?.1;
        if classes != self.classes.len() {
            bail!("{OP}: expected probabilities of {} classes, got {classes}", self.classes.len())
        }
        let rows = probabilities.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        for (i, row) in rows.iter().enumerate() {
            let sum: f64 = row.iter().sum();
            // Negated: NaN is refused too.
            if !(row.iter().all(|p| *p >= 0.) && (sum - 1.).abs() <= SUM) {
                bail!("{OP}: expected probabilities that sum to 1, got {sum} in row {i}")
            }
        }
        for row in &rows {
            for (total, &p) in self.classes.iter_mut().zip(row) {
                *total += p;
                self.certainty += entropy_term(p);
            }
        }
        self.images += rows.len() as u64;
        Ok(())
    }

    /// The score of all that was added.
    ///
    /// # Errors
    /// Nothing was.
    pub fn finish(&self) -> Result<f64> {
        if self.images == 0 {
            bail!("{OP}: expected at least one image, got none")
        }
        let n = self.images as f64;
        let together: f64 = self.classes.iter().map(|p| entropy_term(p / n)).sum();
        // A divergence is not below zero; rounding of two equal sums may be.
        Ok((self.certainty / n - together).max(0.).exp())
    }
}

/// `p ln p`, with `0 ln 0 = 0`.
fn entropy_term(p: f64) -> f64 {
    if p > 0. { p * p.ln() } else { 0. }
}
