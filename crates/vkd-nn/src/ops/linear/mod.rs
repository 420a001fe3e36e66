//! An affine map with an activation at its end, as one op.

pub(crate) mod cpu;
pub(crate) mod reference;

use super::activation::activate;
use super::{Activation, Real, dense, in_native, native, same_dtype, unsupported};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use cpu::Widths;
use std::sync::{Arc, Mutex};
use vkd_norm::dense::with_slices;

const OP: &str = "linear";

/// `act(xs · weightᵀ + bias)` over the last dimension: one op, where product, bias and activation would be three.
///
/// # Shapes
/// - `xs`: `(.., C)`, any strides; f32 or f64, or a half type [through f32](crate::ops)
/// - `weight`: `(D, C)`, `bias`: `(D)`
/// - output: `(.., D)`, contiguous
///
/// # Gradient
/// Flows to all that are tracked; nothing is computed for the others. With an activation the op keeps its slope at every
/// output until the backward pass, which multiplies by it and frees it; a second backward pass computes it again.
///
/// # Numerics
/// Sums run in the dtype of the values, for half types in f32. The bias is the start of each sum. Column sums for the bias run over fixed
/// blocks of rows; no bit depends on the number of threads.
///
/// # Errors
/// Other shapes, zero widths, different dtypes, a dtype other than f64, f32, bf16 and f16.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_nn::ops::{Activation, linear};
/// let xs = Tensor::new(&[[1f32, 2.]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[1f32, 1.], [-1., 0.]], &Device::Cpu)?;
/// let ys = linear(&xs, &weight, None, Activation::Relu)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[3., 0.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn linear(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (output, input) = match weight.dims() {
        [output, input] if *output > 0 && *input > 0 => (*output, *input),
        dims => bail!("{OP}: expected a weight (D, C) of widths above 0, got {dims:?}"),
    };
    if xs.dims().last() != Some(&input) {
        bail!("{OP}: expected (.., {input}), got {:?}", xs.dims())
    }
    if let Some(bias) = bias
        && bias.dims() != [output]
    {
        bail!("{OP}: expected a bias ({output}), got {:?}", bias.dims())
    }
    same_dtype(OP, xs, &[("weight", Some(weight)), ("bias", bias)])?;
    let tracked = xs.track_op() || weight.track_op() || bias.is_some_and(Tensor::track_op);
    let slopes = (tracked && activation != Activation::Identity).then(Slopes::default);
    let op = Linear { widths: Widths { input, output }, activation, slopes };
    in_native(xs, |xs| {
        let (xs, weight) = (xs.contiguous()?, native(weight, xs)?);
        if !xs.device().is_cpu() {
            let bias = bias.map(|bias| native(bias, &xs)).transpose()?;
            return on_device(&xs, &weight, bias.as_ref(), activation);
        }
        match bias {
            Some(bias) => xs.apply_op3(&weight, &native(bias, &xs)?, op),
            None => xs.apply_op2(&weight, op),
        }
    })
}

/// [`linear`] off the CPU: one product of matrices, and what follows it.
fn on_device(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (output, input) = weight.dims2()?;
    let rows = xs.elem_count() / input;
    if rows == 0 {
        // A product of empty matrices is an error to candle.
        return reference::linear(xs, weight, bias, activation);
    }
    let mut dims = xs.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = output;
    }
    let ys = xs.reshape((rows, input))?.matmul(&weight.t()?)?;
    let ys = match bias {
        Some(bias) => ys.broadcast_add(bias)?,
        None => ys,
    };
    activate(&ys.reshape(dims)?, activation)
}

/// Slopes of the activation, from the forward to the backward pass.
type Slopes = Arc<Mutex<Option<CpuStorage>>>;

struct Linear {
    widths: Widths,
    activation: Activation,
    /// Absent where no backward pass can follow or none needs them.
    slopes: Option<Slopes>,
}

/// Where a backward pass finds or puts what belongs to one input.
type Input<'a> = (&'a CpuStorage, &'a Layout);

impl Linear {
    fn run(
        &self,
        xs: Input<'_>,
        weight: Input<'_>,
        bias: Option<Input<'_>>,
    ) -> Result<(CpuStorage, Shape)> {
        let out = match xs.0 {
            CpuStorage::F32(_) => self.forward::<f32>(xs, weight, bias)?,
            CpuStorage::F64(_) => self.forward::<f64>(xs, weight, bias)?,
            _ => return Err(unsupported(OP, xs.0)),
        };
        let mut dims = xs.1.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.widths.output;
        }
        Ok((out, dims.into()))
    }

    fn forward<T: Real>(
        &self,
        xs: Input<'_>,
        weight: Input<'_>,
        bias: Option<Input<'_>>,
    ) -> Result<CpuStorage> {
        let bias = bias.map(|(s, l)| dense::<T>(OP, s, l)).transpose()?;
        let (xs, weight) = (dense::<T>(OP, xs.0, xs.1)?, dense::<T>(OP, weight.0, weight.1)?);
        let keep = self.slopes.is_some();
        let (ys, kept) = cpu::forward(xs, weight, bias, self.widths, self.activation, keep);
        if let Some(slot) = &self.slopes
            && let Ok(mut slot) = slot.lock()
        {
            *slot = kept.map(T::to_cpu_storage_owned);
        }
        Ok(T::to_cpu_storage_owned(ys))
    }

    fn gradients(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let grad = grad.contiguous()?;
        match xs.dtype() {
            DType::F32 => self.backward::<f32>(xs, weight, bias, &grad),
            _ => self.backward::<f64>(xs, weight, bias, &grad),
        }
    }

    fn backward<T: Real>(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let w = self.widths;
        let sums = bias.is_some_and(Tensor::track_op);
        let slopes = self.slopes::<T>(xs, weight, bias)?;
        let [dxs, dw, db] = with_slices::<T, _, 3>(OP, [xs, weight, grad], |[x, wt, g]| {
            let mut db = None;
            let scaled;
            let g = match slopes {
                Some(mut slopes) => {
                    let columns = cpu::scale_by(&mut slopes, g, w.output, sums);
                    db = sums.then_some(columns);
                    scaled = slopes;
                    &scaled
                }
                None => {
                    if sums {
                        db = Some(cpu::column_sums(g, w.output));
                    }
                    g
                }
            };
            let dxs = xs.track_op().then(|| cpu::input_gradient(g, wt, w));
            let dw = weight.track_op().then(|| cpu::weight_gradient(g, x, w));
            Ok([dxs, dw, db])
        })?;
        let tensor = |values: Option<Vec<T>>, dims: &[usize]| {
            values.map(|values| Tensor::from_vec(values, dims, xs.device())).transpose()
        };
        Ok([tensor(dxs, xs.dims())?, tensor(dw, weight.dims())?, tensor(db, &[w.output])?])
    }

    /// The kept slopes, or, where an earlier backward pass has used them up, the same again.
    fn slopes<T: Real>(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Option<Vec<T>>> {
        let Some(slot) = &self.slopes else { return Ok(None) };
        // A lock is only poisoned by a panic, after which nothing is worth keeping.
        if let Some(kept) = slot.lock().ok().and_then(|mut slot| slot.take()) {
            return T::cpu_storage_data(kept).map(Some);
        }
        let again = |[x, wt]: [&[T]; 2], b: Option<&[T]>| {
            cpu::forward(x, wt, b, self.widths, self.activation, true).1
        };
        match bias {
            Some(b) => {
                with_slices::<T, _, 3>(OP, [xs, weight, b], |[x, w, b]| Ok(again([x, w], Some(b))))
            }
            None => with_slices::<T, _, 2>(OP, [xs, weight], |x| Ok(again(x, None))),
        }
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((s1, l1), (s2, l2), None)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dxs, dw, _] = self.gradients(xs, weight, None, grad)?;
        Ok((dxs, dw))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((s1, l1), (s2, l2), Some((s3, l3)))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dxs, dw, db] = self.gradients(xs, weight, Some(bias), grad)?;
        Ok((dxs, dw, db))
    }
}

#[cfg(test)]
mod tests {
    use super::{linear, on_device};
    use crate::ops::Activation;
    use candle_core::{DType, Result, Var};
    use vkd_testkit::{Tolerance, assert_close, normal};

    #[test]
    fn the_device_path_is_the_cpu_s_op() -> Result<()> {
        for dims in [vec![5], vec![3, 5], vec![2, 3, 5]] {
            let var = |dims: &[usize], seed| Var::from_tensor(&normal(dims, DType::F64, seed)?);
            let (xs, weight, bias) = (var(&dims, 1)?, var(&[4, 5], 2)?, var(&[4], 3)?);
            for act in [Activation::Identity, Activation::Gelu] {
                let want = linear(&xs, &weight, Some(&bias), act)?;
                let got = on_device(&xs, &weight, Some(&bias), act)?;
                assert_close("value", &got, &want, Tolerance::relative(1e-13))?;
                let g = normal(want.dims(), DType::F64, 4)?;
                let (got, want) =
                    ((got * &g)?.sum_all()?.backward()?, (want * g)?.sum_all()?.backward()?);
                for var in [&xs, &weight, &bias] {
                    let (got, want) = (got.get(var).unwrap(), want.get(var).unwrap());
                    assert_close("gradient", got, want, Tolerance::relative(1e-12))?;
                }
            }
        }
        Ok(())
    }
}
