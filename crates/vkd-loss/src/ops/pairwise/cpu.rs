//! Kernels over all pairs of rows, all arithmetic in f64.

use crate::dense::Real;

/// Distances between all pairs of `rows` rows.
pub(super) fn forward<T: Real>(xs: &[T], rows: usize, channels: usize) -> Vec<T> {
    let row = |i: usize| &xs[i * channels..][..channels];
    let mut distances = vec![T::zero(); rows * rows];
    for i in 0..rows {
        for j in 0..i {
            let squares = row(i).iter().zip(row(j)).map(|(a, b)| (a.wide() - b.wide()).powi(2));
            let d = T::narrow(squares.sum::<f64>().sqrt());
            distances[i * rows + j] = d;
            distances[j * rows + i] = d;
        }
    }
    distances
}

/// `Σ_j (g_ij + g_ji) (x_i − x_j) / d_ij`, where rows that coincide pull in no direction.
pub(super) fn backward<T: Real>(
    xs: &[T],
    distances: &[T],
    grad: &[T],
    rows: usize,
    channels: usize,
) -> Vec<T> {
    let row = |i: usize| &xs[i * channels..][..channels];
    let mut dxs = Vec::with_capacity(xs.len());
    let mut sum = vec![0f64; channels];
    for i in 0..rows {
        sum.fill(0.);
        for j in (0..rows).filter(|j| *j != i) {
            let (at, mirrored) = (i * rows + j, j * rows + i);
            let distance = distances[at].wide();
            if distance == 0. {
                continue;
            }
            let pull = (grad[at].wide() + grad[mirrored].wide()) / distance;
            for (sum, (a, b)) in sum.iter_mut().zip(row(i).iter().zip(row(j))) {
                *sum += pull * (a.wide() - b.wide());
            }
        }
        dxs.extend(sum.iter().map(|x| T::narrow(*x)));
    }
    dxs
}
