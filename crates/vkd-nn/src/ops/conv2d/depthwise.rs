//! Convolution with one filter per channel: vector loops over the channels of a pixel.

use super::cpu::{blocks, each};
use super::geometry::Geometry;
use crate::ops::Real;
use vkd_norm::lanes::vectorized;

/// Channels that one sum in registers covers.
const LANES: usize = 32;

/// `(C, taps)` to `(taps, C)` or back.
pub(super) fn transposed<T: Real>(xs: &[T], rows: usize) -> Vec<T> {
    let columns = xs.len() / rows;
    (0..xs.len()).map(|i| xs[i % rows * columns + i / rows]).collect()
}

/// Offsets of a window's pixels in the image and of their taps in `(taps, C)` filters.
#[inline(always)]
fn taps(g: &Geometry, y: usize, x: usize, offsets: &mut Vec<(usize, usize)>) {
    let ([height, width, c], w) = (g.input, &g.window);
    offsets.clear();
    for i in 0..w.kernel[0] {
        let Some(row) = w.pixel(0, y, i, height) else { continue };
        for j in 0..w.kernel[1] {
            if let Some(col) = w.pixel(1, x, j, width) {
                offsets.push(((row * width + col) * c, (i * w.kernel[1] + j) * c));
            }
        }
    }
}

/// `out[c] += sum of xs[c] * filters[c]` over the taps.
#[inline(always)]
fn pixel<T: Real>(xs: &[T], filters: &[T], offsets: &[(usize, usize)], out: &mut [T]) {
    let mut at = 0;
    while let Some(out) = out[at..].first_chunk_mut::<LANES>() {
        let mut sums = *out;
        for &(x, f) in offsets {
            let (Some(x), Some(f)) =
                (xs[x + at..].first_chunk::<LANES>(), filters[f + at..].first_chunk::<LANES>())
            else {
                continue;
            };
            for l in 0..LANES {
                sums[l] += x[l] * f[l];
            }
        }
        *out = sums;
        at += LANES;
    }
    let rest = &mut out[at..];
    for &(x, f) in offsets {
        let (xs, filters) = (&xs[x + at..], &filters[f + at..]);
        for ((o, x), f) in rest.iter_mut().zip(xs).zip(filters) {
            *o += *x * *f;
        }
    }
}

/// Adds the convolution to `out`.
pub(super) fn forward<T: Real>(g: &Geometry, xs: &[T], packed: &[T], out: &mut [T]) {
    let ([_, cols, c], filters) = (g.output, transposed(packed, g.input[2]));
    each(g.multiplications(), blocks(g, g.rows_of(512), out), |block| {
        let image = &xs[block.image * g.input_len()..][..g.input_len()];
        let mut offsets = vec![];
        vectorized(
            #[inline(always)]
            || {
                for (at, out) in block.out.chunks_exact_mut(c).enumerate() {
                    taps(g, block.first + at / cols, at % cols, &mut offsets);
                    pixel(image, &filters, &offsets, out);
                }
            },
        );
    });
}

/// Adds the adjoint of [`forward`] to `out`, image by image.
pub(super) fn scatter<T: Real>(g: &Geometry, grad: &[T], packed: &[T], out: &mut [T]) {
    let ([_, cols, c], filters) = (g.output, transposed(packed, g.input[2]));
    if grad.is_empty() || out.is_empty() {
        return;
    }
    let tasks = out.chunks_mut(g.input_len()).zip(grad.chunks(g.output_len())).collect();
    each(g.multiplications(), tasks, |(out, grad)| {
        let mut offsets = vec![];
        vectorized(
            #[inline(always)]
            || {
                for (at, grad) in grad.chunks_exact(c).enumerate() {
                    taps(g, at / cols, at % cols, &mut offsets);
                    for &(x, f) in &offsets {
                        let (out, filters) = (&mut out[x..x + c], &filters[f..f + c]);
                        for ((o, g), f) in out.iter_mut().zip(grad).zip(filters) {
                            *o += *g * *f;
                        }
                    }
                }
            },
        );
    });
}

/// Adds the filter gradient, `(taps, C)`, of the blocks `(image, first row, rows)` to `part`.
pub(super) fn weight_grad<T: Real>(
    g: &Geometry,
    xs: &[T],
    grad: &[T],
    units: &[(usize, usize, usize)],
    part: &mut [T],
) {
    let (row_len, c) = (g.output[1] * g.output[2], g.output[2]);
    for &(image, first, rows) in units {
        let xs = &xs[image * g.input_len()..][..g.input_len()];
        let grad = &grad[image * g.output_len() + first * row_len..][..rows * row_len];
        vectorized(
            #[inline(always)]
            || {
                for (y, grad) in grad.chunks_exact(row_len).enumerate() {
                    row_grad(g, xs, grad, first + y, c, part);
                }
            },
        );
    }
}

/// The part of one result row; sums along the row stay in registers.
#[inline(always)]
fn row_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T], y: usize, c: usize, part: &mut [T]) {
    let ([height, width, _], w) = (g.input, &g.window);
    let mut at = 0;
    while at < c {
        let lanes = LANES.min(c - at);
        for i in 0..w.kernel[0] {
            let Some(row) = w.pixel(0, y, i, height) else { continue };
            let xs = &xs[row * width * c..][..width * c];
            for j in 0..w.kernel[1] {
                let mut sums = [T::zero(); LANES];
                for x in 0..g.output[1] {
                    let Some(col) = w.pixel(1, x, j, width) else { continue };
                    let (xs, grad) = (&xs[col * c + at..], &grad[x * c + at..]);
                    match (xs.first_chunk::<LANES>(), grad.first_chunk::<LANES>()) {
                        // What lies beyond the last channel is summed too and dropped.
                        (Some(x), Some(d)) => {
                            for l in 0..LANES {
                                sums[l] += x[l] * d[l];
                            }
                        }
                        _ => {
                            for ((s, x), d) in sums[..lanes].iter_mut().zip(xs).zip(grad) {
                                *s += *x * *d;
                            }
                        }
                    }
                }
                let part = &mut part[(i * w.kernel[1] + j) * c + at..][..lanes];
                part.iter_mut().zip(&sums).for_each(|(p, s)| *p += *s);
            }
        }
        at += LANES;
    }
}
