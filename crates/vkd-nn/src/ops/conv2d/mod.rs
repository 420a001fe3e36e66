//! Convolution over channels-last images.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod depthwise;
mod filters;
#[cfg(any(feature = "cuda", test))]
mod frame;
mod gathered;
mod geometry;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
#[cfg(any(feature = "cuda", test))]
pub(super) mod products;
pub(crate) mod reference;
mod sliding;

use super::window::{Window, addressable};
use super::{dense, in_native, native, same_dtype, with_dtype};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail,
};
pub(super) use geometry::Geometry;

/// Stride, padding and dilation of a convolution as (rows, columns), and its groups. The default is a dense convolution
/// of stride one without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Step of the window in pixels.
    pub stride: (usize, usize),
    /// Zeros added on each side.
    pub padding: (usize, usize),
    /// Distance of neighbouring taps in pixels.
    pub dilation: (usize, usize),
    /// Number of groups of channels that don't see each other.
    pub groups: usize,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 }
    }
}

impl Conv2dConfig {
    pub(crate) fn window(&self, kernel: (usize, usize)) -> Window {
        Window {
            kernel: kernel.into(),
            stride: self.stride.into(),
            padding: self.padding.into(),
            dilation: self.dilation.into(),
        }
    }
}

/// Convolution with bias.
///
/// # Shapes
/// - `xs`: `(B, H, W, C)`, channels last, any strides; f32 or f64, or a half type [through f32](crate::ops)
/// - `weight`: `(O, C / groups, kh, kw)`, PyTorch's
/// - `bias`: `(O)`
/// - output: `(B, H', W', O)`, contiguous, with `H' = (H + 2·padding − dilation·(kh − 1) − 1) / stride + 1`
///
/// # Gradient
/// Flows to all of them; none is computed for images or filters that nobody tracks. The backward pass reads the inputs
/// again and keeps nothing.
///
/// # Numerics
/// Windows are gathered by the block at most, never for a whole image. Every sum has an order that the sizes fix: the
/// bits don't depend on the number of threads.
///
/// On a CUDA device half types are not cast: products sum in f32, and what is gathered, multiplied or added up is rounded to the type.
/// Windows are gathered for as many images at a time as keep them below 256 MiB, for one at least.
///
/// # Errors
/// Other shapes, sizes of zero (but of batch and image), groups that don't divide the channels, a window larger than the
/// padded image, a result that memory can't address, different dtypes, a dtype other than f64, f32, bf16 and f16.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use vkd_nn::{Conv2dConfig, ops};
/// let xs = Tensor::ones((1, 4, 4, 2), DType::F32, &Device::Cpu)?;
/// let weight = Tensor::ones((3, 2, 3, 3), DType::F32, &Device::Cpu)?;
/// let config = Conv2dConfig { padding: (1, 1), ..Conv2dConfig::default() };
/// let ys = ops::conv2d(&xs, &weight, None, config)?;
/// assert_eq!(ys.dims(), [1, 4, 4, 3]);
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?[0], 8.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
) -> Result<Tensor> {
    apply(xs, weight, bias, config, false)
}

/// `relu(conv2d(..))` in one op, which saves two passes over the result and one over its gradient.
///
/// The backward pass reads from the result where the gradient goes through: where it is above zero.
///
/// # Errors
/// Those of [`conv2d`].
pub fn conv2d_relu(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
) -> Result<Tensor> {
    apply(xs, weight, bias, config, true)
}

fn apply(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
    relu: bool,
) -> Result<Tensor> {
    let op = Conv { geometry: geometry_of("conv2d", xs, weight, bias, config)?, relu };
    same_dtype("conv2d", xs, &[("weight", Some(weight)), ("bias", bias)])?;
    #[cfg(feature = "cuda")]
    if vkd_norm::program::applies(xs) {
        let kind = if relu { products::Kind::ConvRelu } else { products::Kind::Conv };
        return cuda::convolution(op.geometry, kind, xs, weight, bias);
    }
    in_native(xs, |xs| {
        let (xs, weight) = (xs.contiguous()?, native(weight, xs)?);
        if !xs.device().is_cpu() {
            let bias = bias.map(|bias| native(bias, &xs)).transpose()?;
            let ys = reference::conv2d(&xs, &weight, bias.as_ref(), config)?;
            return if relu { crate::ops::relu(&ys) } else { Ok(ys) };
        }
        match bias {
            Some(bias) => xs.apply_op3(&weight, &native(bias, &xs)?, op),
            None => xs.apply_op2(&weight, op),
        }
    })
}

/// The sizes of a convolution, checked.
fn geometry_of(
    what: &str,
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
) -> Result<Geometry> {
    let ([batch, h, w, c], [o, cg, kh, kw]) = (xs.dims(), weight.dims()) else {
        bail!(
            "{what}: expected (B, H, W, C) and (O, C / groups, kh, kw), got {:?} and {:?}",
            xs.dims(),
            weight.dims()
        )
    };
    let groups = config.groups;
    if groups == 0 || *cg == 0 || *o == 0 || cg.checked_mul(groups) != Some(*c) || o % groups != 0 {
        bail!(
            "{what}: expected {c} channels and {o} filters in {groups} groups of {cg} channels, got {:?} and {:?}",
            xs.dims(),
            weight.dims()
        )
    }
    if let Some(bias) = bias
        && bias.dims() != [*o]
    {
        bail!("{what}: expected a bias of {o}, got {:?}", bias.dims())
    }
    let window = config.window((*kh, *kw));
    let [rows, cols] = window.counts(what, [*h, *w], false)?;
    addressable(what, &[*batch, rows, cols, *o])?;
    Ok(Geometry { batch: *batch, input: [*h, *w, *c], output: [rows, cols, *o], window, groups })
}

fn shape(batch: usize, [h, w, c]: [usize; 3]) -> Shape {
    Shape::from((batch, h, w, c))
}

/// The convolution.
struct Conv {
    geometry: Geometry,
    /// Whether negative results become zero.
    relu: bool,
}

/// The gradient that a ReLU with this result lets through: of result and gradient.
struct ReluGrad;

/// Its adjoint in the images: of `grad` and `weight`, and a bias where it is a layer of its own.
pub(super) struct InputGrad {
    pub(super) geometry: Geometry,
}

/// Its adjoint in the filters: of `xs` and `grad`.
pub(super) struct WeightGrad {
    pub(super) geometry: Geometry,
}

/// Sum over all pixels.
pub(super) struct PixelSums;

impl Conv {
    fn run(
        &self,
        [(s1, l1), (s2, l2)]: [(&CpuStorage, &Layout); 2],
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let (g, name) = (&self.geometry, "conv2d");
        let out = with_dtype!(name, s1, T => {
            let bias = bias.map(|(s, l)| dense::<T>(name, s, l)).transpose()?;
            let mut out = cpu::forward(g, dense::<T>(name, s1, l1)?, dense(name, s2, l2)?, bias);
            if self.relu {
                cpu::relu(&mut out);
            }
            out
        });
        Ok((out, shape(g.batch, g.output)))
    }

    /// The gradient of the convolution's own result.
    fn let_through_no_grad(&self, ys: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let grad = grad.contiguous()?;
        if self.relu { ys.apply_op2_no_bwd(&grad, &ReluGrad) } else { Ok(grad) }
    }

    fn adjoints_no_grad(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let geometry = self.geometry;
        let xs_grad = match xs.track_op() {
            true => Some(grad.apply_op2_no_bwd(weight, &InputGrad { geometry })?),
            false => None,
        };
        let weight_grad = match weight.track_op() {
            true => Some(xs.apply_op2_no_bwd(grad, &WeightGrad { geometry })?),
            false => None,
        };
        Ok((xs_grad, weight_grad))
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run([(s1, l1), (s2, l2)], None)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.adjoints_no_grad(xs, weight, &self.let_through_no_grad(ys, grad)?)
    }
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
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
        self.run([(s1, l1), (s2, l2)], Some((s3, l3)))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = self.let_through_no_grad(ys, grad)?;
        let (xs_grad, weight_grad) = self.adjoints_no_grad(xs, weight, &grad)?;
        let bias_grad = match bias.track_op() {
            true => Some(grad.apply_op1_no_bwd(&PixelSums)?),
            false => None,
        };
        Ok((xs_grad, weight_grad, bias_grad))
    }
}

impl CustomOp2 for ReluGrad {
    fn name(&self) -> &'static str {
        "conv2d-relu-grad"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        let out = with_dtype!(name, s1, T => {
            cpu::relu_grad(dense::<T>(name, s1, l1)?, dense(name, s2, l2)?)
        });
        Ok((out, l1.shape().clone()))
    }
}

impl CustomOp2 for InputGrad {
    fn name(&self) -> &'static str {
        "conv2d-input-grad"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (g, name) = (&self.geometry, self.name());
        let out = with_dtype!(name, s1, T => {
            cpu::input_grad(g, dense::<T>(name, s1, l1)?, dense(name, s2, l2)?, None)
        });
        Ok((out, shape(g.batch, g.input)))
    }
}

impl CustomOp2 for WeightGrad {
    fn name(&self) -> &'static str {
        "conv2d-weight-grad"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (g, name) = (&self.geometry, self.name());
        let out = with_dtype!(name, s1, T => {
            cpu::weight_grad(g, dense::<T>(name, s1, l1)?, dense(name, s2, l2)?)
        });
        let [kh, kw] = g.window.kernel;
        Ok((out, Shape::from((g.output[2], g.input[2] / g.groups, kh, kw))))
    }
}

impl CustomOp1 for PixelSums {
    fn name(&self) -> &'static str {
        "conv2d-bias-grad"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (width, name) = (l.dims().last().copied().unwrap_or(0), self.name());
        let out = with_dtype!(name, s, T => cpu::column_sums(dense::<T>(name, s, l)?, width));
        Ok((out, width.into()))
    }
}
