//! A pre-norm sub-layer of a transformer as one op.
//!
//! candle's tape adds up the gradient of every op's input in passes of its own: zeros, then a sum into new memory. Inside
//! one op there are no such passes, the residual is the start of the second product's sums, and buffers serve twice.

mod cpu;
pub(crate) mod reference;
mod tokens;

use super::{
    Activation, Real, dense, in_native, linear, multi_head_attention, native, unsupported,
};
use candle_core::{
    CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, WithDType, bail,
};
use cpu::{Kept, Parameters};
use std::any::Any;
use std::sync::{Arc, Mutex};
use tokens::{Gradients, token};
use vkd_norm::dense::with_slices;

const OP: &str = "sublayer";

/// What stands between the two affine maps of a [`sublayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// An activation.
    Mlp(Activation),
    /// Attention on queries, keys and values packed as in [`multi_head_attention`](crate::multi_head_attention).
    Attention {
        /// Number of heads.
        heads: usize,
    },
}

/// `x + scale · (body(norm(x) · w_inᵀ + b_in) · w_outᵀ + b_out)`: layer norm, first map, body, second map and residual
/// of a pre-norm transformer in one op.
///
/// # Shapes
/// - `xs`: `(B, .., C)`, `(B, N, C)` for attention; any strides; f32 or f64, or a half type
///   [through f32](crate::ops)
/// - `parameters`: gain `(C)` and shift `(C)` of the norm, `w_in` `(H, C)`, `b_in` `(H)`, `w_out` `(C, G)`, `b_out` `(C)`;
///   `G = H` for an MLP, `H = 3·C` and `G = C` for attention
/// - `scale`: one factor for each of the B samples, as stochastic depth draws them; 1 where absent
/// - output: the shape of `xs`, contiguous
///
/// # Gradient
/// Flows to `xs` and to every tracked parameter; nothing is computed for the others. The op keeps the normalised input, the
/// body's output and what the body's own gradient needs, until the backward pass frees them; a second one computes them
/// again. The softmax matrix is never kept.
///
/// # Numerics
/// Those of the parts: `vkd_norm::layer_norm_affine`, [`linear`](crate::ops::linear), and the body's.
///
/// # Errors
/// Other shapes, an `eps` that is not finite or under the smallest normal f32, heads that don't divide `C`, a scale that is
/// not finite, different dtypes, a dtype other than f64, f32, bf16 and f16.
pub fn sublayer(
    xs: &Tensor,
    parameters: [&Tensor; 6],
    body: Body,
    eps: f64,
    scale: Option<&[f64]>,
) -> Result<Tensor> {
    let plan = plan(xs, parameters, body, eps, scale)?;
    if !xs.device().is_cpu() {
        return on_device(xs, parameters, body, eps, scale);
    }
    in_native(xs, |xs| {
        let xs = xs.contiguous()?;
        let mut dense = parameters.map(Clone::clone);
        for parameter in &mut dense {
            *parameter = native(parameter, &xs)?;
        }
        let gradients = Gradients::default();
        let (first, second) =
            (token(&dense[..3], 0, &gradients)?, token(&dense[3..], 3, &gradients)?);
        let tracked = xs.track_op() || dense.iter().any(Tensor::track_op);
        let kept = tracked.then(Slot::default);
        xs.apply_op3(&first, &second, Sublayer { plan, parameters: dense, gradients, kept })
    })
}

/// [`sublayer`] off the CPU, from the ops that it is made of, each by its kernel where it has one.
fn on_device(
    xs: &Tensor,
    [gain, shift, w_in, b_in, w_out, b_out]: [&Tensor; 6],
    body: Body,
    eps: f64,
    scale: Option<&[f64]>,
) -> Result<Tensor> {
    let normed = vkd_norm::layer_norm_affine(xs, gain, shift, eps)?;
    let hidden = match body {
        Body::Mlp(activation) => linear(&normed, w_in, Some(b_in), activation)?,
        Body::Attention { heads } => {
            let qkv = linear(&normed, w_in, Some(b_in), Activation::Identity)?;
            multi_head_attention(&qkv, None, heads)?
        }
    };
    let branch = linear(&hidden, w_out, Some(b_out), Activation::Identity)?;
    let Some(scale) = scale else { return xs + branch };
    let mut dims = vec![1; xs.rank()];
    if let Some(first) = dims.first_mut() {
        *first = scale.len();
    }
    let scale = Tensor::from_slice(scale, dims, &Device::Cpu)?.to_dtype(xs.dtype())?;
    xs + branch.broadcast_mul(&scale.to_device(xs.device())?)?
}

struct Plan {
    batch: usize,
    /// Rows of one sample.
    tokens: usize,
    width: usize,
    /// Widths before and after the body.
    inner: usize,
    outer: usize,
    body: Body,
    eps: f64,
    scale: Option<Vec<f64>>,
}

fn plan(
    xs: &Tensor,
    parameters: [&Tensor; 6],
    body: Body,
    eps: f64,
    scale: Option<&[f64]>,
) -> Result<Plan> {
    if !(eps >= f64::from(f32::MIN_POSITIVE) && eps.is_finite()) {
        bail!("{OP}: expected a finite eps of at least {:e}, got {eps:e}", f32::MIN_POSITIVE)
    }
    let (batch, width) = match (xs.dims(), body) {
        ([batch, _, width], Body::Attention { .. }) | ([batch, .., width], Body::Mlp(_))
            if *width > 0 =>
        {
            (*batch, *width)
        }
        (dims, body) => {
            bail!(
                "{OP}: expected (B, .., C), or (B, N, C) for attention, got {dims:?} for {body:?}"
            )
        }
    };
    let inner = parameters[2].dims().first().copied().unwrap_or(0);
    let outer = match body {
        Body::Mlp(_) => inner,
        Body::Attention { heads } => {
            if heads == 0 || !width.is_multiple_of(heads) || inner / 3 != width {
                bail!(
                    "{OP}: expected heads that divide {width} and w_in ({}, {width}), got {heads} and {:?}",
                    width.saturating_mul(3),
                    parameters[2].dims()
                )
            }
            width
        }
    };
    if inner == 0 {
        bail!("{OP}: expected a hidden width above 0, got w_in {:?}", parameters[2].dims())
    }
    let shapes: [(&str, &[usize]); 6] = [
        ("gain", &[width]),
        ("shift", &[width]),
        ("w_in", &[inner, width]),
        ("b_in", &[inner]),
        ("w_out", &[width, outer]),
        ("b_out", &[width]),
    ];
    for ((name, dims), t) in shapes.into_iter().zip(parameters) {
        if t.dims() != dims || t.dtype() != xs.dtype() {
            bail!(
                "{OP}: expected {name} {dims:?} of {:?}, got {:?} of {:?}",
                xs.dtype(),
                t.dims(),
                t.dtype()
            )
        }
    }
    if let Some(scale) = scale
        && (scale.len() != batch || !scale.iter().all(|s| s.is_finite()))
    {
        bail!("{OP}: expected {batch} finite scales, got {scale:?}")
    }
    let tokens = xs.elem_count() / (batch * width).max(1);
    let scale = scale.map(<[f64]>::to_vec);
    Ok(Plan { batch, tokens, width, inner, outer, body, eps, scale })
}

/// A [`Kept`] of the op's dtype, from the forward to the backward pass.
type Slot = Arc<Mutex<Option<Box<dyn Any + Send>>>>;

struct Sublayer {
    plan: Plan,
    parameters: [Tensor; 6],
    gradients: Gradients,
    /// Absent where no backward pass can follow.
    kept: Option<Slot>,
}

impl CustomOp3 for Sublayer {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ys = match xs {
            CpuStorage::F32(_) => f32::to_cpu_storage_owned(self.forward(dense(OP, xs, layout)?)?),
            CpuStorage::F64(_) => {
                f64::to_cpu_storage_owned(self.forward::<f64>(dense(OP, xs, layout)?)?)
            }
            _ => return Err(unsupported(OP, xs)),
        };
        Ok((ys, layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        first: &Tensor,
        second: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dxs = match xs.dtype() {
            DType::F32 => self.backward::<f32>(xs, &grad)?,
            _ => self.backward::<f64>(xs, &grad)?,
        };
        let of = |token: &Tensor| token.track_op().then(|| token.zeros_like()).transpose();
        Ok((xs.track_op().then_some(dxs), of(first)?, of(second)?))
    }
}

impl Sublayer {
    fn with_parameters<T: Real, R>(
        &self,
        f: impl FnOnce(Parameters<'_, T>) -> Result<R>,
    ) -> Result<R> {
        let tensors = self.parameters.each_ref();
        with_slices::<T, _, 6>(OP, tensors, |[gain, shift, w_in, b_in, w_out, b_out]| {
            f(Parameters { gain, shift, w_in, b_in, w_out, b_out })
        })
    }

    fn forward<T: Real>(&self, xs: &[T]) -> Result<Vec<T>> {
        let keep = self.kept.is_some();
        let (ys, kept) =
            self.with_parameters(|p| Ok(cpu::forward::<T>(xs, p, &self.plan, keep)))?;
        if let (Some(slot), Some(kept)) = (&self.kept, kept)
            && let Ok(mut slot) = slot.lock()
        {
            *slot = Some(Box::new(kept));
        }
        Ok(ys)
    }

    fn backward<T: Real>(&self, xs: &Tensor, grad: &Tensor) -> Result<Tensor> {
        // A lock is only poisoned by a panic, after which nothing is worth keeping.
        let kept = self.kept.as_ref().and_then(|slot| slot.lock().ok()?.take());
        let kept = kept.and_then(|kept| kept.downcast::<Kept<T>>().ok());
        let wanted = self.parameters.each_ref().map(Tensor::track_op);
        let (dxs, others) = with_slices::<T, _, 2>(OP, [xs, grad], |[x, g]| {
            self.with_parameters(|p| {
                let kept = match kept {
                    Some(kept) => *kept,
                    // An earlier backward pass has used it up.
                    None => match cpu::forward(x, p, &self.plan, true).1 {
                        Some(kept) => kept,
                        None => bail!("{OP}: expected the forward pass to keep its parts"),
                    },
                };
                Ok(cpu::backward(x, p, g, kept, &self.plan, wanted))
            })
        })?;
        let mut tensors = [const { None }; 6];
        for ((tensor, values), p) in tensors.iter_mut().zip(others).zip(&self.parameters) {
            *tensor = values.map(|v| Tensor::from_vec(v, p.shape(), p.device())).transpose()?;
        }
        self.gradients.put(tensors);
        Tensor::from_vec(dxs, xs.shape(), xs.device())
    }
}

#[cfg(test)]
mod tests {
    use super::{Body, on_device, sublayer};
    use crate::ops::Activation;
    use candle_core::{DType, Result, Var};
    use vkd_testkit::{Tolerance, assert_close, normal};

    #[test]
    fn the_device_path_is_the_cpu_s_op() -> Result<()> {
        let bodies = [(Body::Mlp(Activation::Silu), 8, 8), (Body::Attention { heads: 2 }, 12, 4)];
        for (body, inner, outer) in bodies {
            let var = |dims: &[usize], seed| Var::from_tensor(&normal(dims, DType::F64, seed)?);
            let xs = var(&[3, 5, 4], 1)?;
            let parameters = [
                var(&[4], 2)?,
                var(&[4], 3)?,
                var(&[inner, 4], 4)?,
                var(&[inner], 5)?,
                var(&[4, outer], 6)?,
                var(&[4], 7)?,
            ];
            let p = parameters.each_ref().map(|p| p.as_tensor());
            let scale = [1., 0., 2.];
            let want = sublayer(&xs, p, body, 1e-5, Some(&scale))?;
            let got = on_device(&xs, p, body, 1e-5, Some(&scale))?;
            assert_close("value", &got, &want, Tolerance::relative(1e-12))?;
            let g = normal(want.dims(), DType::F64, 8)?;
            let (got, want) =
                ((got * &g)?.sum_all()?.backward()?, (want * g)?.sum_all()?.backward()?);
            for var in std::iter::once(&xs).chain(&parameters) {
                let (got, want) = (got.get(var).unwrap(), want.get(var).unwrap());
                assert_close(
                    "gradient",
                    got,
                    want,
                    Tolerance { relative: 1e-10, absolute: 1e-12 },
                )?;
            }
        }
        Ok(())
    }
}
