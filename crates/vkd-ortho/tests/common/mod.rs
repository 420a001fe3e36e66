//! The checks of the three maps. Each takes the op as a closure, so that it can also be run on a broken one.

// Every test binary uses its own part.
#![allow(dead_code, reason = "each test file uses a part of it")]

use candle_core::{DType, Result, Tensor, Var, bail};
use vkd_ortho::{cayley, householder_product, matrix_exp, reference};
use vkd_testkit::{StiefelCases, check_frame, normal, stiefel_limit, to_f64};

pub(crate) type Op = fn(&Tensor) -> Result<Tensor>;

/// A map, its slow twin, and what it makes of zero: this times the identity.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) op: Op,
    pub(crate) twin: Op,
    pub(crate) at_zero: f64,
}

pub(crate) const CASES: [Case; 3] = [
    Case {
        name: "householder",
        op: householder_product,
        twin: reference::householder_product,
        at_zero: -1.,
    },
    Case { name: "cayley", op: cayley, twin: reference::cayley, at_zero: 1. },
    Case { name: "matrix_exp", op: matrix_exp, twin: reference::matrix_exp, at_zero: 1. },
];

pub(crate) const SHAPES: [(usize, usize); 6] =
    [(1, 1), (5, 1), (8, 8), (65, 64), (127, 33), (257, 64)];

pub(crate) const DTYPES: [DType; 2] = [DType::F32, DType::F64];

/// The law of orthonormality. The size does not enter: it must hold for every one.
pub(crate) fn limit(dtype: DType) -> f64 {
    stiefel_limit(dtype)
}

/// What a map of this crate must pass beyond the default: zero is a multiple of the identity.
pub(crate) fn cases(case: &Case) -> StiefelCases {
    StiefelCases { at_zero: Some(case.at_zero), ..StiefelCases::new(case.name) }
}

/// The law of orthonormality, for a result that is also contiguous.
pub(crate) fn check_orthonormal(
    name: &str,
    op: impl Fn(&Tensor) -> Result<Tensor>,
    raw: &Tensor,
) -> Result<Tensor> {
    let q = op(raw)?;
    check_frame(name, &q, raw)?;
    if !q.is_contiguous() {
        bail!("{name}: expected a contiguous result, got {:?}", q.layout())
    }
    Ok(q)
}

/// Value and gradient of `<cotangent, op(raw)>`, or an error where no gradient arrives.
pub(crate) fn gradient(op: impl Fn(&Tensor) -> Result<Tensor>, raw: &Tensor) -> Result<Tensor> {
    let var = Var::from_tensor(raw)?;
    let q = op(var.as_tensor())?;
    let cotangent = normal(q.dims(), q.dtype(), 77)?;
    let grads = (q * cotangent)?.sum_all()?.backward()?;
    match grads.get(&var) {
        Some(grad) => Ok(grad.clone()),
        None => bail!("no gradient reaches the parameter"),
    }
}

/// The gradient on and above the diagonal is zero, not merely small.
pub(crate) fn check_mask(grad: &Tensor) -> Result<()> {
    let (n, k) = grad.dims2()?;
    let values = to_f64(grad)?;
    match (0..n * k).find(|at| at / k <= at % k && values[*at] != 0.) {
        None => Ok(()),
        Some(at) => bail!("gradient {} at row {}, column {}", values[at], at / k, at % k),
    }
}

/// Broken on purpose: reflectors whose factor is one per cent off.
pub(crate) fn tau_off(v: &Tensor) -> Result<Tensor> {
    let (n, k) = v.dims2()?;
    let mut q = Tensor::eye(n, v.dtype(), v.device())?.narrow(1, 0, k)?.contiguous()?;
    for j in (0..k).rev() {
        let one = Tensor::ones((1, 1), v.dtype(), v.device())?;
        let below = v.narrow(1, j, 1)?.pad_with_zeros(0, 0, 1)?.narrow(0, j + 1, n - j)?;
        let u = Tensor::cat(&[&one, &below], 0)?.narrow(0, 0, n - j)?.pad_with_zeros(0, j, 0)?;
        let tau = (u.sqr()?.sum_all()?.recip()? * 2.02)?;
        let row = u.t()?.matmul(&q)?.broadcast_mul(&tau)?;
        q = (&q - u.matmul(&row)?)?;
    }
    Ok(q)
}

/// Broken on purpose: the corner of the diagonal leaks into the first column.
pub(crate) fn reads_diagonal(op: Op, raw: &Tensor) -> Result<Tensor> {
    op(&raw.broadcast_add(&raw.narrow(0, 0, 1)?.narrow(1, 0, 1)?)?)
}
