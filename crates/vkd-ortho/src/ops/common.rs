//! What the three ops share: checks, dtype dispatch, and the loop over a batch.

use candle_core::{CpuStorage, D, DType, Error, Layout, Result, Shape, Tensor, WithDType, bail};
use faer::{Mat, MatRef};
use rayon::prelude::*;

/// Rows and columns of `(.., n, k)`; errors unless `n >= k >= 1` and the dtype is f32 or f64.
pub(super) fn check(op: &'static str, xs: &Tensor) -> Result<()> {
    if !matches!(xs.dtype(), DType::F32 | DType::F64) {
        return Err(Error::UnsupportedDTypeForOp(xs.dtype(), op).bt());
    }
    match xs.dims() {
        [.., n, k] if n >= k && *k >= 1 => Ok(()),
        dims => bail!("{op}: expected (.., n, k) with n >= k >= 1, got {dims:?}"),
    }
}

/// Applies `f` to the strict lower part of every matrix.
pub(super) fn apply1(
    op: &'static str,
    storage: &CpuStorage,
    layout: &Layout,
    f: impl Fn(MatRef<'_, f64>) -> Result<Mat<f64>> + Sync,
) -> Result<(CpuStorage, Shape)> {
    let size = size(layout)?;
    let out = match storage {
        CpuStorage::F32(raw) => CpuStorage::F32(forward(op, dense(op, raw, layout)?, size, f)?),
        CpuStorage::F64(raw) => CpuStorage::F64(forward(op, dense(op, raw, layout)?, size, f)?),
        _ => return Err(Error::UnsupportedDTypeForOp(layout_dtype(storage), op).bt()),
    };
    Ok((out, layout.shape().clone()))
}

/// Applies `f` to the strict lower part of every matrix and the matrix of gradients that belongs to it.
pub(super) fn apply2(
    op: &'static str,
    (s1, l1): (&CpuStorage, &Layout),
    (s2, l2): (&CpuStorage, &Layout),
    f: impl Fn(MatRef<'_, f64>, MatRef<'_, f64>) -> Result<Mat<f64>> + Sync,
) -> Result<(CpuStorage, Shape)> {
    if l1.shape() != l2.shape() {
        return Err(Error::ShapeMismatchBinaryOp {
            lhs: l1.shape().clone(),
            rhs: l2.shape().clone(),
            op,
        }
        .bt());
    }
    let size = size(l1)?;
    let out = match (s1, s2) {
        (CpuStorage::F32(a), CpuStorage::F32(b)) => {
            CpuStorage::F32(backward(op, dense(op, a, l1)?, dense(op, b, l2)?, size, f)?)
        }
        (CpuStorage::F64(a), CpuStorage::F64(b)) => {
            CpuStorage::F64(backward(op, dense(op, a, l1)?, dense(op, b, l2)?, size, f)?)
        }
        _ => {
            return Err(Error::DTypeMismatchBinaryOp {
                lhs: layout_dtype(s1),
                rhs: layout_dtype(s2),
                op,
            }
            .bt());
        }
    };
    Ok((out, l1.shape().clone()))
}

fn forward<T: WithDType>(
    op: &'static str,
    raw: &[T],
    (n, k): (usize, usize),
    f: impl Fn(MatRef<'_, f64>) -> Result<Mat<f64>> + Sync,
) -> Result<Vec<T>> {
    let raw: Vec<&[T]> = raw.chunks_exact(n * k).collect();
    each(&raw, |at, raw| {
        let q = f(strict_lower(op, at, raw, (n, k))?.as_ref())?;
        if !q.is_all_finite() {
            bail!("{op}: expected a finite result, got none for matrix {at} of the batch")
        }
        Ok(row_major(&q))
    })
}

fn backward<T: WithDType>(
    op: &'static str,
    raw: &[T],
    grad: &[T],
    (n, k): (usize, usize),
    f: impl Fn(MatRef<'_, f64>, MatRef<'_, f64>) -> Result<Mat<f64>> + Sync,
) -> Result<Vec<T>> {
    let pairs: Vec<(&[T], &[T])> = raw.chunks_exact(n * k).zip(grad.chunks_exact(n * k)).collect();
    each(&pairs, |at, (raw, grad)| {
        let lower = strict_lower(op, at, raw, (n, k))?;
        let grad = Mat::from_fn(n, k, |i, j| grad[i * k + j].to_f64());
        Ok(row_major(&f(lower.as_ref(), grad.as_ref())?))
    })
}

/// Maps the items in order, in parallel when there is more than one; the first error in order wins.
fn each<I: Copy + Send + Sync, T: Send>(
    items: &[I],
    f: impl Fn(usize, I) -> Result<Vec<T>> + Sync,
) -> Result<Vec<T>> {
    if let [one] = items {
        return f(0, *one);
    }
    let parts: Vec<Result<Vec<T>>> =
        items.par_iter().enumerate().map(|(at, item)| f(at, *item)).collect();
    let parts = parts.into_iter().collect::<Result<Vec<Vec<T>>>>()?;
    Ok(parts.into_iter().flatten().collect())
}

/// The strict lower part in f64, zero elsewhere; what is not finite there is an error.
fn strict_lower<T: WithDType>(
    op: &'static str,
    at: usize,
    raw: &[T],
    (n, k): (usize, usize),
) -> Result<Mat<f64>> {
    let mut lower = Mat::zeros(n, k);
    for i in 0..n {
        for j in 0..k.min(i) {
            let x = raw[i * k + j].to_f64();
            if !x.is_finite() {
                bail!(
                    "{op}: expected a finite parameter, got {x} at matrix {at}, row {i}, column {j}"
                )
            }
            lower[(i, j)] = x;
        }
    }
    Ok(lower)
}

fn row_major<T: WithDType>(a: &Mat<f64>) -> Vec<T> {
    let (n, k) = (a.nrows(), a.ncols());
    (0..n * k).map(|at| T::from_f64(a[(at / k, at % k)])).collect()
}

fn size(layout: &Layout) -> Result<(usize, usize)> {
    match layout.dims() {
        [.., n, k] => Ok((*n, *k)),
        dims => bail!("expected (.., n, k), got {dims:?}"),
    }
}

fn dense<'a, T>(op: &'static str, storage: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage[start..end]),
        None => Err(Error::RequiresContiguous { op }.bt()),
    }
}

fn layout_dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// For the reference twins: the strict lower part padded to `(.., n, n)`, minus its transpose.
pub(super) fn padded_skew(raw: &Tensor) -> Result<Tensor> {
    let (n, k) = (raw.dim(D::Minus2)?, raw.dim(D::Minus1)?);
    let mask: Vec<u8> = (0..n * k).map(|at| u8::from(at / k > at % k)).collect();
    let mask = Tensor::from_vec(mask, (n, k), raw.device())?.broadcast_as(raw.shape())?;
    // A choice, not a product: what is not read may be anything, NaN too.
    let lower = mask.where_cond(&raw.contiguous()?, &raw.zeros_like()?)?;
    let padded = lower.pad_with_zeros(D::Minus1, 0, n - k)?;
    &padded - padded.transpose(D::Minus2, D::Minus1)?
}
