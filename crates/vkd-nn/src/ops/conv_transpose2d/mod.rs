//! Transposed convolution over channels-last images.

pub(crate) mod reference;

use super::conv2d::{Conv2dConfig, Geometry, PixelSums, WeightGrad, cpu};
use super::window::addressable;
use super::{dense, in_native, native, same_dtype, with_dtype};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// Stride, padding and dilation of a transposed convolution as (rows, columns), and its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvTranspose2dConfig {
    /// Distance of two inputs' windows in the result.
    pub stride: (usize, usize),
    /// Pixels cut off on each side of the result.
    pub padding: (usize, usize),
    /// Pixels added to the end of the result, below stride or dilation: it picks one of the sizes whose convolution has
    /// the input's.
    pub output_padding: (usize, usize),
    /// Distance of neighbouring taps in pixels.
    pub dilation: (usize, usize),
    /// Number of groups of channels that don't see each other.
    pub groups: usize,
}

impl Default for ConvTranspose2dConfig {
    fn default() -> Self {
        Self {
            stride: (1, 1),
            padding: (0, 0),
            output_padding: (0, 0),
            dilation: (1, 1),
            groups: 1,
        }
    }
}

impl ConvTranspose2dConfig {
    /// The convolution whose adjoint this is.
    fn conv(&self) -> Conv2dConfig {
        Conv2dConfig {
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
        }
    }

    /// Refuses zeros, and an output padding that would leave rows without any input.
    pub(crate) fn check(&self, what: &str, kernel: (usize, usize)) -> Result<()> {
        self.conv().window(kernel).check(what)?;
        let fits = |output: usize, stride: usize, dilation: usize| output < stride.max(dilation);
        let (o, s, d) = (self.output_padding, self.stride, self.dilation);
        if !fits(o.0, s.0, d.0) || !fits(o.1, s.1, d.1) {
            bail!("{what}: expected output padding below stride or dilation, got {self:?}")
        }
        Ok(())
    }
}

/// Transposed convolution with bias: the adjoint of [`crate::ops::conv2d`] in the images, as a layer.
///
/// # Shapes
/// - `xs`: `(B, H, W, C)`, channels last, any strides; f32 or f64, or a half type [through f32](crate::ops)
/// - `weight`: `(C, O / groups, kh, kw)`, PyTorch's
/// - `bias`: `(O)`
/// - output: `(B, H', W', O)`, contiguous, with
///   `H' = (H − 1)·stride − 2·padding + dilation·(kh − 1) + output_padding + 1`
///
/// # Gradient
/// Flows to all of them: to the images by the convolution, to the filters by its filter gradient.
///
/// # Errors
/// Other shapes, an empty image, sizes of zero (but of the batch), groups that don't divide the channels, more padding
/// than result, an output padding not below stride or dilation, different dtypes, a dtype other than f64, f32, bf16 and f16.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use vkd_nn::{ConvTranspose2dConfig, ops};
/// let xs = Tensor::ones((1, 2, 2, 1), DType::F32, &Device::Cpu)?;
/// let weight = Tensor::ones((1, 1, 2, 2), DType::F32, &Device::Cpu)?;
/// let config = ConvTranspose2dConfig { stride: (2, 2), ..ConvTranspose2dConfig::default() };
/// let ys = ops::conv_transpose2d(&xs, &weight, None, config)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [1.; 16]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv_transpose2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: ConvTranspose2dConfig,
) -> Result<Tensor> {
    let op = ConvTranspose { geometry: geometry_of(xs, weight, bias, config)? };
    same_dtype("conv_transpose2d", xs, &[("weight", Some(weight)), ("bias", bias)])?;
    #[cfg(feature = "cuda")]
    if vkd_norm::program::applies(xs) {
        let kind = super::conv2d::products::Kind::Transposed;
        return super::conv2d::cuda::convolution(op.geometry, kind, xs, weight, bias);
    }
    in_native(xs, |xs| {
        let (xs, weight) = (xs.contiguous()?, native(weight, xs)?);
        if !xs.device().is_cpu() {
            let bias = bias.map(|bias| native(bias, &xs)).transpose()?;
            return reference::conv_transpose2d(&xs, &weight, bias.as_ref(), config);
        }
        match bias {
            Some(bias) => xs.apply_op3(&weight, &native(bias, &xs)?, op),
            None => xs.apply_op2(&weight, op),
        }
    })
}

/// The sizes of the convolution from the result to `xs`, checked.
pub(super) fn geometry_of(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: ConvTranspose2dConfig,
) -> Result<Geometry> {
    let what = "conv_transpose2d";
    let ([batch, h, w, c], [filters, og, kh, kw]) = (xs.dims(), weight.dims()) else {
        bail!(
            "{what}: expected (B, H, W, C) and (C, O / groups, kh, kw), got {:?} and {:?}",
            xs.dims(),
            weight.dims()
        )
    };
    let groups = config.groups;
    let width = og.checked_mul(groups).filter(|o| *o > 0);
    let (Some(o), true) = (width, filters == c && *c > 0 && groups > 0 && c % groups == 0) else {
        bail!(
            "{what}: expected {c} channels above 0 in {groups} groups, got {:?} and {:?}",
            xs.dims(),
            weight.dims()
        )
    };
    if let Some(bias) = bias
        && bias.dims() != [o]
    {
        bail!("{what}: expected a bias of {o}, got {:?}", bias.dims())
    }
    config.check(what, (*kh, *kw))?;
    let window = config.conv().window((*kh, *kw));
    let output_padding: [usize; 2] = config.output_padding.into();
    let size = |axis: usize, size: usize| {
        let spread = size.checked_sub(1)?.checked_mul(window.stride[axis])?;
        let full = spread.checked_add(window.span(axis)?)?.checked_add(output_padding[axis])?;
        full.checked_sub(window.padding[axis].checked_mul(2)?).filter(|size| *size > 0)
    };
    let (Some(rows), Some(cols)) = (size(0, *h), size(1, *w)) else {
        bail!("{what}: expected a result of at least one pixel, got {config:?} on {:?}", xs.dims())
    };
    addressable(what, &[*batch, rows, cols, o])?;
    Ok(Geometry { batch: *batch, input: [rows, cols, o], output: [*h, *w, *c], window, groups })
}

/// The adjoint of a convolution in its images.
struct ConvTranspose {
    geometry: Geometry,
}

/// The convolution itself: the adjoint of the adjoint.
struct Conv {
    geometry: Geometry,
}

impl ConvTranspose {
    fn run(
        &self,
        [(s1, l1), (s2, l2)]: [(&CpuStorage, &Layout); 2],
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let (g, name) = (&self.geometry, "conv_transpose2d");
        let out = with_dtype!(name, s1, T => {
            let bias = bias.map(|(s, l)| dense::<T>(name, s, l)).transpose()?;
            cpu::input_grad(g, dense::<T>(name, s1, l1)?, dense(name, s2, l2)?, bias)
        });
        let [h, w, c] = g.input;
        Ok((out, Shape::from((g.batch, h, w, c))))
    }

    fn adjoints_no_grad(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let geometry = self.geometry;
        let xs_grad = match xs.track_op() {
            true => Some(grad.apply_op2_no_bwd(weight, &Conv { geometry })?),
            false => None,
        };
        let weight_grad = match weight.track_op() {
            true => Some(grad.apply_op2_no_bwd(xs, &WeightGrad { geometry })?),
            false => None,
        };
        Ok((xs_grad, weight_grad))
    }
}

impl CustomOp2 for ConvTranspose {
    fn name(&self) -> &'static str {
        "conv_transpose2d"
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
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.adjoints_no_grad(xs, weight, &grad.contiguous()?)
    }
}

impl CustomOp3 for ConvTranspose {
    fn name(&self) -> &'static str {
        "conv_transpose2d"
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
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (xs_grad, weight_grad) = self.adjoints_no_grad(xs, weight, &grad)?;
        let bias_grad = match bias.track_op() {
            true => Some(grad.apply_op1_no_bwd(&PixelSums)?),
            false => None,
        };
        Ok((xs_grad, weight_grad, bias_grad))
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv_transpose2d-input-grad"
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
            cpu::forward(g, dense::<T>(name, s1, l1)?, dense(name, s2, l2)?, None)
        });
        let [h, w, c] = g.output;
        Ok((out, Shape::from((g.batch, h, w, c))))
    }
}
