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

/// What is added to the scaled products before the softmax: `lead` matrices of `rows` rows of one value for each key.
#[derive(Clone, Copy)]
pub(crate) struct Bias<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) lead: Lead,
    /// One row for all queries, or one for each.
    pub(crate) rows: usize,
}

/// What the first dimension of a bias counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lead {
    One,
    Heads,
    Batch,
}

impl<'a, T> Bias<'a, T> {
    /// The values for one head of one sample and the queries from `start` on, and the step from query to query.
    fn of(&self, sample: usize, head: usize, start: usize, keys: usize) -> (&'a [T], usize) {
        let lead = match self.lead {
            Lead::One => 0,
            Lead::Heads => head,
            Lead::Batch => sample,
        };
        let (row, step) = if self.rows == 1 { (0, 0) } else { (start, keys) };
        (&self.values[(lead * self.rows + row) * keys..], step)
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
    /// dQ = dS K / sqrt(d), dK = dSᵀ Q / sqrt(d).
    fn backward(&self, g: MatRef<'_, T>, d: [MatMut<'_, T>; 3], p: &mut [T], dp: &mut [T]) {
        let keys = self.k.nrows();
        let [mut dq, mut dk, mut dv] = d;
        for start in (0..self.q.nrows()).step_by(BLOCK) {
            let rows = BLOCK.min(self.q.nrows() - start);
            self.probabilities(start, rows, p);
            let g = g.subrows(start, rows);
            product_here(block(dp, rows, keys), g, self.v.transpose());
            add_product_here(dv.rb_mut(), block(p, rows, keys).rb().transpose(), g);
            softmax_backward(&p[..rows * keys], &mut dp[..rows * keys], keys, self.scale);
            let ds = block(dp, rows, keys).into_const();
            product_here(dq.rb_mut().subrows_mut(start, rows), ds, self.k);
            add_product_here(dk.rb_mut(), ds.transpose(), self.q.subrows(start, rows));
        }
    }
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

/// The gradients of both operands; the second is empty where they are one.
pub(crate) fn backward<T: Real>(
    operands: Operands<'_, T>,
    grad: &[T],
    s: Sizes,
) -> (Vec<T>, Vec<T>) {
    let (blocks_q, blocks_kv) = if operands.packed { (3, 0) } else { (1, 2) };
    let mut dq = vec![T::zero(); s.batch * s.queries * blocks_q * s.width()];
    let mut dkv = vec![T::zero(); s.batch * s.keys * blocks_kv * s.width()];
    if s.batch * s.queries * s.keys == 0 {
        return (dq, dkv);
    }
    let scratch = || {
        let p = vec![T::zero(); BLOCK.min(s.queries) * s.keys];
        (p.clone(), p)
    };
    let of_q = s.split(&mut dq, Packed { tokens: s.queries, blocks: blocks_q });
    let of_kv = s.split(&mut dkv, Packed { tokens: s.keys, blocks: blocks_kv });
    let parts = triples(of_q, of_kv, s.heads, operands.packed);
    let work = |(p, dp): &mut (Vec<T>, Vec<T>), (index, d): (usize, [MatMut<'_, T>; 3])| {
        let of_grad = Packed { tokens: s.queries, blocks: 1 };
        let g = s.matrix(grad, of_grad, index / s.heads, index % s.heads);
        operands.head(s, index).backward(g, d, p, dp);
    };
    if s.large() {
        parts.into_par_iter().enumerate().for_each_init(scratch, work);
    } else {
        let mut buffers = scratch();
        parts.into_iter().enumerate().for_each(|part| work(&mut buffers, part));
    }
    (dq, dkv)
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
