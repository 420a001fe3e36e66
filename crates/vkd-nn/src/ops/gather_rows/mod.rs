//! Rows of a table by index.

mod cpu;
pub(crate) mod reference;

use crate::ops::{Real, dense, in_native, unsupported};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;
use vkd_norm::flags;

const OP: &str = "gather_rows";

/// The rows of `table` that `ids` names.
///
/// # Shapes
/// - `table`: `(V, C)`, any strides; f32, f64, bf16 or f16
/// - `ids`: any shape, u8, u32 or i64
/// - output: the shape of `ids`, then C; contiguous
///
/// # Gradient
/// Flows to `table`: each row gets the sum over its places, added in their order, whatever the number of threads, and in f32 for
/// half types. Rows that
/// are not named get zero.
///
/// # Errors
/// A table of another rank, ids of another dtype, or an id that is no row of the table, with its place. On a device, where nobody waits
/// to hear of it, such an id raises a [flag](vkd_norm::flags) and stands for a row of zeros.
pub fn gather_rows(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (rows, width) = match *table.dims() {
        [rows, width] => (rows, width),
        ref dims => bail!("{OP}: expected a table (V, C), got {dims:?}"),
    };
    if !matches!(ids.dtype(), DType::U8 | DType::U32 | DType::I64) {
        bail!("{OP}: expected ids of u8, u32 or i64, got {:?}", ids.dtype())
    }
    if !table.device().is_cpu() {
        let ids = ids.to_device(table.device())?;
        flags::expect(OP, "ids of rows of the table", &ids, [0., rows as f64 - 1.])?;
        return reference::gather_rows(table, &ids);
    }
    let wanted = ids.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    let in_table = |(place, &id): (usize, &i64)| match usize::try_from(id) {
        Ok(row) if row < rows => Ok(row),
        _ => bail!("{OP}: expected ids below {rows}, got {id} at {place} of {:?}", ids.dims()),
    };
    let wanted = wanted.iter().enumerate().map(in_table).collect::<Result<Vec<_>>>()?;
    let shape = Shape::from([ids.dims(), &[width]].concat());
    table.contiguous()?.apply_op1(GatherRows { wanted: wanted.into(), rows, width, shape })
}

struct GatherRows {
    wanted: Arc<[usize]>,
    rows: usize,
    width: usize,
    shape: Shape,
}

/// The adjoint: adds the rows of a gradient to those of a table of zeros.
struct ScatterRows {
    wanted: Arc<[usize]>,
    rows: usize,
    width: usize,
}

impl CustomOp1 for GatherRows {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("{OP}: expected a contiguous table, got {layout:?}")
        };
        let Self { wanted, width, shape, .. } = self;
        // Rows are moved, so every type is its own.
        let out = match storage {
            CpuStorage::F32(t) => CpuStorage::F32(cpu::gather(&t[start..end], wanted, *width)),
            CpuStorage::F64(t) => CpuStorage::F64(cpu::gather(&t[start..end], wanted, *width)),
            CpuStorage::BF16(t) => CpuStorage::BF16(cpu::gather(&t[start..end], wanted, *width)),
            CpuStorage::F16(t) => CpuStorage::F16(cpu::gather(&t[start..end], wanted, *width)),
            _ => return Err(unsupported(OP, storage)),
        };
        Ok((out, shape.clone()))
    }

    fn bwd(&self, _table: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Self { wanted, rows, width, .. } = self;
        let op = ScatterRows { wanted: wanted.clone(), rows: *rows, width: *width };
        in_native(grad, |grad| grad.contiguous()?.apply_op1_no_bwd(&op)).map(Some)
    }
}

impl CustomOp1 for ScatterRows {
    fn name(&self) -> &'static str {
        "gather_rows-bwd"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = match storage {
            CpuStorage::F32(_) => self.forward::<f32>(storage, layout)?,
            CpuStorage::F64(_) => self.forward::<f64>(storage, layout)?,
            _ => return Err(unsupported(OP, storage)),
        };
        Ok((out, Shape::from((self.rows, self.width))))
    }
}

impl ScatterRows {
    fn forward<T: Real>(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let grad = dense::<T>(OP, storage, layout)?;
        Ok(T::to_cpu_storage_owned(cpu::scatter(grad, &self.wanted, self.rows, self.width)))
    }
}
