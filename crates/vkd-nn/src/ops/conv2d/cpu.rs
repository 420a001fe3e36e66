//! The three products of a convolution on slices: result, gradient to the images, gradient to the filters.
//!
//! Every sum runs in an order that the sizes alone fix, so no bit depends on the number of threads.

use super::geometry::{Geometry, Path};
use super::{depthwise, filters, gathered, sliding};
use crate::ops::{Real, gemm};
use faer::{MatMut, MatRef, Par};
use rayon::prelude::*;

/// Below this many multiplications a pass stays on the calling thread.
const PARALLEL_FROM: usize = 1 << 18;

/// Partial sums of a filter gradient: enough for the threads to share, few enough to be added up quickly.
const PARTS: usize = 16;

/// Runs `work` on every task, in parallel where `multiplications` are many.
pub(super) fn each<I: Send>(multiplications: usize, tasks: Vec<I>, work: impl Fn(I) + Send + Sync) {
    if multiplications < PARALLEL_FROM {
        tasks.into_iter().for_each(work);
    } else {
        tasks.into_par_iter().for_each(work);
    }
}

/// A block of rows of one image's result.
pub(super) struct Block<'a, T> {
    pub(super) image: usize,
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) out: &'a mut [T],
}

impl<T: Real> Block<'_, T> {
    /// Sums start at the bias; without one at the zeros that are there.
    pub(super) fn start(&mut self, bias: Option<&[T]>) {
        if let Some(bias) = bias {
            self.out.chunks_exact_mut(bias.len()).for_each(|pixel| pixel.copy_from_slice(bias));
        }
    }
}

/// `out` in blocks of at most `rows` rows.
pub(super) fn blocks<'a, T>(g: &Geometry, rows: usize, out: &'a mut [T]) -> Vec<Block<'a, T>> {
    let row = g.output[1] * g.output[2];
    if out.is_empty() {
        return vec![];
    }
    let images = out.chunks_mut(g.output_len()).enumerate();
    images
        .flat_map(|(image, out)| {
            out.chunks_mut(rows * row).enumerate().map(move |(i, out)| Block {
                image,
                first: i * rows,
                rows: out.len() / row,
                out,
            })
        })
        .collect()
}

/// Where sums start: the bias of every pixel, or zero.
fn start<T: Real>(len: usize, bias: Option<&[T]>) -> Vec<T> {
    let mut out = vec![T::zero(); len];
    if let Some(bias) = bias {
        crate::ops::for_chunks(&mut out, bias.len() * 1024, |_, rows| {
            rows.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
        });
    }
    out
}

pub(crate) fn forward<T: Real>(g: &Geometry, xs: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    if g.path() == Path::Pointwise {
        let (c, o) = (g.input[2], g.output[2]);
        let filters = MatRef::from_row_major_slice(weight, o, c);
        return rows_product(xs, filters.transpose(), bias);
    }
    convolve(g, xs, &filters::pack(g, weight), bias)
}

/// As [`forward`], with the filters in the kernels' order.
fn convolve<T: Real>(g: &Geometry, xs: &[T], packed: &[T], bias: Option<&[T]>) -> Vec<T> {
    let mut out = vec![T::zero(); g.batch * g.output_len()];
    match g.path() {
        Path::Depthwise => depthwise::forward(g, xs, packed, bias, &mut out),
        Path::Sliding => sliding::forward(g, xs, packed, bias, &mut out),
        Path::Pointwise | Path::Gathered => gathered::forward(g, xs, packed, bias, &mut out),
    }
    out
}

/// Gradient to the images; with a bias, the transposed convolution.
pub(crate) fn input_grad<T: Real>(
    g: &Geometry,
    grad: &[T],
    weight: &[T],
    bias: Option<&[T]>,
) -> Vec<T> {
    if g.path() == Path::Pointwise {
        let filters = MatRef::from_row_major_slice(weight, g.output[2], g.input[2]);
        return rows_product(grad, filters, bias);
    }
    if let Some(turned) = g.turned() {
        return convolve(&turned, grad, &filters::pack_turned(g, weight), bias);
    }
    let mut out = start(g.batch * g.input_len(), bias);
    let packed = filters::pack(g, weight);
    match g.path() {
        Path::Depthwise => depthwise::scatter(g, grad, &packed, &mut out),
        _ => gathered::scatter(g, grad, &packed, &mut out),
    }
    out
}

/// `rows * matrix + bias`, over all pixels at once.
fn rows_product<T: Real>(xs: &[T], matrix: MatRef<'_, T>, bias: Option<&[T]>) -> Vec<T> {
    let (rows, width) = (xs.len() / matrix.nrows(), matrix.ncols());
    let mut out = start(rows * width, bias);
    if rows > 0 {
        let target = MatMut::from_row_major_slice_mut(&mut out, rows, width);
        let rows = MatRef::from_row_major_slice(xs, rows, matrix.nrows());
        gemm::add_product(target, T::one(), rows, matrix);
    }
    out
}

/// Gradient to the filters, in PyTorch's order.
pub(crate) fn weight_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T]) -> Vec<T> {
    let (len, path) = (g.depth() * g.output[2], g.path());
    if g.batch * g.output_len() == 0 {
        return vec![T::zero(); len];
    }
    if path == Path::Pointwise {
        let (c, o) = (g.input[2], g.output[2]);
        let mut out = vec![T::zero(); len];
        let grad = MatRef::from_row_major_slice(grad, grad.len() / o, o);
        let xs = MatRef::from_row_major_slice(xs, xs.len() / c, c);
        gemm::product(MatMut::from_row_major_slice_mut(&mut out, o, c), grad.transpose(), xs);
        return out;
    }
    let rows = match path {
        Path::Depthwise => g.rows_of(1024),
        Path::Sliding => g.rows_of(sliding::PIXELS),
        _ => g.rows_of(gathered::pixels(g)),
    };
    let units: Vec<(usize, usize, usize)> = (0..g.batch)
        .flat_map(|b| (0..g.output[0]).step_by(rows).map(move |y| (b, y)))
        .map(|(b, y)| (b, y, rows.min(g.output[0] - y)))
        .collect();
    // Many small partial sums side by side, or one large one whose products share their rows among the threads.
    let parts = units.len().min(PARTS).min(((1 << 22) / len).max(1));
    let par = if parts == 1 { Par::rayon(0) } else { Par::Seq };
    let add = |part: &mut [T], units: &[(usize, usize, usize)]| match path {
        Path::Depthwise => depthwise::weight_grad(g, xs, grad, units, part),
        Path::Sliding => sliding::weight_grad(g, xs, grad, units, part, par),
        _ => gathered::weight_grad(g, xs, grad, units, part, par),
    };
    let share = units.len().div_ceil(parts);
    let mut partial = vec![T::zero(); units.len().div_ceil(share) * len];
    let tasks: Vec<_> = partial.chunks_mut(len).zip(units.chunks(share)).collect();
    each(g.multiplications(), tasks, |(part, units)| add(part, units));
    let (sum, rest) = partial.split_at_mut(len);
    for part in rest.chunks_exact(len) {
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += *p);
    }
    if path == Path::Depthwise {
        return depthwise::transposed(sum, g.taps());
    }
    filters::unpack(g, sum)
}

/// Sum over all pixels: the gradient to the bias.
pub(crate) fn column_sums<T: Real>(xs: &[T], width: usize) -> Vec<T> {
    // Short sums first, then sums of sums: the rounding stays small.
    const ROWS: usize = 64;
    let add = |sum: &mut [T], row: &[T]| sum.iter_mut().zip(row).for_each(|(s, x)| *s += *x);
    let sum = |rows: &[T]| {
        let mut total = vec![T::zero(); width];
        let mut block = total.clone();
        for rows in rows.chunks(ROWS * width) {
            block.fill(T::zero());
            vkd_norm::lanes::vectorized(
                #[inline(always)]
                || rows.chunks_exact(width).for_each(|row| add(&mut block, row)),
            );
            add(&mut total, &block);
        }
        total
    };
    let share = (xs.len() / width).div_ceil(PARTS).next_multiple_of(ROWS) * width;
    if xs.len() < crate::ops::PARALLEL_FROM {
        return sum(xs);
    }
    let parts: Vec<Vec<T>> = xs.par_chunks(share).map(sum).collect();
    let mut total = vec![T::zero(); width];
    parts.iter().for_each(|part| add(&mut total, part));
    total
}

/// Negative values become zero; NaN stays.
pub(super) fn relu<T: Real>(out: &mut [T]) {
    crate::ops::for_chunks(out, 1 << 14, |_, out| {
        out.iter_mut().for_each(|o| *o = if *o < T::zero() { T::zero() } else { *o });
    });
}

/// `grad` where the result of the ReLU is above zero.
pub(super) fn relu_grad<T: Real>(ys: &[T], grad: &[T]) -> Vec<T> {
    const CHUNK: usize = 1 << 14;
    let mut out = grad.to_vec();
    crate::ops::for_chunks(&mut out, CHUNK, |at, out| {
        for (d, y) in out.iter_mut().zip(&ys[at * CHUNK..]) {
            *d = if *y > T::zero() { *d } else { T::zero() };
        }
    });
    out
}
