//! The checks of the three maps. Each takes the op as a closure, so that it can also be run on a broken one.

// Every test binary uses its own part.
#![allow(dead_code, reason = "each test file uses a part of it")]

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use vkd_ortho::{cayley, householder_product, matrix_exp, reference};
use vkd_testkit::{Tolerance, assert_close, gram_residual, normal, normal_scaled, to_f64};

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
    if dtype == DType::F32 { 1e-6 } else { 1e-13 }
}

pub(crate) fn check_orthonormal(
    op: impl Fn(&Tensor) -> Result<Tensor>,
    raw: &Tensor,
) -> Result<Tensor> {
    let q = op(raw)?;
    if q.dims() != raw.dims() || q.dtype() != raw.dtype() || !q.is_contiguous() {
        bail!("expected contiguous {:?} {:?}, got {q:?}", raw.dims(), raw.dtype())
    }
    let residual = gram_residual(&q)?;
    if residual > limit(raw.dtype()) {
        bail!("{:?} {:?}: residual {residual:e}", raw.dims(), raw.dtype())
    }
    Ok(q)
}

/// Random parameters at all scales, and columns that all are the same.
pub(crate) fn check_scales(
    op: impl Fn(&Tensor) -> Result<Tensor>,
    (n, k): (usize, usize),
    dtype: DType,
    scales: &[f64],
) -> Result<()> {
    for (seed, &scale) in scales.iter().enumerate() {
        let raw = normal_scaled(&[n, k], dtype, seed as u64, scale)?;
        let q = check_orthonormal(&op, &raw)?;
        // Lengths survive.
        let x = normal(&[k, 1], DType::F64, 99)?;
        let y = q.to_dtype(DType::F64)?.matmul(&x)?;
        let length = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f64>();
        let ratio = (length(&y)? / length(&x)?).sqrt();
        if ratio.is_nan() || (ratio - 1.).abs() > limit(dtype) {
            bail!("({n}, {k}) at {scale:e}: lengths change by {ratio}")
        }
        let repeated = raw.narrow(1, 0, 1)?.broadcast_as((n, k))?.contiguous()?;
        check_orthonormal(&op, &repeated)?;
        let nearly = (repeated + (raw * 1e-5)?)?;
        check_orthonormal(&op, &nearly)?;
    }
    Ok(())
}

pub(crate) fn check_zero(
    op: impl Fn(&Tensor) -> Result<Tensor>,
    at_zero: f64,
    (n, k): (usize, usize),
    dtype: DType,
) -> Result<()> {
    let zero = Tensor::zeros((n, k), dtype, &Device::Cpu)?;
    let eye = (Tensor::eye(n, dtype, &Device::Cpu)?.narrow(1, 0, k)? * at_zero)?;
    assert_close("zero", &op(&zero)?, &eye, Tolerance::EXACT)
}

/// What lies on or above the diagonal changes no bit, be it NaN.
pub(crate) fn check_noise(
    op: impl Fn(&Tensor) -> Result<Tensor>,
    (n, k): (usize, usize),
    dtype: DType,
) -> Result<()> {
    let raw = normal(&[n, k], dtype, 1)?;
    let values = to_f64(&raw)?;
    for noise in [0., 1e3, f64::NAN, f64::INFINITY] {
        let noisy: Vec<f64> =
            (0..n * k).map(|at| if at / k > at % k { values[at] } else { noise }).collect();
        let noisy = Tensor::from_vec(noisy, (n, k), &Device::Cpu)?.to_dtype(dtype)?;
        assert_close("noise above the diagonal", &op(&noisy)?, &op(&raw)?, Tolerance::EXACT)?;
    }
    Ok(())
}

/// A batch is the loop over its matrices, bit for bit; batches may be empty.
pub(crate) fn check_batch(
    op: impl Fn(&Tensor) -> Result<Tensor>,
    (n, k): (usize, usize),
    dtype: DType,
) -> Result<()> {
    let raw = normal(&[2, 3, n, k], dtype, 1)?;
    let q = op(&raw)?;
    for i in 0..2 {
        for j in 0..3 {
            let one = op(&raw.get(i)?.get(j)?)?;
            assert_close("batch", &q.get(i)?.get(j)?, &one, Tolerance::EXACT)?;
        }
    }
    let empty = op(&Tensor::zeros((2, 0, n, k), dtype, &Device::Cpu)?)?;
    if empty.dims() != [2, 0, n, k] {
        bail!("expected an empty batch, got {:?}", empty.dims())
    }
    Ok(())
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
