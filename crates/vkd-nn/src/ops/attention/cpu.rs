//! Attention on slices: every head of every sample on its own, by blocks of queries.
//!
//! Queries, keys and values are read where they lie, as matrices with a row stride; only one block of the softmax matrix
//! exists at a time. Results are split into the columns of each head, so the threads write side by side.

use super::softmax::{softmax, softmax_backward};
use crate::ops::gemm::{add_product_here, product_here};
use crate::ops::{PARALLEL_FROM, Real};
use faer::prelude::{IntoConst, Reborrow, ReborrowMut};
use faer::{MatMut, MatRef};
use rayon::prelude::*;

/// Queries in one block: two blocks of 200 keys fit in a core's second cache.
const BLOCK: usize = 128;

/// Sizes of queries and of keys with values.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
}

/// Packed rows of `blocks` times `heads` blocks of `dim` values, one row for each of `tokens`.
#[derive(Clone, Copy)]
struct Packed {
    tokens: usize,
    blocks: usize,
}

/// What is added to the scaled products before the softmax: matrices of one value for each key.
#[derive(Clone, Copy)]
pub(crate) struct Bias<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) counts: Counts,
}

/// Samples, heads and queries that a bias tells apart: each one, or all of them.
pub(crate) type Counts = [usize; 3];

/// Which of a bias's matrices is for one head of one sample.
fn matrix([samples, heads, _]: Counts, sample: usize, head: usize) -> usize {
    let one_of = |count: usize, index: usize| if count == 1 { 0 } else { index };
    one_of(samples, sample) * heads + one_of(heads, head)
}

impl<'a, T> Bias<'a, T> {
    /// The values for one head of one sample and the queries from `start` on, and the step from query to query.
    fn of(&self, sample: usize, head: usize, start: usize, keys: usize) -> (&'a [T], usize) {
        let rows = self.counts[2];
        let (row, step) = if rows == 1 { (0, 0) } else { (start, keys) };
        (&self.values[(matrix(self.counts, sample, head) * rows + row) * keys..], step)
    }
}

/// Operands: queries, and the rows that hold keys and values; the same slice where all three are packed.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a, T> {
    pub(crate) queries: &'a [T],
    pub(crate) others: &'a [T],
    /// Whether both are the same packed `(B, N, 3·C)`.
    pub(crate) packed: bool,
    pub(crate) bias: Option<Bias<'a, T>>,
}

impl Sizes {
    pub(crate) fn width(&self) -> usize {
        self.heads * self.dim
    }

    fn matrix<'a, T>(&self, values: &'a [T], p: Packed, at: usize, column: usize) -> MatRef<'a, T> {
        let row = p.blocks * self.width();
        let values = &values[at * p.tokens * row..][..p.tokens * row];
        MatRef::from_row_major_slice(values, p.tokens, row).subcols(column * self.dim, self.dim)
    }

    /// The columns of every head of every sample, in order.
    fn split<'a, T>(&self, values: &'a mut [T], p: Packed) -> Vec<MatMut<'a, T>> {
        let (row, heads) = (p.blocks * self.width(), p.blocks * self.heads);
        let mut parts = Vec::with_capacity(self.batch * heads);
        for sample in values.chunks_exact_mut((p.tokens * row).max(1)) {
            let mut rest = MatMut::from_row_major_slice_mut(sample, p.tokens, row);
            for _ in 0..heads {
                let (part, others) = rest.split_at_col_mut(self.dim);
                parts.push(part);
                rest = others;
            }
        }
        parts
    }

    fn large(&self) -> bool {
        self.batch * self.heads * self.queries * self.keys * self.dim >= PARALLEL_FROM
    }

    fn scale<T: Real>(&self) -> T {
        T::from_f64((self.dim as f64).sqrt().recip())
    }
}

/// One head of one sample.
struct Head<'a, T> {
    q: MatRef<'a, T>,
    k: MatRef<'a, T>,
    v: MatRef<'a, T>,
    bias: Option<Bias<'a, T>>,
    sample: usize,
    head: usize,
    scale: T,
}

impl<'a, T: Real> Operands<'a, T> {
    fn head(&self, s: Sizes, index: usize) -> Head<'a, T> {
        let (sample, head) = (index / s.heads, index % s.heads);
        let (blocks_q, blocks_kv) = if self.packed { (3, 3) } else { (1, 2) };
        let first = if self.packed { s.heads } else { 0 };
        let (of_q, of_kv) = (
            Packed { tokens: s.queries, blocks: blocks_q },
            Packed { tokens: s.keys, blocks: blocks_kv },
        );
        Head {
            q: s.matrix(self.queries, of_q, sample, head),
            k: s.matrix(self.others, of_kv, sample, first + head),
            v: s.matrix(self.others, of_kv, sample, first + s.heads + head),
            bias: self.bias,
            sample,
            head,
            scale: s.scale(),
        }
    }
}

fn block<T>(values: &mut [T], rows: usize, columns: usize) -> MatMut<'_, T> {
    MatMut::from_row_major_slice_mut(&mut values[..rows * columns], rows, columns)
}

impl<T: Real> Head<'_, T> {
    /// Rows `start..start + rows` of the softmax matrix.
    fn probabilities(&self, start: usize, rows: usize, p: &mut [T]) {
        let keys = self.k.nrows();
        product_here(block(p, rows, keys), self.q.subrows(start, rows), self.k.transpose());
        let bias = self.bias.map(|bias| bias.of(self.sample, self.head, start, keys));
        softmax(&mut p[..rows * keys], keys, self.scale, bias);
    }

    fn forward(&self, mut out: MatMut<'_, T>, p: &mut [T]) {
        let keys = self.k.nrows();
        for start in (0..self.q.nrows()).step_by(BLOCK) {
            let rows = BLOCK.min(self.q.nrows() - start);
            self.probabilities(start, rows, p);
            product_here(out.rb_mut().subrows_mut(start, rows), block(p, rows, keys).rb(), self.v);
        }
    }

    /// With P the softmax and `g` the upstream gradient: dV = Pᵀg, dP = gVᵀ, dS = P∘(dP − rowsum(P∘dP)),
    /// dQ = dS K / sqrt(d), dK = dSᵀ Q / sqrt(d). What is added to `of_bias`, where it has room, is dS / sqrt(d).
    fn backward(&self, g: MatRef<'_, T>, d: [MatMut<'_, T>; 3], buffers: [&mut [T]; 3]) {
        let keys = self.k.nrows();
        let ([mut dq, mut dk, mut dv], [p, dp, of_bias]) = (d, buffers);
        for start in (0..self.q.nrows()).step_by(BLOCK) {
            let rows = BLOCK.min(self.q.nrows() - start);
            self.probabilities(start, rows, p);
            let g = g.subrows(start, rows);
            product_here(block(dp, rows, keys), g, self.v.transpose());
            add_product_here(dv.rb_mut(), block(p, rows, keys).rb().transpose(), g);
            softmax_backward(&p[..rows * keys], &mut dp[..rows * keys], keys, self.scale);
            if of_bias.len() == keys {
                dp[..rows * keys].chunks_exact(keys).for_each(|row| add(of_bias, row));
            } else if !of_bias.is_empty() {
                add(&mut of_bias[start * keys..][..rows * keys], &dp[..rows * keys]);
            }
            let ds = block(dp, rows, keys).into_const();
            product_here(dq.rb_mut().subrows_mut(start, rows), ds, self.k);
            add_product_here(dk.rb_mut(), ds.transpose(), self.q.subrows(start, rows));
        }
    }
}

fn add<T: Real>(sums: &mut [T], values: &[T]) {
    sums.iter_mut().zip(values).for_each(|(sum, v)| *sum += *v);
}

pub(crate) fn forward<T: Real>(operands: Operands<'_, T>, s: Sizes) -> Vec<T> {
    let mut out = vec![T::zero(); s.batch * s.queries * s.width()];
    if out.is_empty() || s.keys == 0 {
        return out;
    }
    let scratch = || vec![T::zero(); BLOCK.min(s.queries) * s.keys];
    let parts = s.split(&mut out, Packed { tokens: s.queries, blocks: 1 });
    let work = |p: &mut Vec<T>, (index, out): (usize, MatMut<'_, T>)| {
        operands.head(s, index).forward(out, p);
    };
    if s.large() {
        parts.into_par_iter().enumerate().for_each_init(scratch, work);
    } else {
        let mut p = scratch();
        parts.into_iter().enumerate().for_each(|part| work(&mut p, part));
    }
    out
}

/// Samples in a row are summed in at most so many parts for the gradient of a bias that they share.
const SUMS: usize = 16;

/// The gradients of both operands and of the bias, where it is wanted; the second is empty where the operands are one.
pub(crate) fn backward<T: Real>(
    operands: Operands<'_, T>,
    grad: &[T],
    s: Sizes,
    with_bias: bool,
) -> [Vec<T>; 3] {
    let (blocks_q, blocks_kv) = if operands.packed { (3, 0) } else { (1, 2) };
    let mut dq = vec![T::zero(); s.batch * s.queries * blocks_q * s.width()];
    let mut dkv = vec![T::zero(); s.batch * s.keys * blocks_kv * s.width()];
    let bias = operands.bias.filter(|_| with_bias);
    let mut dbias = vec![T::zero(); bias.map_or(0, |bias| bias.values.len())];
    if s.batch * s.queries * s.keys == 0 {
        return [dq, dkv, dbias];
    }
    let scratch = || {
        let p = vec![T::zero(); BLOCK.min(s.queries) * s.keys];
        (p.clone(), p)
    };
    let of_q = s.split(&mut dq, Packed { tokens: s.queries, blocks: blocks_q });
    let of_kv = s.split(&mut dkv, Packed { tokens: s.keys, blocks: blocks_kv });
    // A task is one head of `run` samples, and has sums of its own: their order does not depend on the threads.
    let run = bias.filter(|b| b.counts[0] == 1).map_or(1, |_| s.batch.div_ceil(SUMS));
    let room = bias.map_or(0, |bias| bias.counts[2] * s.keys);
    let mut tasks: Vec<(Vec<T>, Vec<_>)> = (0..s.batch.div_ceil(run) * s.heads)
        .map(|_| (vec![T::zero(); room], Vec::with_capacity(run)))
        .collect();
    let parts = triples(of_q, of_kv, s.heads, operands.packed);
    for (index, part) in parts.into_iter().enumerate() {
        tasks[index / s.heads / run * s.heads + index % s.heads].1.push((index, part));
    }
    let work = |(p, dp): &mut (Vec<T>, Vec<T>), (mut sums, parts): (Vec<T>, Vec<_>)| {
        for (index, d) in parts {
            let of_grad = Packed { tokens: s.queries, blocks: 1 };
            let g = s.matrix(grad, of_grad, index / s.heads, index % s.heads);
            operands.head(s, index).backward(g, d, [p, dp, &mut sums]);
        }
        sums
    };
    let sums: Vec<Vec<T>> = if s.large() {
        tasks.into_par_iter().map_init(scratch, work).collect()
    } else {
        let mut buffers = scratch();
        tasks.into_iter().map(|task| work(&mut buffers, task)).collect()
    };
    if let Some(bias) = bias {
        for (task, sums) in sums.iter().enumerate() {
            let at = matrix(bias.counts, task / s.heads * run, task % s.heads) * room;
            add(&mut dbias[at..at + room], sums);
        }
        let unscaled = s.scale::<T>().recip();
        dbias.iter_mut().for_each(|d| *d *= unscaled);
    }
    [dq, dkv, dbias]
}

/// Groups the columns of each head: its queries, keys and values.
fn triples<'a, T>(
    of_q: Vec<MatMut<'a, T>>,
    of_kv: Vec<MatMut<'a, T>>,
    heads: usize,
    packed: bool,
) -> Vec<[MatMut<'a, T>; 3]> {
    let (mut first, mut second) = (of_q.into_iter(), of_kv.into_iter());
    let mut parts = vec![];
    loop {
        let q: Vec<_> = first.by_ref().take(heads).collect();
        let others = if packed { &mut first } else { &mut second };
        let k: Vec<_> = others.take(heads).collect();
        let v: Vec<_> = others.take(heads).collect();
        if v.is_empty() {
            return parts;
        }
        parts.extend(q.into_iter().zip(k).zip(v).map(|((q, k), v)| [q, k, v]));
    }
}
