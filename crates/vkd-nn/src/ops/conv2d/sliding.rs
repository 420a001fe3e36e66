//! Convolution of stride one without gathering.
//!
//! In a padded channels-last image the windows of one kernel row are `kw * C` consecutive values, each window `C` after the
//! one before: a matrix whose rows overlap. One product per kernel row reads it in place, across the ends of the image's
//! rows as well; the few windows that straddle an end are computed and dropped.

use super::cpu::{blocks, each};
use super::geometry::Geometry;
use crate::ops::{Real, gemm};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Pixels of one block: the operands of its products stay in the second-level cache.
pub(super) const PIXELS: usize = 448;

/// Columns of the padded image.
fn pitch(g: &Geometry) -> usize {
    g.input[1] + 2 * g.window.padding[1]
}

/// The padded rows that the windows of `rows` result rows from `first` on see.
fn pad<T: Real>(g: &Geometry, xs: &[T], image: usize, first: usize, rows: usize) -> Vec<T> {
    let ([height, width, c], w) = (g.input, &g.window);
    let (left, row_len) = (w.padding[1] * c, pitch(g) * c);
    let xs = &xs[image * g.input_len()..][..g.input_len()];
    let mut padded = vec![T::zero(); (rows + w.kernel[0] - 1) * row_len];
    for (r, row) in padded.chunks_exact_mut(row_len).enumerate() {
        if let Some(y) = w.pixel(0, first + r, 0, height) {
            row[left..left + width * c].copy_from_slice(&xs[y * width * c..][..width * c]);
        }
    }
    padded
}

/// Adds bias and convolution to the zeros of `out`.
pub(super) fn forward<T: Real>(
    g: &Geometry,
    xs: &[T],
    packed: &[T],
    bias: Option<&[T]>,
    out: &mut [T],
) {
    let ([_, _, c], [_, cols, o], [kh, kw]) = (g.input, g.output, g.window.kernel);
    let (pitch, depth) = (pitch(g), kw * c);
    each(g.multiplications(), blocks(g, g.rows_of(PIXELS), out), |mut block| {
        block.start(bias);
        let padded = pad(g, xs, block.image, block.first, block.rows);
        let pixels = (block.rows - 1) * pitch + cols;
        let mut sums = vec![T::zero(); pixels * o];
        for i in 0..kh {
            let windows = MatRef::from_row_major_slice_with_stride(
                &padded[i * pitch * c..],
                pixels,
                depth,
                c,
            );
            let filters = MatRef::from_row_major_slice_with_stride(
                &packed[i * depth..],
                o,
                depth,
                kh * depth,
            );
            let sums = MatMut::from_row_major_slice_mut(&mut sums, pixels, o);
            let accum = if i == 0 { Accum::Replace } else { Accum::Add };
            matmul(sums, accum, windows, filters.transpose(), T::one(), Par::Seq);
        }
        for (out, sums) in block.out.chunks_exact_mut(cols * o).zip(sums.chunks(pitch * o)) {
            out.iter_mut().zip(sums).for_each(|(o, s)| *o += *s);
        }
    });
}

/// Adds the filter gradient of the blocks `(image, first row, rows)` to `part`.
pub(super) fn weight_grad<T: Real>(
    g: &Geometry,
    xs: &[T],
    grad: &[T],
    units: &[(usize, usize, usize)],
    part: &mut [T],
    par: Par,
) {
    let ([_, _, c], [_, cols, o], [kh, kw]) = (g.input, g.output, g.window.kernel);
    let (pitch, depth) = (pitch(g), kw * c);
    for &(image, first, rows) in units {
        let padded = pad(g, xs, image, first, rows);
        let pixels = (rows - 1) * pitch + cols;
        // Zeros where a window straddles an end: it adds nothing.
        let mut spread = vec![T::zero(); pixels * o];
        let grad = &grad[image * g.output_len() + first * cols * o..][..rows * cols * o];
        for (to, from) in spread.chunks_mut(pitch * o).zip(grad.chunks_exact(cols * o)) {
            to[..cols * o].copy_from_slice(from);
        }
        for i in 0..kh {
            let windows = MatRef::from_row_major_slice_with_stride(
                &padded[i * pitch * c..],
                pixels,
                depth,
                c,
            );
            let spread = MatRef::from_row_major_slice(&spread, pixels, o);
            let part = gemm::rows_mut(&mut part[i * depth..], o, depth, kh * depth);
            matmul(part, Accum::Add, spread.transpose(), windows, T::one(), par);
        }
    }
}
