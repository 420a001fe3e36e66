//! Bias and its gradient on slices.

use crate::ops::{Real, for_chunks};

/// Rows in one block of a column sum: short sums first, then the sum of the sums, which keeps the rounding small.
const BLOCK: usize = 64;

pub(super) fn add_bias<T: Real>(xs: &[T], bias: &[T]) -> Vec<T> {
    let mut out = xs.to_vec();
    for_chunks(&mut out, bias.len() * BLOCK, |_, rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            for (x, b) in row.iter_mut().zip(bias) {
                *x += *b;
            }
        }
    });
    out
}

pub(super) fn column_sums<T: Real>(xs: &[T], width: usize) -> Vec<T> {
    let mut sums = vec![T::zero(); width];
    let mut block = sums.clone();
    for rows in xs.chunks((width * BLOCK).max(1)) {
        block.fill(T::zero());
        for row in rows.chunks_exact(width) {
            for (b, x) in block.iter_mut().zip(row) {
                *b += *x;
            }
        }
        for (s, b) in sums.iter_mut().zip(&block) {
            *s += *b;
        }
    }
    sums
}
