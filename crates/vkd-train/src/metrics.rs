//! Scores of a classifier, from its logits, of a detector, from its boxes, and of a generator, from features of its images.

mod average_precision;
mod coco_match;
mod frechet;
mod generation;
mod inception_score;
mod kernel_distance;
mod manifold;

pub use average_precision::{
    Annotation, AveragePrecision, CategoryPrecision, GroundTruth, ScoredBox, average_precision,
    write_results,
};
pub use frechet::frechet_distance;
pub use generation::{Features, GenerationScores};
pub use inception_score::InceptionScore;
pub use kernel_distance::{SubsetDistances, kernel_distance, kernel_distance_subsets};
pub use manifold::{ManifoldScores, manifold_scores, neighbour_radii};
pub use vkd_norm::Moments;

use candle_core::{DType, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// Bins of the calibration error.
const BINS: usize = 15;

/// What a classifier did on a set of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Number of images.
    pub images: usize,
    /// Share of images whose largest logit is the label's; of equal ones the first counts as the largest.
    pub accuracy: f64,
    /// Share of images whose label is among the five largest logits; 1 with five classes or fewer.
    pub top5_accuracy: f64,
    /// Mean of `-ln p(label)`.
    pub negative_log_likelihood: f64,
    /// Expected calibration error: over 15 bins of equal width of the largest probability, the mean of
    /// `|accuracy - mean probability|`, each bin weighed by its images.
    pub calibration_error: f64,
    /// Counts by `[label][prediction]`.
    pub confusion: Vec<Vec<u64>>,
}

/// Sums of an [`Evaluation`], batch by batch.
///
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_train::metrics::Tally;
/// let mut tally = Tally::new(2);
/// let logits = Tensor::new(&[[1f32, 2.], [3., 0.], [0., 1.]], &Device::Cpu)?;
/// tally.add(&logits, &[1, 0, 0])?;
/// let found = tally.finish()?;
/// assert_eq!((found.images, found.accuracy), (3, 2. / 3.));
/// assert_eq!(found.confusion, [[1, 1], [0, 1]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tally {
    confusion: Vec<Vec<u64>>,
    top5: u64,
    log_loss: f64,
    bins: [Bin; BINS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    images: u64,
    hits: u64,
    probability: f64,
}

impl Tally {
    /// Nothing counted yet.
    pub fn new(classes: usize) -> Self {
        Self {
            confusion: vec![vec![0; classes]; classes],
            top5: 0,
            log_loss: 0.,
            bins: [Bin::default(); BINS],
        }
    }

    /// Adds a batch: logits `(B, K)`, `B` labels below `K`.
    ///
    /// # Errors
    /// Another number of classes or labels, a label beyond the classes, or a logit that is not finite (its place among the
    /// others would be arbitrary).
    pub fn add(&mut self, logits: &Tensor, labels: &[usize]) -> Result<()> {
        let (rows, classes) = logits.dims2()?;
        if rows != labels.len() || classes != self.confusion.len() {
            bail!(
                "accuracy: expected logits ({}, {}), got {:?}",
                labels.len(),
                self.confusion.len(),
                logits.dims()
            )
        }
        for (row, &label) in logits.to_dtype(DType::F64)?.to_vec2::<f64>()?.iter().zip(labels) {
            if label >= classes {
                bail!("accuracy: expected labels below {classes}, got {label}")
            }
            if let Some(odd) = row.iter().find(|v| !v.is_finite()) {
                bail!("accuracy: expected finite logits, got {odd}")
            }
            self.add_row(row, label);
        }
        Ok(())
    }

    fn add_row(&mut self, row: &[f64], label: usize) {
        let before = |a: usize, b: usize| row[a] > row[b] || (row[a] == row[b] && a < b);
        let place = |class: usize| (0..row.len()).filter(|&other| before(other, class)).count();
        let largest = row.iter().copied().fold(f64::MIN, f64::max);
        let best = row.iter().position(|v| *v == largest).unwrap_or(0);
        let sum: f64 = row.iter().map(|v| (v - largest).exp()).sum();
        self.confusion[label][best] += 1;
        self.top5 += u64::from(place(label) < 5);
        self.log_loss += sum.ln() - (row[label] - largest);
        // The largest probability lies in (0, 1]; a bin holds its upper edge.
        let probability = 1. / sum;
        let bin = ((probability * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        let bin = &mut self.bins[bin];
        bin.images += 1;
        bin.hits += u64::from(best == label);
        bin.probability += probability;
    }

    /// The scores of all that was added.
    ///
    /// # Errors
    /// Nothing was.
    pub fn finish(self) -> Result<Evaluation> {
        let images: u64 = self.confusion.iter().flatten().sum();
        if images == 0 {
            bail!("accuracy: expected at least one image, got none")
        }
        let n = images as f64;
        let hits: u64 = self.confusion.iter().enumerate().map(|(class, row)| row[class]).sum();
        let gaps = self.bins.iter().map(|bin| (bin.hits as f64 - bin.probability).abs());
        Ok(Evaluation {
            images: images as usize,
            accuracy: hits as f64 / n,
            top5_accuracy: self.top5 as f64 / n,
            negative_log_likelihood: self.log_loss / n,
            calibration_error: gaps.sum::<f64>() / n,
            confusion: self.confusion,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn of(logits: &[[f64; 6]], labels: &[usize]) -> Result<Evaluation> {
        let mut tally = Tally::new(6);
        // In two parts: batches must not matter.
        let logits = Tensor::new(logits.concat(), &Device::Cpu)?.reshape(((), 6))?;
        tally.add(&logits.narrow(0, 0, 1)?, &labels[..1])?;
        tally.add(&logits.narrow(0, 1, labels.len() - 1)?, &labels[1..])?;
        tally.finish()
    }

    #[test]
    fn known_numbers() -> Result<()> {
        // Probabilities p = (7, 1, 1, 1, 1, 1) / 12 and its turns: confidence 7/12, in the bin (8/15, 9/15].
        let sure = |at: usize| {
            let mut row = [0.; 6];
            row[at] = 7f64.ln();
            row
        };
        let found = of(&[sure(0), sure(1), sure(2), sure(0)], &[0, 1, 3, 5])?;
        assert_eq!((found.images, found.accuracy), (4, 0.5));
        // Label 3 after class 2 and the equal 0 and 1 is fourth; label 5 comes last of six.
        assert_eq!(found.top5_accuracy, 0.75);
        let loss = -(2. * (7f64 / 12.).ln() + 2. * (1f64 / 12.).ln()) / 4.;
        // Sums of a few terms of order one in f64.
        assert!((found.negative_log_likelihood - loss).abs() < 1e-14);
        assert!((found.calibration_error - (7. / 12. - 0.5)).abs() < 1e-14);
        assert_eq!(found.confusion[3], [0, 0, 1, 0, 0, 0]);
        assert_eq!(found.confusion[5][0], 1);
        Ok(())
    }

    #[test]
    fn bins_are_apart() -> Result<()> {
        // Certain and right, 1/6 and right: gaps 0 and 5/6, a half each.
        let found = of(&[[900., 0., 0., 0., 0., 0.], [0.; 6]], &[0, 0])?;
        assert!((found.calibration_error - 5. / 12.).abs() < 1e-14);
        assert_eq!((found.accuracy, found.negative_log_likelihood), (1., 6f64.ln() / 2.));
        Ok(())
    }

    #[test]
    fn odd_input_is_refused() -> Result<()> {
        let mut tally = Tally::new(2);
        let logits = Tensor::new(&[[1f32, 2.], [3., 0.]], &Device::Cpu)?;
        assert!(tally.add(&logits, &[0]).is_err());
        assert!(tally.add(&logits, &[0, 2]).is_err());
        assert!(tally.add(&(&logits * f64::NAN)?, &[0, 1]).is_err());
        assert!(Tally::new(3).add(&logits, &[0, 1]).is_err());
        assert!(Tally::new(2).finish().is_err());
        Ok(())
    }
}
