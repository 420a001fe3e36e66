//! Resampling and its adjoint on slices.

use crate::ops::{PARALLEL_FROM, Real};
use candle_core::Shape;
use rayon::prelude::*;
use vkd_norm::lanes::vectorized;

/// How a result's position among the pixels of an axis is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    /// The pixel `⌊i·from / to⌋`.
    Nearest,
    /// Between two pixels; the outer edges of image and result coincide.
    Edges,
    /// Between two pixels; the centres of the outer ones coincide.
    Corners,
}

impl Mode {
    /// Pixels of an axis of `from` of them for one of its result's `to`, both above zero.
    pub(super) fn scale(self, from: usize, to: usize) -> f64 {
        match self {
            Self::Corners if to > 1 => (from - 1) as f64 / (to - 1) as f64,
            Self::Corners => 0.,
            _ => from as f64 / to as f64,
        }
    }

    /// What each of the `to` results of an axis lies between.
    pub(super) fn taps(self, from: usize, to: usize) -> Vec<Tap> {
        let scale = self.scale(from, to);
        let tap = |i: usize| match self {
            Self::Nearest => {
                // u128, for the product of two sizes.
                let pixel = (i as u128 * from as u128 / to as u128) as usize;
                Tap { low: pixel, high: pixel, share: 0. }
            }
            Self::Edges => between(((i as f64 + 0.5) * scale - 0.5).max(0.), from),
            Self::Corners => between(i as f64 * scale, from),
        };
        (0..to).map(tap).collect()
    }
}

fn between(position: f64, length: usize) -> Tap {
    let low = (position as usize).min(length - 1);
    let high = (low + 1).min(length - 1);
    Tap { low, high, share: if high > low { position - low as f64 } else { 0. } }
}

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
    /// How the taps were found; the kernels find them again.
    #[cfg_attr(
        not(any(feature = "cuda", test)),
        expect(dead_code, reason = "kernels alone read it")
    )]
    pub(super) mode: Mode,
}

impl Geometry {
    pub(super) fn result(&self) -> Shape {
        Shape::from((self.batch, self.rows.len(), self.cols.len(), self.input[2]))
    }

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
