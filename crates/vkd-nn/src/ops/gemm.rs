//! Matrix products on slices, through faer.
//!
//! faer's kernels use AVX-512 where the machine has it, candle's stop at AVX2;
//! one small product (a head of attention) runs at a whole core's speed on the calling thread.

use crate::ops::Real;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// From this many multiplications on a product is shared among threads.
const PARALLEL_FROM: usize = 2_000_000;

/// `out = lhs * rhs`. Rows are shared among threads once the product is large, which moves no bit: no sum is split.
pub(crate) fn product<T: Real>(out: MatMut<'_, T>, lhs: MatRef<'_, T>, rhs: MatRef<'_, T>) {
    let par = par(lhs.nrows(), lhs.ncols(), rhs.ncols());
    matmul(out, Accum::Replace, lhs, rhs, T::one(), par);
}

/// `out += alpha * lhs * rhs`.
pub(crate) fn add_product<T: Real>(
    out: MatMut<'_, T>,
    alpha: T,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
) {
    let par = par(lhs.nrows(), lhs.ncols(), rhs.ncols());
    matmul(out, Accum::Add, lhs, rhs, alpha, par);
}

/// `out = lhs * rhs` on the calling thread, for many small products side by side.
pub(crate) fn product_here<T: Real>(out: MatMut<'_, T>, lhs: MatRef<'_, T>, rhs: MatRef<'_, T>) {
    matmul(out, Accum::Replace, lhs, rhs, T::one(), Par::Seq);
}

/// A matrix whose rows start `stride` values apart. faer's own `from_row_major_slice_with_stride_mut` exchanges the strides
/// (0.24.4) and so writes beyond the slice.
pub(crate) fn rows_mut<T>(
    values: &mut [T],
    rows: usize,
    columns: usize,
    stride: usize,
) -> MatMut<'_, T> {
    MatMut::from_column_major_slice_with_stride_mut(values, columns, rows, stride).transpose_mut()
}

/// `out += lhs * rhs` on the calling thread.
pub(crate) fn add_product_here<T: Real>(
    out: MatMut<'_, T>,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
) {
    matmul(out, Accum::Add, lhs, rhs, T::one(), Par::Seq);
}

fn par(rows: usize, inner: usize, columns: usize) -> Par {
    if rows * inner * columns < PARALLEL_FROM { Par::Seq } else { Par::rayon(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_what_they_are_called() {
        let (a, b) = ([1f32, 2., 3., 4., 5., 6.], [1f32, 0., 2., 0., 1., 3.]);
        let (lhs, rhs) =
            (MatRef::from_row_major_slice(&a, 2, 3), MatRef::from_row_major_slice(&b, 3, 2));
        let mut out = [0f32; 4];
        product(MatMut::from_row_major_slice_mut(&mut out, 2, 2), lhs, rhs);
        assert_eq!(out, [8., 9., 20., 18.]);
        let mut wide = [0f32; 6];
        product_here(rows_mut(&mut wide[1..], 2, 2, 3), lhs, rhs);
        assert_eq!(wide, [0., 8., 9., 0., 20., 18.]);
    }
}
