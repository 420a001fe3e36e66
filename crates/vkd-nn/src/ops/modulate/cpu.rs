//! Slices in, slices out: a sample is a row-major matrix of pixels by channels.

use crate::ops::Real;
use candle_core::WithDType;
use rayon::prelude::*;

/// Rows whose sum is taken in the type itself before it is added up in f64.
const ROWS: usize = 64;

/// `x · gain + bias` of `samples` of `[rows, channels]`, gain and bias by sample and channel.
pub(super) fn forward<T: Real>(
    xs: &[T],
    [gain, bias]: [&[T]; 2],
    channels: usize,
    relu: bool,
) -> Vec<T> {
    let mut ys = vec![T::zero(); xs.len()];
    let samples = gain.len() / channels;
    let size = (xs.len() / samples).max(1);
    let parts = ys.par_chunks_mut(size).zip(xs.par_chunks(size));
    let affine = gain.par_chunks(channels).zip(bias.par_chunks(channels));
    parts.zip(affine).for_each(|((ys, xs), (gain, bias))| {
        for (ys, xs) in ys.chunks_exact_mut(channels).zip(xs.chunks_exact(channels)) {
            for (((y, &x), &gain), &bias) in ys.iter_mut().zip(xs).zip(gain).zip(bias) {
                let value = x * gain + bias;
                // NaN stays.
                *y = if relu && value <= T::zero() { T::zero() } else { value };
            }
        }
    });
    ys
}

/// Gradients of the input, the gain and the bias; `ys` is what [`forward`] gave where it ends with a ReLU.
pub(super) fn backward<T: Real>(
    [xs, gain, grad]: [&[T]; 3],
    ys: Option<&[T]>,
    channels: usize,
) -> [Vec<T>; 3] {
    let mut dxs = vec![T::zero(); xs.len()];
    let (mut dgain, mut dbias) = (vec![T::zero(); gain.len()], vec![T::zero(); gain.len()]);
    let samples = gain.len() / channels;
    let size = (xs.len() / samples).max(1);
    let sums = dgain.par_chunks_mut(channels).zip(dbias.par_chunks_mut(channels));
    let inputs = gain.par_chunks(channels).zip(xs.par_chunks(size)).zip(grad.par_chunks(size));
    let parts = dxs.par_chunks_mut(size).enumerate().zip(inputs).zip(sums);
    parts.for_each(|(((sample, dxs), ((gain, xs), grad)), (dgain, dbias))| {
        let ys = ys.map(|ys| &ys[sample * size..][..xs.len()]);
        let mut wide = vec![[0f64; 2]; channels];
        let mut narrow = vec![[T::zero(); 2]; channels];
        let block = ROWS * channels;
        for start in (0..xs.len()).step_by(block) {
            let end = xs.len().min(start + block);
            narrow.fill([T::zero(); 2]);
            for at in (start..end).step_by(channels) {
                let row = at..at + channels;
                let g = &grad[row.clone()];
                let of = dxs[row.clone()].iter_mut().zip(&xs[row.clone()]).zip(gain);
                let to = narrow.iter_mut();
                match ys.map(|ys| &ys[row]) {
                    None => of.zip(g).zip(to).for_each(|((x, &g), sum)| add(x, g, sum)),
                    Some(ys) => of.zip(g).zip(to).zip(ys).for_each(|(((x, &g), sum), &y)| {
                        add(x, if y > T::zero() { g } else { T::zero() }, sum);
                    }),
                }
            }
            for (wide, narrow) in wide.iter_mut().zip(&narrow) {
                wide.iter_mut().zip(narrow).for_each(|(w, n)| *w += WithDType::to_f64(*n));
            }
        }
        for ((sums, gain), bias) in wide.iter().zip(dgain).zip(dbias) {
            [*gain, *bias] = sums.map(<T as WithDType>::from_f64);
        }
    });
    [dxs, dgain, dbias]
}

/// One value's part: of the input's gradient, and of the sums of `g x` and of `g`.
#[inline(always)]
fn add<T: Real>(((dx, &x), &gain): ((&mut T, &T), &T), g: T, sum: &mut [T; 2]) {
    *dx = g * gain;
    sum[0] += g * x;
    sum[1] += g;
}
