//! `a = keep·a + take·b` in place.

use super::for_parts;
use super::optimizer::{CHUNK, Value, dense};
pub(super) use crate::ops::blend::Pair;
use crate::ops::native_dtype;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, WithDType, bail};

struct Blend {
    op: &'static str,
    keep: f64,
    take: f64,
}

/// Sets the `to` of each pair, which must own its memory, to `keep·to + take·from`; one pass, nothing is recorded. A half type's
/// values are taken as f32. On a CUDA device all pairs of a dtype are one launch.
pub(super) fn blend_all(op: &'static str, pairs: &[Pair]) -> Result<()> {
    for Pair { to, from, .. } in pairs {
        if to.dims() != from.dims() {
            bail!("{op}: expected shape {:?}, got {:?}", to.dims(), from.dims())
        }
    }
    #[cfg(feature = "cuda")]
    let pairs = {
        // One that is written twice is written by the others' launch and then by itself.
        let mut seen = std::collections::HashSet::new();
        let fits = |pair: &Pair| {
            vkd_norm::program::applies(&pair.to)
                && pair.to.is_contiguous()
                && pair.to.dtype() == native_dtype(pair.from.dtype())
                && seen.insert(pair.to.id())
        };
        let (fused, rest): (Vec<_>, Vec<_>) = pairs.iter().cloned().partition(fits);
        let dense =
            |pair: Pair| -> Result<Pair> { Ok(Pair { from: pair.from.contiguous()?, ..pair }) };
        let fused = fused.into_iter().map(dense).collect::<Result<Vec<_>>>()?;
        for group in super::device::by_kind(&fused, |pair| &pair.from) {
            crate::ops::blend::blend_in_place(&group)?;
        }
        rest
    };
    pairs.iter().try_for_each(|Pair { to, from, keep, take }| blend(op, to, from, *keep, *take))
}

/// [`blend_all`] of one pair.
fn blend(op: &'static str, to: &Tensor, from: &Tensor, keep: f64, take: f64) -> Result<()> {
    let from = from.to_dtype(native_dtype(from.dtype()))?.contiguous()?;
    if !to.device().is_cpu() {
        return on_device(to, &from, keep, take);
    }
    to.inplace_op2(&from, &Blend { op, keep, take })
}

/// [`blend`] off the CPU: into the same memory, which others may share.
fn on_device(to: &Tensor, from: &Tensor, keep: f64, take: f64) -> Result<()> {
    let to = to.detach().flatten_all()?;
    if to.elem_count() == 0 {
        return Ok(());
    }
    let sum = ((&to * keep)? + (from.detach().flatten_all()? * take)?)?;
    to.slice_set(&sum, 0, 0)
}

impl Blend {
    fn run<T: Value>(&self, to: &mut [T], from: &[T]) {
        let of = <T as WithDType>::from_f64;
        let (keep, take) = (of(self.keep), of(self.take));
        let parts = to.chunks_mut(CHUNK).zip(from.chunks(CHUNK));
        for_parts(from.len(), parts, |(to, from)| {
            to.iter_mut().zip(from).for_each(|(a, &b)| *a = keep * *a + take * b);
        });
    }
}

impl InplaceOp2 for Blend {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<()> {
        let (to, from) = (dense(self.op, l1)?, dense(self.op, l2)?);
        match (s1, s2) {
            (CpuStorage::F32(a), CpuStorage::F32(b)) => self.run(&mut a[to], &b[from]),
            (CpuStorage::F64(a), CpuStorage::F64(b)) => self.run(&mut a[to], &b[from]),
            _ => bail!("{}: expected two tensors of f32 or two of f64", self.op),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{blend, on_device};
    use candle_core::{DType, Result};
    use vkd_testkit::{Tolerance, assert_close, normal};

    #[test]
    fn the_device_path_writes_what_the_cpu_s_does() -> Result<()> {
        for dims in [vec![], vec![3, 2]] {
            let (a, b) = (normal(&dims, DType::F64, 1)?, normal(&dims, DType::F64, 2)?);
            let other = a.force_contiguous()?;
            let shared = other.clone();
            blend("test", &a, &b, 0.9, 0.3)?;
            on_device(&other, &b, 0.9, 0.3)?;
            assert_close("blend", &shared, &a, Tolerance::relative(1e-15))?;
        }
        Ok(())
    }
}
