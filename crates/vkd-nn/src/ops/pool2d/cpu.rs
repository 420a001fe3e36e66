//! Pools and their adjoints on slices: loops over the channels of a pixel.

use crate::ops::window::Window;
use crate::ops::{PARALLEL_FROM, Real};
use rayon::prelude::*;
use vkd_norm::lanes::vectorized;

/// Sizes of a pool over channels-last images.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) batch: usize,
    /// Rows, columns and channels of an image.
    pub(super) input: [usize; 3],
    /// Rows and columns of a result.
    pub(super) output: [usize; 2],
    pub(super) window: Window,
    /// Whether an average counts the padding.
    pub(super) count_padding: bool,
}

impl Geometry {
    fn input_len(&self) -> usize {
        self.input.iter().product()
    }

    fn output_len(&self) -> usize {
        self.output[0] * self.output[1] * self.input[2]
    }

    /// First pixel and end of a window along an axis, inside the image.
    #[inline(always)]
    fn inside(&self, axis: usize, window: usize) -> (usize, usize) {
        let (w, start) = (&self.window, window * self.window.stride[axis]);
        let end = (start + w.kernel[axis]).saturating_sub(w.padding[axis]);
        (start.saturating_sub(w.padding[axis]), end.min(self.input[axis]))
    }

    /// Pixels that an average along an axis counts: with the padding, but never what lies beyond it.
    fn counted(&self, axis: usize, window: usize) -> usize {
        let (w, start) = (&self.window, window * self.window.stride[axis]);
        if self.count_padding {
            w.kernel[axis].min(self.input[axis] + 2 * w.padding[axis] - start)
        } else {
            let (first, end) = self.inside(axis, window);
            end - first
        }
    }

    /// What an average multiplies its sum by.
    fn share<T: Real>(&self, y: usize, x: usize) -> T {
        let count = self.counted(0, y) * self.counted(1, x);
        T::from_f64(1. / count as f64)
    }

    /// Calls `visit(offset of the pixel)` for the pixels of a window in row order.
    #[inline(always)]
    fn pixels(&self, y: usize, x: usize, mut visit: impl FnMut(usize)) {
        let (rows, cols) = (self.inside(0, y), self.inside(1, x));
        for row in rows.0..rows.1 {
            for col in cols.0..cols.1 {
                visit((row * self.input[1] + col) * self.input[2]);
            }
        }
    }

    /// Calls `pool(y, x, image, out)` for every pixel of the result.
    fn forward<T: Real>(
        &self,
        xs: &[T],
        start: T,
        pool: impl Fn(usize, usize, &[T], &mut [T]) + Send + Sync,
    ) -> Vec<T> {
        let ([rows, cols], c) = (self.output, self.input[2]);
        let mut out = vec![start; self.batch * self.output_len()];
        if out.is_empty() {
            return out;
        }
        let row = |(at, out): (usize, &mut [T])| {
            let image = &xs[at / rows * self.input_len()..][..self.input_len()];
            vectorized(
                #[inline(always)]
                || {
                    for (x, out) in out.chunks_exact_mut(c).enumerate() {
                        pool(at % rows, x, image, out);
                    }
                },
            );
        };
        if xs.len() < PARALLEL_FROM {
            out.chunks_mut(cols * c).enumerate().for_each(row);
        } else {
            out.par_chunks_mut(cols * c).enumerate().for_each(row);
        }
        out
    }

    /// Calls `spread(y, x, image index, gradient's offset, gradient of the image)` for every pixel of the result.
    fn backward<T: Real>(
        &self,
        spread: impl Fn(usize, usize, usize, usize, &mut [T]) + Send + Sync,
    ) -> Vec<T> {
        let ([rows, cols], c) = (self.output, self.input[2]);
        let mut out = vec![T::zero(); self.batch * self.input_len()];
        if out.is_empty() {
            return out;
        }
        let image = |(image, out): (usize, &mut [T])| {
            vectorized(
                #[inline(always)]
                || {
                    for y in 0..rows {
                        for x in 0..cols {
                            let at = ((image * rows + y) * cols + x) * c;
                            spread(y, x, image, at, out);
                        }
                    }
                },
            );
        };
        if out.len() < PARALLEL_FROM {
            out.chunks_mut(self.input_len()).enumerate().for_each(image);
        } else {
            out.par_chunks_mut(self.input_len()).enumerate().for_each(image);
        }
        out
    }
}

pub(super) fn max<T: Real>(g: &Geometry, xs: &[T]) -> Vec<T> {
    g.forward(
        xs,
        T::neg_infinity(),
        #[inline(always)]
        |y, x, image, out| {
            g.pixels(
                y,
                x,
                #[inline(always)]
                |at| {
                    for (o, x) in out.iter_mut().zip(&image[at..]) {
                        // The comparison is false for a NaN in `o`, which therefore stays.
                        *o = if *x > *o || x.is_nan() { *x } else { *o };
                    }
                },
            );
        },
    )
}

/// Each maximum's gradient goes to the first pixel that holds it.
pub(super) fn max_grad<T: Real>(g: &Geometry, xs: &[T], ys: &[T], grad: &[T]) -> Vec<T> {
    let c = g.input[2];
    g.backward(
        #[inline(always)]
        |y, x, image, at, out| {
            let xs = &xs[image * g.input_len()..][..g.input_len()];
            const LANES: usize = 16;
            // The rest of each gradient that has not found its pixel yet.
            let mut first = 0;
            while first < c {
                let lanes = LANES.min(c - first);
                let (mut left, mut best) = ([T::zero(); LANES], [T::zero(); LANES]);
                left[..lanes].copy_from_slice(&grad[at + first..][..lanes]);
                best[..lanes].copy_from_slice(&ys[at + first..][..lanes]);
                g.pixels(
                    y,
                    x,
                    #[inline(always)]
                    |pixel| {
                        let (xs, out) = (&xs[pixel + first..], &mut out[pixel + first..]);
                        match (xs.first_chunk::<LANES>(), out.first_chunk_mut::<LANES>()) {
                            (Some(xs), Some(out)) if lanes == LANES => {
                                for l in 0..LANES {
                                    give(xs[l], best[l], &mut left[l], &mut out[l]);
                                }
                            }
                            _ => {
                                for l in 0..lanes {
                                    give(xs[l], best[l], &mut left[l], &mut out[l]);
                                }
                            }
                        }
                    },
                );
                first += LANES;
            }
        },
    )
}

/// Gives `left` away if `x` is the maximum.
#[inline(always)]
fn give<T: Real>(x: T, best: T, left: &mut T, out: &mut T) {
    let found = (x == best) | (x.is_nan() & best.is_nan());
    *out += if found { *left } else { T::zero() };
    *left = if found { T::zero() } else { *left };
}

pub(super) fn average<T: Real>(g: &Geometry, xs: &[T]) -> Vec<T> {
    g.forward(
        xs,
        T::zero(),
        #[inline(always)]
        |y, x, image, out| {
            g.pixels(
                y,
                x,
                #[inline(always)]
                |at| out.iter_mut().zip(&image[at..]).for_each(|(o, x)| *o += *x),
            );
            let share = g.share::<T>(y, x);
            out.iter_mut().for_each(|o| *o *= share);
        },
    )
}

pub(super) fn average_grad<T: Real>(g: &Geometry, grad: &[T]) -> Vec<T> {
    let c = g.input[2];
    g.backward(
        #[inline(always)]
        |y, x, _, at, out| {
            let (share, grad) = (g.share::<T>(y, x), &grad[at..at + c]);
            g.pixels(
                y,
                x,
                #[inline(always)]
                |pixel| {
                    let out = &mut out[pixel..pixel + c];
                    out.iter_mut().zip(grad).for_each(|(o, d)| *o += *d * share);
                },
            );
        },
    )
}
