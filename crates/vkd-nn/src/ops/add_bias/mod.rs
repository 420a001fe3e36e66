//! A bias for every row.

mod cpu;
pub(crate) mod reference;

use super::{dense, unsupported};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail,
};

/// `xs + bias`, the bias added to every row.
///
/// The sum is what `broadcast_add` gives; the gradient of the bias is summed along the rows as they lie in memory, where
/// candle's own computes a position for every value.
///
/// # Shapes
/// - `xs`: `(.., C)`, any strides
/// - `bias`: `(C)`
/// - output: `(.., C)`, contiguous
///
/// # Errors
/// Other shapes, different dtypes, a dtype other than f32 and f64.
pub fn add_bias(xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if bias.rank() != 1 || xs.dims().last() != bias.dims().last() {
        bail!("add_bias: expected (.., C) and (C), got {:?} and {:?}", xs.dims(), bias.dims())
    }
    xs.contiguous()?.apply_op2(&bias.contiguous()?, AddBias)
}

struct AddBias;

/// Sum over the rows.
struct ColumnSums;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        let out = match s1 {
            CpuStorage::F32(_) => {
                f32::to_cpu_storage_owned(cpu::add_bias(dense(name, s1, l1)?, dense(name, s2, l2)?))
            }
            CpuStorage::F64(_) => f64::to_cpu_storage_owned(cpu::add_bias::<f64>(
                dense(name, s1, l1)?,
                dense(name, s2, l2)?,
            )),
            _ => return Err(unsupported(name, s1)),
        };
        Ok((out, l1.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sums = grad.contiguous()?.apply_op1_no_bwd(&ColumnSums)?;
        Ok((Some(grad.clone()), Some(sums)))
    }
}

impl CustomOp1 for ColumnSums {
    fn name(&self) -> &'static str {
        "add-bias-bwd"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = l.dims().last().copied().unwrap_or(0);
        let out = match s {
            CpuStorage::F32(_) => {
                f32::to_cpu_storage_owned(cpu::column_sums(dense(self.name(), s, l)?, width))
            }
            CpuStorage::F64(_) => {
                f64::to_cpu_storage_owned(cpu::column_sums::<f64>(dense(self.name(), s, l)?, width))
            }
            _ => return Err(unsupported(self.name(), s)),
        };
        Ok((out, width.into()))
    }
}
