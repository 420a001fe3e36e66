//! Precision, recall, density and coverage: how two sets of features lie among each other's neighbourhoods.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;
use serde::Serialize;
use std::fmt;

const OP: &str = "manifold";

/// How much of each set lies in the balls of the other; a ball reaches from a sample to its k-th neighbour in its own set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ManifoldScores {
    /// Share of generated samples in a real ball: fidelity.
    pub precision: f64,
    /// Share of real samples in a generated ball: diversity.
    pub recall: f64,
    /// Real balls around a generated sample, over k, on average: fidelity that outliers cannot lift; may be above one.
    pub density: f64,
    /// Share of real balls with a generated sample in them: diversity that outliers cannot lift.
    pub coverage: f64,
}

impl fmt::Display for ManifoldScores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { precision, recall, density, coverage } = self;
        write!(
            f,
            "precision {precision:.3}, recall {recall:.3}, density {density:.3}, coverage {coverage:.3}"
        )
    }
}

/// [`ManifoldScores`] with balls to the `k`-th neighbour; the publications use 3 to 5.
///
/// # Shapes
/// - `real`: `(N, d)`, `generated`: `(M, d)`, any float dtype
///
/// # Numerics
/// Distances are sums of squared differences in f64, not differences of inner products, so that equal ones are equal: a point on a
/// ball's border lies outside. Nothing of size N × M is held; time grows with `(N + M)² d`.
///
/// # Errors
/// Another rank or width, a `k` of zero, `k` samples or fewer on a side, or a value that is not finite.
///
/// # References
/// Kynkäänniemi et al., arXiv:1904.06991 (precision, recall); Naeem et al., arXiv:2002.09797 (density, coverage).
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use vkd_train::metrics::manifold_scores;
///
/// let real = Tensor::new(&[[0f32], [1.], [10.], [11.]], &Device::Cpu)?;
/// let half = Tensor::new(&[[0.1f32], [0.9], [0.4]], &Device::Cpu)?;
/// let scores = manifold_scores(&real, &half, 1)?;
/// assert_eq!((scores.precision, scores.coverage), (1., 0.5));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn manifold_scores(real: &Tensor, generated: &Tensor, k: usize) -> Result<ManifoldScores> {
    let (real, generated) = (Rows::new(real, "real", k)?, Rows::new(generated, "generated", k)?);
    if real.width != generated.width {
        bail!("{OP}: expected features of one width, got {} and {}", real.width, generated.width)
    }
    let (real_radii, generated_radii) = (real.squared_radii(k), generated.squared_radii(k));
    // Of each generated sample: how many real balls it lies in.
    let within: Vec<usize> = generated
        .par_rows()
        .map(|row| {
            real.rows().zip(&real_radii).filter(|(r, radius)| squared(r, row) < **radius).count()
        })
        .collect();
    // Of each real sample: whether it lies in a generated ball, and whether its own ball holds a generated sample.
    let around: Vec<(bool, bool)> = real
        .par_rows()
        .zip(&real_radii)
        .map(|(row, own)| {
            let (mut inside, mut holds) = (false, false);
            for (g, radius) in generated.rows().zip(&generated_radii) {
                let distance = squared(row, g);
                inside |= distance < *radius;
                holds |= distance < *own;
            }
            (inside, holds)
        })
        .collect();
    let share = |hits: usize, of: usize| hits as f64 / of as f64;
    let (n, m) = (around.len(), within.len());
    Ok(ManifoldScores {
        precision: share(within.iter().filter(|c| **c > 0).count(), m),
        recall: share(around.iter().filter(|a| a.0).count(), n),
        density: share(within.iter().sum(), k * m),
        coverage: share(around.iter().filter(|a| a.1).count(), n),
    })
}

/// Distance of each row of `(N, d)` to its `k`-th nearest other row.
///
/// # Errors
/// Those of [`manifold_scores`].
pub fn neighbour_radii(rows: &Tensor, k: usize) -> Result<Vec<f64>> {
    let rows = Rows::new(rows, "", k)?;
    Ok(rows.squared_radii(k).into_iter().map(f64::sqrt).collect())
}

struct Rows {
    values: Vec<f64>,
    width: usize,
}

impl Rows {
    fn new(rows: &Tensor, side: &str, k: usize) -> Result<Self> {
        let (count, width) = match *rows.dims() {
            [count, width] if width > 0 => (count, width),
            ref dims => bail!("{OP}: expected features (N, d), got {dims:?}"),
        };
        if k == 0 || count <= k {
            let needed = k.saturating_add(1);
            bail!(
                "{OP}: expected a k of at least 1 and at least {needed} {side} samples for the {k}-th neighbour, got {count}"
            )
        }
        let values = rows.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            bail!("{OP}: expected finite {side} features, got {} in row {}", values[at], at / width)
        }
        Ok(Self { values, width })
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.width)
    }

    fn par_rows(&self) -> impl IndexedParallelIterator<Item = &[f64]> {
        self.values.par_chunks_exact(self.width)
    }

    /// Squared distances to the k-th other row; there are more than `k` rows.
    fn squared_radii(&self, k: usize) -> Vec<f64> {
        let radius = |(i, row): (usize, &[f64])| {
            let others = self.rows().enumerate().filter(|(j, _)| *j != i);
            let mut distances: Vec<f64> = others.map(|(_, other)| squared(row, other)).collect();
            *distances.select_nth_unstable_by(k - 1, f64::total_cmp).1
        };
        self.par_rows().enumerate().map(radius).collect()
    }
}

/// Squared distance; the same bits both ways round.
fn squared(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0f64; 8];
    let (a, b) = (a.chunks(8), b.chunks(8));
    for (a, b) in a.zip(b) {
        for (lane, (x, y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += (x - y) * (x - y);
        }
    }
    lanes.iter().sum()
}
