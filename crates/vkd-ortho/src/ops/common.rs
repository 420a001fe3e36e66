//! What the three ops share: checks, dtype dispatch, the loop over a batch, and the tape.

use crate::linalg::{Real, block};
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, D, DType, Error, Layout, Result, Shape, Tensor, WithDType,
    bail,
};
use faer::Mat;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

/// One matrix, row-major: `n x k` entries.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    pub(super) values: &'a [T],
    pub(super) n: usize,
    pub(super) k: usize,
}

/// A map and its gradient, on one matrix whose entries below the diagonal are finite.
pub(super) trait Map: Send + Sync + 'static {
    const NAME: &'static str;
    /// What the backward pass would have to compute again; freed by it.
    type Kept: Send;

    /// The map off the CPU, of a tensor in its own dtype.
    fn on_device(raw: &Tensor) -> Result<Tensor>;

    fn forward<T: Real>(raw: Rows<'_, T>) -> Result<(Vec<T>, Option<Self::Kept>)>;

    /// `kept` is of the same values; absent where the pass is run a second time or the parameter was overwritten in between.
    /// What stands on and above the diagonal of the result is ignored.
    fn backward<T: Real>(
        raw: Rows<'_, T>,
        grad: Rows<'_, T>,
        kept: Option<Self::Kept>,
    ) -> Result<Vec<T>>;
}

/// Rows and columns of `(.., n, k)`; errors unless `n >= k >= 1` and the dtype is a float.
pub(super) fn check(op: &'static str, xs: &Tensor) -> Result<()> {
    if !matches!(xs.dtype(), DType::F32 | DType::F64 | DType::BF16 | DType::F16) {
        return Err(Error::UnsupportedDTypeForOp(xs.dtype(), op).bt());
    }
    match xs.dims() {
        [.., n, k] if n >= k && *k >= 1 => Ok(()),
        dims => bail!("{op}: expected (.., n, k) with n >= k >= 1, got {dims:?}"),
    }
}

/// Applies a map to `(.., n, k)`; half types go through f32.
pub(super) fn apply<M: Map>(raw: &Tensor) -> Result<Tensor> {
    check(M::NAME, raw)?;
    if !raw.device().is_cpu() && raw.elem_count() > 0 {
        return M::on_device(raw);
    }
    let dtype = raw.dtype();
    let wide = if matches!(dtype, DType::F64) { DType::F64 } else { DType::F32 };
    let raw = raw.to_dtype(wide)?.contiguous()?;
    let kept = raw.track_op().then(Kept::<M>::default);
    raw.apply_op1(Forward::<M> { kept })?.to_dtype(dtype)
}

/// Of each matrix: the fingerprint of the parameter, and what was kept of it.
type Parts<M> = Vec<Option<(u64, <M as Map>::Kept)>>;

type Kept<M> = Arc<Mutex<Parts<M>>>;

struct Forward<M: Map> {
    /// Absent where no backward pass can follow.
    kept: Option<Kept<M>>,
}

impl<M: Map> CustomOp1 for Forward<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = match storage {
            CpuStorage::F32(raw) => CpuStorage::F32(self.run(raw, layout)?),
            CpuStorage::F64(raw) => CpuStorage::F64(self.run(raw, layout)?),
            _ => return Err(Error::UnsupportedDTypeForOp(storage.dtype(), M::NAME).bt()),
        };
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        // A lock is only poisoned by a panic, after which nothing is worth keeping.
        let kept =
            self.kept.as_ref().and_then(|kept| Some(std::mem::take(&mut *kept.lock().ok()?)));
        let op = Backward::<M> { kept: Mutex::new(kept.unwrap_or_default()), map: PhantomData };
        arg.apply_op2_no_bwd(&grad_res.contiguous()?, &op).map(Some)
    }
}

impl<M: Map> Forward<M> {
    fn run<T: Real>(&self, raw: &[T], layout: &Layout) -> Result<Vec<T>> {
        let (n, k) = size(layout)?;
        let raw = dense(M::NAME, raw, layout)?;
        let parts = each(raw.len() / (n * k), |at| {
            let raw = Rows { values: &raw[at * n * k..(at + 1) * n * k], n, k };
            finite(M::NAME, at, raw)?;
            let (q, kept) = M::forward(raw)?;
            if !all_finite(&q) {
                bail!("{}: expected a finite result, got none for matrix {at}", M::NAME)
            }
            // A parameter may be overwritten in place before the backward pass reads it.
            let kept = match &self.kept {
                Some(_) => kept.map(|kept| (fingerprint(raw.values), kept)),
                None => None,
            };
            Ok((q, kept))
        })?;
        let (qs, kept): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        if let Some(slot) = &self.kept
            && let Ok(mut slot) = slot.lock()
        {
            *slot = kept;
        }
        Ok(join(qs))
    }
}

struct Backward<M: Map> {
    kept: Mutex<Parts<M>>,
    map: PhantomData<M>,
}

impl<M: Map> CustomOp2 for Backward<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if l1.shape() != l2.shape() {
            let (lhs, rhs) = (l1.shape().clone(), l2.shape().clone());
            return Err(Error::ShapeMismatchBinaryOp { lhs, rhs, op: M::NAME }.bt());
        }
        let out = match (s1, s2) {
            (CpuStorage::F32(raw), CpuStorage::F32(grad)) => {
                CpuStorage::F32(self.run((raw, l1), (grad, l2))?)
            }
            (CpuStorage::F64(raw), CpuStorage::F64(grad)) => {
                CpuStorage::F64(self.run((raw, l1), (grad, l2))?)
            }
            _ => {
                let (lhs, rhs) = (s1.dtype(), s2.dtype());
                return Err(Error::DTypeMismatchBinaryOp { lhs, rhs, op: M::NAME }.bt());
            }
        };
        Ok((out, l1.shape().clone()))
    }
}

impl<M: Map> Backward<M> {
    fn run<T: Real>(&self, raw: (&[T], &Layout), grad: (&[T], &Layout)) -> Result<Vec<T>> {
        let (n, k) = size(raw.1)?;
        let (raw, grad) = (dense(M::NAME, raw.0, raw.1)?, dense(M::NAME, grad.0, grad.1)?);
        let parts = each(raw.len() / (n * k), |at| {
            let part = at * n * k..(at + 1) * n * k;
            let rows = |values| Rows { values, n, k };
            // Never `unwrap`: without the kept part the pass computes it again.
            let kept = self.kept.lock().ok().and_then(|mut kept| kept.get_mut(at)?.take());
            let raw = rows(&raw[part.clone()]);
            let kept = kept.filter(|(of, _)| *of == fingerprint(raw.values)).map(|(_, kept)| kept);
            let mut out = M::backward(raw, rows(&grad[part]), kept)?;
            for i in 0..k {
                out[i * k + i..(i + 1) * k].fill(T::from_f64(0.));
            }
            Ok(out)
        })?;
        Ok(join(parts))
    }
}

/// Maps the matrices in order, in parallel when there is more than one; the first error in order wins.
fn each<R: Send>(count: usize, f: impl Fn(usize) -> Result<R> + Send + Sync) -> Result<Vec<R>> {
    if count == 1 {
        // On a thread of the pool: from outside, each product and each pass would have to wake it anew.
        return Ok(vec![f(0)?]);
    }
    let parts: Vec<Result<R>> = (0..count).into_par_iter().map(f).collect();
    parts.into_iter().collect()
}

fn join<T>(mut parts: Vec<Vec<T>>) -> Vec<T> {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    parts.into_iter().flatten().collect()
}

/// Of the bits of a matrix, by blocks, so that threads can share them.
fn fingerprint<T: WithDType>(values: &[T]) -> u64 {
    let blocks: Vec<u64> = values.par_chunks(block(values.len())).map(block_fingerprint).collect();
    blocks.into_iter().fold(values.len() as u64, mix)
}

/// Eight lanes, because one would wait for each product, and one product for two entries.
fn block_fingerprint<T: WithDType>(values: &[T]) -> u64 {
    let bits = |x: &T| x.to_f64().to_bits();
    let mut lanes = [0x243f_6a88_85a3_08d3u64; 8];
    let rows = values.chunks_exact(16);
    let hash = rows.remainder().iter().map(bits).fold(0, mix);
    for row in rows {
        let (left, right) = row.split_at(8);
        for ((lane, x), y) in lanes.iter_mut().zip(left).zip(right) {
            *lane = mix(*lane, bits(x) ^ bits(y).rotate_left(32));
        }
    }
    lanes.into_iter().fold(hash, |hash, lane| mix(hash.rotate_left(31), lane))
}

fn mix(hash: u64, bits: u64) -> u64 {
    // Turned, because a product never moves a difference in the highest bit, the sign, to another place.
    (hash ^ bits).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

fn all_finite<T: WithDType>(values: &[T]) -> bool {
    // Not `all` inside a block: a loop without an early end runs on vectors.
    values
        .par_chunks(block(values.len()))
        .all(|values| values.iter().fold(true, |fine, x| fine & x.to_f64().is_finite()))
}

/// An error that names the first entry below the diagonal that is not finite.
fn finite<T: WithDType>(op: &'static str, at: usize, raw: Rows<'_, T>) -> Result<()> {
    let Rows { values, n, k } = raw;
    if (0..k).all(|i| all_finite(&values[i * k..i * k + i])) && all_finite(&values[k * k..]) {
        return Ok(());
    }
    for i in 0..n {
        for j in 0..k.min(i) {
            let x = values[i * k + j].to_f64();
            if !x.is_finite() {
                bail!(
                    "{op}: expected a finite parameter, got {x} at matrix {at}, row {i}, column {j}"
                )
            }
        }
    }
    Ok(())
}

impl<T: Real> Rows<'_, T> {
    /// The strict lower part in f64, zero elsewhere.
    pub(super) fn strict_lower(&self) -> Mat<f64> {
        let mut lower = Mat::zeros(self.n, self.k);
        for i in 0..self.n {
            for j in 0..self.k.min(i) {
                lower[(i, j)] = self.values[i * self.k + j].to_f64();
            }
        }
        lower
    }

    /// All entries in f64.
    pub(super) fn wide(&self) -> Mat<f64> {
        Mat::from_fn(self.n, self.k, |i, j| self.values[i * self.k + j].to_f64())
    }
}

pub(super) fn row_major<T: WithDType>(a: &Mat<f64>) -> Vec<T> {
    let (n, k) = (a.nrows(), a.ncols());
    (0..n * k).map(|at| T::from_f64(a[(at / k, at % k)])).collect()
}

fn size(layout: &Layout) -> Result<(usize, usize)> {
    match layout.dims() {
        [.., n, k] => Ok((*n, *k)),
        dims => bail!("expected (.., n, k), got {dims:?}"),
    }
}

pub(super) fn dense<'a, T>(op: &'static str, storage: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage[start..end]),
        None => Err(Error::RequiresContiguous { op }.bt()),
    }
}

/// The part below the diagonal, zero elsewhere, in the order of `raw`.
pub(super) fn strict_lower(raw: &Tensor) -> Result<Tensor> {
    let (n, k) = (raw.dim(D::Minus2)?, raw.dim(D::Minus1)?);
    let mask: Vec<u8> = (0..n * k).map(|at| u8::from(at / k > at % k)).collect();
    let mask = Tensor::from_vec(mask, (n, k), raw.device())?.broadcast_as(raw.shape())?;
    // A choice, not a product: what is not read may be anything, NaN too.
    mask.where_cond(&raw.contiguous()?, &raw.zeros_like()?)
}

/// For the reference twins: the strict lower part padded to `(.., n, n)`, minus its transpose.
pub(super) fn padded_skew(raw: &Tensor) -> Result<Tensor> {
    let (n, k) = (raw.dim(D::Minus2)?, raw.dim(D::Minus1)?);
    let padded = strict_lower(raw)?.pad_with_zeros(D::Minus1, 0, n - k)?;
    &padded - padded.transpose(D::Minus2, D::Minus1)?
}
