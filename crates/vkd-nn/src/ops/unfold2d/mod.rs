//! The windows of a convolution, gathered into rows.

mod cpu;
pub(crate) mod reference;

use super::{dense, unsupported};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use cpu::Window;

/// The windows of `xs` that a convolution sees, one row each.
///
/// # Shapes
/// - `xs`: `(B, H, W, C)`, channels last
/// - output: `(B, H', W', kernel·kernel·C)` with `H' = (H + 2·padding − kernel) / stride + 1`; entry
///   `(i·kernel + j)·C + c` is channel `c` of the window's row `i` and column `j`, zero outside the image
///
/// # Gradient
/// Flows to `xs`: each pixel sums the gradients of the windows that hold it.
///
/// # Errors
/// Another rank, a zero kernel or stride, a kernel larger than the padded image, windows of more values
/// than memory can address, a dtype other than f32 and f64.
pub fn unfold2d(xs: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let window = Window { kernel, stride, padding };
    output_dims(xs.dims(), window)?;
    xs.contiguous()?.apply_op1(Unfold { window })
}

fn output_dims(dims: &[usize], w: Window) -> Result<[usize; 4]> {
    let [b, height, width, c] = dims else {
        bail!("unfold2d: expected (B, H, W, C), got {dims:?}")
    };
    let both = w.padding.saturating_mul(2);
    let (h, v) = (height.saturating_add(both), width.saturating_add(both));
    if w.kernel == 0 || w.stride == 0 || w.kernel > h || w.kernel > v {
        bail!("unfold2d: expected 1 <= kernel <= padded size {h}x{v} and stride >= 1, got {w:?}")
    }
    let (rows, cols) = ((h - w.kernel) / w.stride + 1, (v - w.kernel) / w.stride + 1);
    let values = [*b, cols, w.kernel, w.kernel, *c, size_of::<f64>()];
    let bytes = values.iter().try_fold(rows, |n, &size| n.checked_mul(size));
    match bytes.and_then(|bytes| isize::try_from(bytes).ok()) {
        Some(_) => Ok([*b, rows, cols, w.kernel * w.kernel * c]),
        None => bail!("unfold2d: expected windows that fit in memory, got {w:?} on {dims:?}"),
    }
}

struct Unfold {
    window: Window,
}

/// Adjoint of [`Unfold`] for an input of shape `dims`.
struct Fold {
    window: Window,
    dims: [usize; 4],
}

impl CustomOp1 for Unfold {
    fn name(&self) -> &'static str {
        "unfold2d"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (input, output) = (l.shape().dims4()?.into(), output_dims(l.dims(), self.window)?);
        let out = match s {
            CpuStorage::F32(_) => f32::to_cpu_storage_owned(cpu::unfold(
                dense(self.name(), s, l)?,
                input,
                output,
                self.window,
            )),
            CpuStorage::F64(_) => f64::to_cpu_storage_owned(cpu::unfold::<f64>(
                dense(self.name(), s, l)?,
                input,
                output,
                self.window,
            )),
            _ => return Err(unsupported(self.name(), s)),
        };
        Ok((out, output.to_vec().into()))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = Fold { window: self.window, dims: arg.dims4()?.into() };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&op)?))
    }
}

impl CustomOp1 for Fold {
    fn name(&self) -> &'static str {
        "fold2d"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let windows = l.shape().dims4()?.into();
        let out = match s {
            CpuStorage::F32(_) => f32::to_cpu_storage_owned(cpu::fold(
                dense(self.name(), s, l)?,
                self.dims,
                windows,
                self.window,
            )),
            CpuStorage::F64(_) => f64::to_cpu_storage_owned(cpu::fold::<f64>(
                dense(self.name(), s, l)?,
                self.dims,
                windows,
                self.window,
            )),
            _ => return Err(unsupported(self.name(), s)),
        };
        Ok((out, self.dims.to_vec().into()))
    }
}
