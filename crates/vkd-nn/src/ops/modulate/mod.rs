//! Gain and bias that each sample has for itself.

mod cpu;
pub(crate) mod reference;

use crate::ops::{Real, dense, in_native, relu, unsupported};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use vkd_norm::dense::with_slices;

/// Every channel of a sample times a gain plus a bias of this sample's: what class-conditional batch norm, FiLM and adaptive layer
/// norm end with.
///
/// `y[b, .., c] = x[b, .., c] · gain[b, c] + bias[b, c]`
///
/// # Shapes
/// - `xs`: `(B, .., C)` with `B, C >= 1`, any strides; f32 or f64, or a half type [through f32](crate::ops)
/// - `gain`, `bias`: `(B, C)`, the dtype of `xs`
/// - output: the shape of `xs`, contiguous
///
/// # Gradient
/// Flows to all three, in one pass over `xs`; of gain and bias by sums of 64 pixels in the type, which are added up in f64.
///
/// # Errors
/// Another shape or dtype.
///
/// # References
/// Perez et al., arXiv:1709.07871.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_nn::ops::modulate;
/// let xs = Tensor::new(&[[[1f32], [2.]], [[1.], [2.]]], &Device::Cpu)?;
/// let column = |a: f32, b: f32| Tensor::new(&[[a], [b]], &Device::Cpu);
/// let ys = modulate(&xs, &column(3., 10.)?, &column(0., 1.)?)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [3., 6., 11., 21.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn modulate(xs: &Tensor, gain: &Tensor, bias: &Tensor) -> Result<Tensor> {
    modulated(xs, gain, bias, false)
}

/// `relu(modulate(xs, gain, bias))` in one op; NaN stays, and the gradient at it and at exactly 0 is 0, as [`relu`]'s.
///
/// # Errors
/// Those of [`modulate`].
pub fn modulate_relu(xs: &Tensor, gain: &Tensor, bias: &Tensor) -> Result<Tensor> {
    modulated(xs, gain, bias, true)
}

fn modulated(xs: &Tensor, gain: &Tensor, bias: &Tensor, ends_in_relu: bool) -> Result<Tensor> {
    let (samples, channels) = match xs.dims() {
        [samples, .., channels] if *samples > 0 && *channels > 0 => (*samples, *channels),
        dims => bail!("modulate: expected (B, .., C) with B and C of at least 1, got {dims:?}"),
    };
    for (name, given) in [("gain", gain), ("bias", bias)] {
        if given.dims() != [samples, channels] || given.dtype() != xs.dtype() {
            bail!(
                "modulate: expected a {name} ({samples}, {channels}) of {:?}, got {:?} of {:?}",
                xs.dtype(),
                given.dims(),
                given.dtype()
            )
        }
    }
    in_native(xs, |xs| {
        let (gain, bias) = (gain.to_dtype(xs.dtype())?, bias.to_dtype(xs.dtype())?);
        if !xs.device().is_cpu() {
            let ys = reference::modulate(xs, &gain, &bias)?;
            return if ends_in_relu { relu(&ys) } else { Ok(ys) };
        }
        let op = Modulate { channels, relu: ends_in_relu };
        xs.contiguous()?.apply_op3(&gain.contiguous()?, &bias.contiguous()?, op)
    })
}

struct Modulate {
    channels: usize,
    relu: bool,
}

impl Modulate {
    fn forward<T: Real>(&self, inputs: [(&CpuStorage, &Layout); 3]) -> Result<CpuStorage> {
        let slice = |(storage, layout)| dense::<T>("modulate", storage, layout);
        let [xs, gain, bias] = inputs;
        let affine = [slice(gain)?, slice(bias)?];
        let ys = cpu::forward(slice(xs)?, affine, self.channels, self.relu);
        Ok(T::to_cpu_storage_owned(ys))
    }

    fn backward<T: Real>(&self, inputs: [&Tensor; 3], ys: &Tensor) -> Result<[Vec<T>; 3]> {
        let [xs, gain, grad] = inputs;
        with_slices::<T, _, 4>("modulate", [xs, gain, grad, ys], |[xs, gain, grad, ys]| {
            let ys = self.relu.then_some(ys);
            Ok(cpu::backward([xs, gain, grad], ys, self.channels))
        })
    }
}

impl CustomOp3 for Modulate {
    fn name(&self) -> &'static str {
        "modulate"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = [(xs, xs_layout), (gain, gain_layout), (bias, bias_layout)];
        let ys = match xs {
            CpuStorage::F32(_) => self.forward::<f32>(inputs)?,
            CpuStorage::F64(_) => self.forward::<f64>(inputs)?,
            _ => return Err(unsupported("modulate", xs)),
        };
        Ok((ys, xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let shapes = [xs.shape(), gain.shape(), bias.shape()];
        let found = match xs.dtype() {
            DType::F32 => tensors(self.backward::<f32>([xs, gain, &grad], ys)?, shapes)?,
            _ => tensors(self.backward::<f64>([xs, gain, &grad], ys)?, shapes)?,
        };
        let [dxs, dgain, dbias] = found;
        // An untracked input needs no gradient, and candle would only add it to zeros.
        Ok((
            xs.track_op().then_some(dxs),
            gain.track_op().then_some(dgain),
            bias.track_op().then_some(dbias),
        ))
    }
}

fn tensors<T: Real>(values: [Vec<T>; 3], shapes: [&Shape; 3]) -> Result<[Tensor; 3]> {
    let [a, b, c] = values;
    let tensor =
        |values, shape: &Shape| Tensor::from_vec(values, shape.clone(), &candle_core::Device::Cpu);
    Ok([tensor(a, shapes[0])?, tensor(b, shapes[1])?, tensor(c, shapes[2])?])
}
