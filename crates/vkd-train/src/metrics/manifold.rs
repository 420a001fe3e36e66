//! Precision, recall, density and coverage: how two sets of features lie among each other's neighbourhoods.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;
use serde::Serialize;
use std::fmt;
use vkd_norm::lanes::vectorized;

const OP: &str = "manifold";

/// Rows whose distances are taken together, so that the others are read from memory once for all of them.
const BLOCK: usize = 16;

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
    let (n, m) = (real_radii.len(), generated_radii.len());
    let none = || Tally { inside: 0, holding: 0, balls: vec![0; m] };
    let block = |mut tally: Tally, (block, rows): (usize, &[f64])| {
        let distances = generated.distances_to(rows);
        for (distances, own) in distances.chunks_exact(m).zip(&real_radii[block * BLOCK..]) {
            let (mut inside, mut holds) = (false, false);
            let generated = distances.iter().zip(&generated_radii).zip(&mut tally.balls);
            for ((distance, radius), balls) in generated {
                inside |= distance < radius;
                holds |= distance < own;
                *balls += u64::from(distance < own);
            }
            tally.inside += u64::from(inside);
            tally.holding += u64::from(holds);
        }
        tally
    };
    let sum = |mut a: Tally, b: Tally| {
        a.inside += b.inside;
        a.holding += b.holding;
        a.balls.iter_mut().zip(b.balls).for_each(|(a, b)| *a += b);
        a
    };
    // Whole numbers: the sum is the same in any order.
    let Tally { inside, holding, balls } = real.blocks().fold(none, block).reduce(none, sum);
    let share = |hits: u64, of: usize| hits as f64 / of as f64;
    Ok(ManifoldScores {
        precision: share(balls.iter().filter(|b| **b > 0).count() as u64, m),
        recall: share(inside, n),
        density: share(balls.iter().sum(), k * m),
        coverage: share(holding, n),
    })
}

struct Tally {
    /// Real samples in a generated ball.
    inside: u64,
    /// Real balls with a generated sample in them.
    holding: u64,
    /// Of each generated sample: how many real balls it lies in.
    balls: Vec<u64>,
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

    fn blocks(&self) -> impl IndexedParallelIterator<Item = (usize, &[f64])> {
        self.values.par_chunks(self.width * BLOCK).enumerate()
    }

    /// Squared distances of a block of rows to all rows: those of the first row, then those of the next.
    fn distances_to(&self, block: &[f64]) -> Vec<f64> {
        let (width, count) = (self.width, self.values.len() / self.width);
        let mut distances = vec![0.; block.len() / width * count];
        vectorized(
            #[inline(always)]
            || {
                for (j, other) in self.values.chunks_exact(width).enumerate() {
                    for (i, row) in block.chunks_exact(width).enumerate() {
                        distances[i * count + j] = squared(row, other);
                    }
                }
            },
        );
        distances
    }

    /// Squared distances to the k-th other row; there are more than `k` rows.
    fn squared_radii(&self, k: usize) -> Vec<f64> {
        let count = self.values.len() / self.width;
        let radii = |(block, rows): (usize, &[f64])| {
            let mut distances = self.distances_to(rows);
            let own = distances.chunks_exact_mut(count).enumerate();
            own.map(|(i, distances)| {
                // A row is not its own neighbour, another that is equal to it is.
                distances[block * BLOCK + i] = f64::INFINITY;
                *distances.select_nth_unstable_by(k - 1, f64::total_cmp).1
            })
            .collect::<Vec<_>>()
        };
        self.blocks().flat_map_iter(radii).collect()
    }
}

/// Squared distance; the same bits both ways round.
#[inline(always)]
fn squared(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0f64; 8];
    let (mut left, mut right) = (a.chunks_exact(8), b.chunks_exact(8));
    for (a, b) in left.by_ref().zip(right.by_ref()) {
        for (lane, (x, y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += (x - y) * (x - y);
        }
    }
    let rest = left.remainder().iter().zip(right.remainder());
    lanes.iter().sum::<f64>() + rest.map(|(x, y)| (x - y) * (x - y)).sum::<f64>()
}
