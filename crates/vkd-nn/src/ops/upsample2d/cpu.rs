//! Resampling and its adjoint on slices.

use crate::ops::{PARALLEL_FROM, Real};
use rayon::prelude::*;
use vkd_norm::lanes::vectorized;

/// The two pixels that a result's position lies between, and the share of the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tap {
    pub(super) low: usize,
    pub(super) high: usize,
    pub(super) share: f64,
}

/// Sizes of a resampling; one tap for each row and each column of the result.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub(super) batch: usize,
    /// Rows, columns and channels of an image.
    pub(super) input: [usize; 3],
    pub(super) rows: Vec<Tap>,
    pub(super) cols: Vec<Tap>,
}

impl Geometry {
    fn input_len(&self) -> usize {
        self.input.iter().product()
    }

    /// Calls `visit(offset of a pixel, weight)` for the pixels that a result is made of; none has the weight zero, so an
    /// infinite pixel stays alone.
    #[inline(always)]
    fn pixels<T: Real>(&self, y: Tap, x: Tap, mut visit: impl FnMut(usize, T)) {
        for (row, wy) in [(y.low, 1. - y.share), (y.high, y.share)] {
            for (col, wx) in [(x.low, 1. - x.share), (x.high, x.share)] {
                if wy * wx != 0. {
                    visit((row * self.input[1] + col) * self.input[2], T::from_f64(wy * wx));
                }
            }
        }
    }
}

pub(super) fn resample<T: Real>(g: &Geometry, xs: &[T]) -> Vec<T> {
    let (rows, cols, c) = (g.rows.len(), g.cols.len(), g.input[2]);
    let mut out = vec![T::zero(); g.batch * rows * cols * c];
    if out.is_empty() {
        return out;
    }
    let row = |(at, out): (usize, &mut [T])| {
        let image = &xs[at / rows * g.input_len()..][..g.input_len()];
        vectorized(
            #[inline(always)]
            || {
                for (x, out) in g.cols.iter().zip(out.chunks_exact_mut(c)) {
                    g.pixels(
                        g.rows[at % rows],
                        *x,
                        #[inline(always)]
                        |from, weight: T| {
                            let pixel = &image[from..from + c];
                            out.iter_mut().zip(pixel).for_each(|(o, p)| *o += *p * weight);
                        },
                    );
                }
            },
        );
    };
    if out.len() < PARALLEL_FROM {
        out.chunks_mut(cols * c).enumerate().for_each(row);
    } else {
        out.par_chunks_mut(cols * c).enumerate().for_each(row);
    }
    out
}

/// Adjoint of [`resample`], image by image.
pub(super) fn adjoint<T: Real>(g: &Geometry, grad: &[T]) -> Vec<T> {
    let (rows, cols, c) = (g.rows.len(), g.cols.len(), g.input[2]);
    let mut out = vec![T::zero(); g.batch * g.input_len()];
    if out.is_empty() {
        return out;
    }
    let image = |(out, grad): (&mut [T], &[T])| {
        vectorized(
            #[inline(always)]
            || {
                for (y, grad) in g.rows.iter().zip(grad.chunks_exact(cols * c)) {
                    for (x, grad) in g.cols.iter().zip(grad.chunks_exact(c)) {
                        g.pixels(
                            *y,
                            *x,
                            #[inline(always)]
                            |to, weight: T| {
                                let pixel = &mut out[to..to + c];
                                pixel.iter_mut().zip(grad).for_each(|(p, d)| *p += *d * weight);
                            },
                        );
                    }
                }
            },
        );
    };
    let (len, grad_len) = (g.input_len(), rows * cols * c);
    if grad.len() < PARALLEL_FROM {
        out.chunks_mut(len).zip(grad.chunks(grad_len)).for_each(image);
    } else {
        out.par_chunks_mut(len).zip(grad.par_chunks(grad_len)).for_each(image);
    }
    out
}
