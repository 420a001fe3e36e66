//! A whole pre-norm sub-layer on slices; buffers of the forward pass are used again by the backward pass.

use super::{Body, Plan};
use crate::ops::activation::cpu as pointwise;
use crate::ops::attention::cpu as attention;
use crate::ops::gemm::{add_product, product};
use crate::ops::linear::cpu::{
    Widths, affine, column_sums, rows, rows_mut, scale_by, weight_gradient,
};
use crate::ops::{Real, for_chunks};
use vkd_norm::lanes::vectorized;
use vkd_norm::layer_norm_rows as layer_norm;

/// The parameters, in the order of the op's arguments.
#[derive(Clone, Copy)]
pub(super) struct Parameters<'a, T> {
    pub(super) gain: &'a [T],
    pub(super) shift: &'a [T],
    pub(super) w_in: &'a [T],
    pub(super) b_in: &'a [T],
    pub(super) w_out: &'a [T],
    pub(super) b_out: &'a [T],
}

/// What the backward pass needs beside the inputs.
pub(super) struct Kept<T> {
    normed: Vec<T>,
    /// Slopes of the activation, or queries, keys and values.
    inner: Vec<T>,
    /// What goes into the second map.
    outer: Vec<T>,
}

/// `xs + scale · branch`, and what the backward pass needs.
pub(super) fn forward<T: Real>(
    xs: &[T],
    p: Parameters<'_, T>,
    plan: &Plan,
    keep: bool,
) -> (Vec<T>, Option<Kept<T>>) {
    let normed = layer_norm::forward(xs, Some((p.gain, p.shift)), plan.width, plan.eps);
    let mut inner = affine(&normed, p.w_in, Some(p.b_in), plan.first());
    let mut used = vec![];
    let outer = match plan.body {
        Body::Mlp(activation) if keep => pointwise::forward_with_slopes(activation, &mut inner),
        Body::Mlp(activation) => {
            pointwise::in_place(activation, &mut inner);
            std::mem::swap(&mut used, &mut inner);
            used
        }
        Body::Attention { .. } => attention::forward(operands(&inner), plan.sizes()),
    };
    let ys = match &plan.scale {
        None => {
            // The product is added to input and bias: no pass of its own for the residual.
            let mut ys = Vec::with_capacity(xs.len());
            for row in xs.chunks_exact(plan.width) {
                ys.extend(row.iter().zip(p.b_out).map(|(x, b)| *x + *b));
            }
            let (outer, w_out) = (rows(&outer, plan.outer), rows(p.w_out, plan.outer));
            add_product(rows_mut(&mut ys, plan.width), T::one(), outer, w_out.transpose());
            ys
        }
        Some(scale) => {
            let mut ys = affine(&outer, p.w_out, Some(p.b_out), plan.second());
            let size = plan.per_sample();
            for_chunks(&mut ys, size, |at, ys| {
                let (factor, xs) = (T::from_f64(scale[at]), &xs[at * size..][..size]);
                vectorized(
                    #[inline(always)]
                    || {
                        for (y, x) in ys.iter_mut().zip(xs) {
                            *y = *x + factor * *y;
                        }
                    },
                );
            });
            ys
        }
    };
    (ys, keep.then_some(Kept { normed, inner, outer }))
}

fn operands<T>(qkv: &[T]) -> attention::Operands<'_, T> {
    attention::Operands { queries: qkv, others: qkv, packed: true, bias: None }
}

/// Gradient of the input, and of those parameters that are wanted.
pub(super) fn backward<T: Real>(
    xs: &[T],
    p: Parameters<'_, T>,
    grad: &[T],
    kept: Kept<T>,
    plan: &Plan,
    wanted: [bool; 6],
) -> (Vec<T>, [Option<Vec<T>>; 6]) {
    let scaled = plan.scale.as_ref().map(|scale| {
        let mut scaled = grad.to_vec();
        let size = plan.per_sample();
        for_chunks(&mut scaled, size, |at, part| {
            let factor = T::from_f64(scale[at]);
            for x in part {
                *x *= factor;
            }
        });
        scaled
    });
    let g = scaled.as_deref().unwrap_or(grad);
    let Kept { mut normed, mut inner, mut outer } = kept;
    let db_out = wanted[5].then(|| column_sums(g, plan.width));
    let dw_out = wanted[4].then(|| weight_gradient(g, &outer, plan.second()));
    // From here on the second map's input gives its place to its gradient.
    product(rows_mut(&mut outer, plan.outer), rows(g, plan.width), rows(p.w_out, plan.outer));
    let db_in = match plan.body {
        Body::Mlp(_) => {
            let sums = scale_by(&mut inner, &outer, plan.inner, wanted[3]);
            wanted[3].then_some(sums)
        }
        Body::Attention { .. } => {
            [inner, ..] = attention::backward(operands(&inner), &outer, plan.sizes(), false);
            wanted[3].then(|| column_sums(&inner, plan.inner))
        }
    };
    drop(outer);
    let dw_in = wanted[2].then(|| weight_gradient(&inner, &normed, plan.first()));
    product(rows_mut(&mut normed, plan.width), rows(&inner, plan.inner), rows(p.w_in, plan.width));
    drop(inner);
    let (mut dxs, dgain, dshift) =
        layer_norm::backward(xs, Some(p.gain), &normed, plan.width, plan.eps);
    const CHUNK: usize = 1 << 13;
    for_chunks(&mut dxs, CHUNK, |at, dxs| {
        for (d, g) in dxs.iter_mut().zip(&grad[at * CHUNK..]) {
            *d += *g;
        }
    });
    let (dgain, dshift) = (wanted[0].then_some(dgain), wanted[1].then_some(dshift));
    (dxs, [dgain, dshift, dw_in, db_in, dw_out, db_out])
}

impl Plan {
    fn first(&self) -> Widths {
        Widths { input: self.width, output: self.inner }
    }

    fn second(&self) -> Widths {
        Widths { input: self.outer, output: self.width }
    }

    fn per_sample(&self) -> usize {
        self.tokens * self.width
    }

    fn sizes(&self) -> attention::Sizes {
        let heads = match self.body {
            Body::Attention { heads } => heads,
            Body::Mlp(_) => 1,
        };
        attention::Sizes {
            batch: self.batch,
            queries: self.tokens,
            keys: self.tokens,
            heads,
            dim: self.width / heads,
        }
    }
}
