//! Blocked compact WY: `H_a .. H_b = I - U S⁻¹ Uᵀ` with unit vectors `U` and `S` the upper half of `UᵀU`.

use crate::linalg::{add_product, product, solve_upper, solve_upper_transposed, upper_half};
use candle_core::Result;
use faer::{Mat, MatRef};

/// Reflectors per block. Small blocks keep `S` well conditioned, and touch only the rows and columns at and after their own.
const BLOCK: usize = 32;

/// Unit reflectors, and the lengths that were divided out.
fn reflectors(lower: MatRef<'_, f64>) -> (Mat<f64>, Vec<f64>) {
    let mut u = lower.to_owned();
    let mut lengths = Vec::with_capacity(u.ncols());
    for j in 0..u.ncols() {
        u[(j, j)] = 1.;
        // Not the root of a plain sum of squares: entries may be as large as f64 holds.
        let largest = u.col(j).norm_max();
        for i in j..u.nrows() {
            u[(i, j)] /= largest;
        }
        let length = u.col(j).norm_l2();
        for i in j..u.nrows() {
            u[(i, j)] /= length;
        }
        lengths.push(largest * length);
    }
    (u, lengths)
}

/// First reflector of each block, ascending.
fn starts(k: usize) -> impl DoubleEndedIterator<Item = usize> {
    (0..k.div_ceil(BLOCK)).map(|p| p * BLOCK)
}

/// The block that starts at reflector `at`, without the zero rows above it, and its `S`.
fn block(u: &Mat<f64>, at: usize) -> (MatRef<'_, f64>, Mat<f64>) {
    let width = BLOCK.min(u.ncols() - at);
    let u = u.as_ref().submatrix(at, at, u.nrows() - at, width);
    let s = upper_half(&product(u.transpose(), u));
    (u, s)
}

pub(super) fn forward(lower: MatRef<'_, f64>) -> Result<Mat<f64>> {
    Ok(multiply(&reflectors(lower).0))
}

fn multiply(u: &Mat<f64>) -> Mat<f64> {
    let (n, k) = (u.nrows(), u.ncols());
    let mut q = Mat::identity(n, k);
    for at in starts(k).rev() {
        let (u, s) = block(u, at);
        let mut y = q.as_mut().submatrix_mut(at, at, n - at, k - at);
        let z = solve_upper(s.as_ref(), product(u.transpose(), y.as_ref()));
        add_product(y.as_mut(), -1., u, z.as_ref());
    }
    q
}

/// For one block, `Y' = Y - U Z`, `Z = S⁻¹ W`, `W = Uᵀ Y`. Each line below is the adjoint of one of these.
pub(super) fn backward(lower: MatRef<'_, f64>, grad: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let (n, k) = (lower.nrows(), lower.ncols());
    let (all, lengths) = reflectors(lower);
    let mut q = multiply(&all);
    let mut g = grad.to_owned();
    let mut out = Mat::<f64>::zeros(n, k);
    for at in starts(k) {
        let (u, s) = block(&all, at);
        let mut y = q.as_mut().submatrix_mut(at, at, n - at, k - at);
        let mut g = g.as_mut().submatrix_mut(at, at, n - at, k - at);
        // The block is orthogonal: its transpose takes it off again.
        let undo = solve_upper_transposed(s.as_ref(), product(u.transpose(), y.as_ref()));
        add_product(y.as_mut(), -1., u, undo.as_ref());
        let z = solve_upper(s.as_ref(), product(u.transpose(), y.as_ref()));
        let mut z_grad = product(u.transpose(), g.as_ref());
        z_grad *= faer::Scale(-1.);
        let w_grad = solve_upper_transposed(s.as_ref(), z_grad);
        let mut s_grad = product(w_grad.as_ref(), z.transpose());
        s_grad *= faer::Scale(-1.);
        let half = upper_half(&s_grad);
        let gram_grad = &half + half.transpose();

        let mut u_grad = out.as_mut().submatrix_mut(at, at, n - at, u.ncols());
        add_product(u_grad.as_mut(), -1., g.as_ref(), z.transpose());
        add_product(u_grad.as_mut(), 1., y.as_ref(), w_grad.transpose());
        add_product(u_grad.as_mut(), 1., u, gram_grad.as_ref());
        add_product(g.as_mut(), 1., u, w_grad.as_ref());
    }
    // The product does not depend on the lengths, so the gradient is orthogonal to each reflector already.
    for (j, length) in lengths.iter().enumerate() {
        for i in 0..n {
            out[(i, j)] = if i > j { out[(i, j)] / length } else { 0. };
        }
    }
    Ok(out)
}
