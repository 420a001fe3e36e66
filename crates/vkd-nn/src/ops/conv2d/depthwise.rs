//! Convolution with one filter per channel: vector loops over the channels of a pixel.

use super::cpu::{blocks, each};
use super::geometry::Geometry;
use crate::ops::Real;
use vkd_norm::lanes::vectorized;

/// Channels and neighbouring pixels whose sums stay in registers together.
const LANES: usize = 16;
const PIXELS: usize = 4;

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

/// Adds the convolution to one pixel, from channel `at` on.
#[inline(always)]
fn pixel<T: Real>(xs: &[T], filters: &[T], offsets: &[(usize, usize)], at: usize, out: &mut [T]) {
    for &(x, f) in offsets {
        let (xs, filters) = (&xs[x + at..], &filters[f + at..]);
        for ((o, x), f) in out[at..].iter_mut().zip(xs).zip(filters) {
            *o += *x * *f;
        }
    }
}

/// What `PIXELS` neighbours have under one tap: whole blocks of channels of its filter and of each pixel.
struct Tap<'a, T> {
    filter: &'a [[T; LANES]],
    pixels: [&'a [[T; LANES]]; PIXELS],
}

impl<'a, T> Tap<'a, T> {
    /// From the places of the first pixel and of the filter; the next pixel lies `step` further.
    #[inline(always)]
    fn of(
        xs: &'a [T],
        filters: &'a [T],
        (x, f): (usize, usize),
        (c, step): (usize, usize),
    ) -> Self {
        let mut pixels = [&[] as &[[T; LANES]]; PIXELS];
        for (p, pixel) in pixels.iter_mut().enumerate() {
            *pixel = xs[x + p * step..][..c].as_chunks().0;
        }
        Self { filter: filters[f..][..c].as_chunks().0, pixels }
    }
}

/// Adds the convolution to `PIXELS` neighbours whose windows lie inside the image's columns, and returns the first channel
/// that is left.
#[inline(always)]
fn pixels<T: Real>(taps: &[Tap<'_, T>], c: usize, out: &mut [T]) -> usize {
    let blocks = c / LANES;
    for block in 0..blocks {
        let mut sums = [[T::zero(); LANES]; PIXELS];
        for tap in taps {
            // One by one, or the sums leave the registers.
            let [x0, x1, x2, x3] = &tap.pixels;
            let found = (x0.get(block), x1.get(block), x2.get(block), x3.get(block));
            let (Some(f), (Some(x0), Some(x1), Some(x2), Some(x3))) =
                (tap.filter.get(block), found)
            else {
                continue;
            };
            for l in 0..LANES {
                sums[0][l] += x0[l] * f[l];
            }
            for l in 0..LANES {
                sums[1][l] += x1[l] * f[l];
            }
            for l in 0..LANES {
                sums[2][l] += x2[l] * f[l];
            }
            for l in 0..LANES {
                sums[3][l] += x3[l] * f[l];
            }
        }
        for p in 0..PIXELS {
            // As an array, or the stores go one by one.
            if let Some(out) = out[p * c + block * LANES..].first_chunk_mut::<LANES>() {
                for l in 0..LANES {
                    out[l] += sums[p][l];
                }
            }
        }
    }
    blocks * LANES
}

/// The columns of a result whose windows lie inside the image's columns.
fn inner(g: &Geometry) -> (usize, usize) {
    let (w, width) = (&g.window, g.input[1]);
    let first = w.padding[1].div_ceil(w.stride[1]);
    let reach = (w.kernel[1] - 1) * w.dilation[1];
    let end = match (width + w.padding[1]).checked_sub(reach + 1) {
        Some(last) => last / w.stride[1] + 1,
        None => 0,
    };
    (first, end.min(g.output[1]))
}

/// Adds bias and convolution to the zeros of `out`.
pub(super) fn forward<T: Real>(
    g: &Geometry,
    xs: &[T],
    packed: &[T],
    bias: Option<&[T]>,
    out: &mut [T],
) {
    let ([_, cols, c], filters) = (g.output, transposed(packed, g.input[2]));
    let ((first, end), step) = (inner(g), g.window.stride[1] * c);
    each(g.multiplications(), blocks(g, g.rows_of(512), out), |mut block| {
        block.start(bias);
        let image = &xs[block.image * g.input_len()..][..g.input_len()];
        let (mut offsets, mut shared) = (vec![], vec![]);
        vectorized(
            #[inline(always)]
            || {
                for (y, row) in block.out.chunks_exact_mut(cols * c).enumerate() {
                    let mut x = 0;
                    while x < cols {
                        taps(g, block.first + y, x, &mut offsets);
                        let many = first <= x && x + PIXELS <= end;
                        let count = if many { PIXELS } else { 1 };
                        let out = &mut row[x * c..(x + count) * c];
                        let mut at = 0;
                        if many {
                            shared.clear();
                            for &tap in &offsets {
                                shared.push(Tap::of(image, &filters, tap, (c, step)));
                            }
                            at = pixels(&shared, c, out);
                        }
                        for (p, out) in out.chunks_exact_mut(c).enumerate() {
                            if at < c {
                                pixel(&image[p * step..], &filters, &offsets, at, out);
                            }
                        }
                        x += count;
                    }
                }
            },
        );
    });
}

/// Adds the adjoint of the convolution to `out`, image by image.
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

/// Taps of a kernel row whose sums stay in registers together.
const TAPS: usize = 3;

/// The part of one result row; sums along the row stay in registers.
#[inline(always)]
fn row_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T], y: usize, c: usize, part: &mut [T]) {
    let ([height, width, _], w) = (g.input, &g.window);
    let (kw, cols) = (w.kernel[1], g.output[1]);
    let (first, end) = inner(g);
    // Where a block of channels is whole, the windows of these columns have all their taps in the image.
    let (first, end) = if first < end { (first, end) } else { (cols, cols) };
    let mut at = 0;
    while at < c {
        let lanes = LANES.min(c - at);
        for i in 0..w.kernel[0] {
            let Some(row) = w.pixel(0, y, i, height) else { continue };
            let xs = &xs[row * width * c..][..width * c];
            for j in (0..kw).step_by(TAPS) {
                let taps = TAPS.min(kw - j);
                let mut sums = [[T::zero(); LANES]; TAPS];
                if lanes == LANES && taps == TAPS {
                    // Three of their own, or they leave the registers.
                    let (mut s0, mut s1, mut s2) =
                        ([T::zero(); LANES], [T::zero(); LANES], [T::zero(); LANES]);
                    for x in first..end {
                        let start = x * w.stride[1] + j * w.dilation[1] - w.padding[1];
                        let (from, step) = (start * c + at, w.dilation[1] * c);
                        let (Some(d), Some(x0), Some(x1), Some(x2)) = (
                            grad[x * c + at..].first_chunk::<LANES>(),
                            xs[from..].first_chunk::<LANES>(),
                            xs[from + step..].first_chunk::<LANES>(),
                            xs[from + 2 * step..].first_chunk::<LANES>(),
                        ) else {
                            continue;
                        };
                        for l in 0..LANES {
                            s0[l] += x0[l] * d[l];
                        }
                        for l in 0..LANES {
                            s1[l] += x1[l] * d[l];
                        }
                        for l in 0..LANES {
                            s2[l] += x2[l] * d[l];
                        }
                    }
                    sums = [s0, s1, s2];
                }
                let whole = lanes == LANES && taps == TAPS;
                let outer = if whole { 0..first } else { 0..cols };
                for x in outer.chain(if whole { end..cols } else { 0..0 }) {
                    for (t, sums) in sums.iter_mut().enumerate().take(taps) {
                        let Some(col) = w.pixel(1, x, j + t, width) else { continue };
                        let (xs, grad) = (&xs[col * c + at..], &grad[x * c + at..]);
                        for ((s, x), d) in sums[..lanes].iter_mut().zip(xs).zip(grad) {
                            *s += *x * *d;
                        }
                    }
                }
                for (t, sums) in sums.iter().enumerate().take(taps) {
                    let part = &mut part[(i * kw + j + t) * c + at..][..lanes];
                    part.iter_mut().zip(sums).for_each(|(p, s)| *p += *s);
                }
            }
        }
        at += LANES;
    }
}
