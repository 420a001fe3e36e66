//! Convolutions over channels-last images.

use crate::BatchNorm2d;
use crate::ops::{self, Conv2dConfig, ConvTranspose2dConfig};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// Convolution `(B, H, W, C)` to `(B, H', W', O)`; see [`ops::conv2d`].
///
/// Channels come last, because then a window is a few contiguous runs and the product needs no transposition. The
/// weight keeps PyTorch's shape `(O, C / groups, kh, kw)`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv2dConfig,
}

/// Creates a [`Conv2d`] with variables `weight` (normal, standard deviation `sqrt(2 / fan_in)`: He et al.,
/// arXiv:1502.01852) and `bias` (zero). The kernel is square.
///
/// # Errors
/// A zero width, kernel, stride or dilation, or groups that don't divide the channels.
pub fn conv2d(
    in_channels: usize,
    out_channels: usize,
    kernel: usize,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let bias = vb.clone();
    let layer = conv2d_no_bias(in_channels, out_channels, kernel, config, vb)?;
    Ok(Conv2d { bias: Some(bias.get_with_hints(out_channels, "bias", Init::Const(0.))?), ..layer })
}

/// As [`conv2d`], without a bias.
///
/// # Errors
/// Those of [`conv2d`].
pub fn conv2d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel: usize,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    conv2d_rect_no_bias(in_channels, out_channels, (kernel, kernel), config, vb)
}

/// As [`conv2d_no_bias`], with a kernel of (rows, columns).
///
/// # Errors
/// Those of [`conv2d`].
pub fn conv2d_rect_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel: (usize, usize),
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let what = format!("conv2d {}", vb.prefix());
    divide(&what, in_channels, out_channels, config.groups)?;
    config.window(kernel).check(&what)?;
    let fan_in = in_channels / config.groups;
    let (rows, columns) = kernel;
    let stdev = (2. / (fan_in * rows * columns) as f64).sqrt();
    let weight = vb.get_with_hints(
        (out_channels, fan_in, rows, columns),
        "weight",
        Init::Randn { mean: 0., stdev },
    )?;
    Ok(Conv2d { weight, bias: None, config })
}

impl Conv2d {
    /// This and the norm behind it, as it is in evaluation, as one convolution: two passes over the images less.
    ///
    /// # Gradient
    /// To the weights and biases of both.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn with_norm(&self, norm: &BatchNorm2d) -> Result<Self> {
        let (scale, shift) = norm.affine()?;
        let weight = self.weight.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?;
        let bias = match &self.bias {
            Some(bias) => ((bias * scale)? + shift)?,
            None => shift,
        };
        Ok(Self { weight, bias: Some(bias), config: self.config })
    }

    /// `relu(forward(xs))` in one op.
    ///
    /// # Errors
    /// Those of [`ops::conv2d_relu`].
    pub fn forward_relu(&self, xs: &Tensor) -> Result<Tensor> {
        ops::conv2d_relu(xs, &self.weight, self.bias.as_ref(), self.config)
    }
}

impl Module for Conv2d {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::conv2d(xs, &self.weight, self.bias.as_ref(), self.config)
    }
}

/// Transposed convolution `(B, H, W, C)` to `(B, H', W', O)`; see [`ops::conv_transpose2d`].
///
/// The weight keeps PyTorch's shape `(C, O / groups, kh, kw)`.
#[derive(Clone, Debug)]
pub struct ConvTranspose2d {
    weight: Tensor,
    bias: Tensor,
    config: ConvTranspose2dConfig,
}

/// Creates a [`ConvTranspose2d`] with variables `weight` (normal, standard deviation `sqrt(2 / fan_in)` with the inputs
/// that reach one result on average: `C / groups · kernel² / stride²`) and `bias` (zero). The kernel is square.
///
/// # Errors
/// A zero width, kernel, stride or dilation, groups that don't divide the channels, or an output padding that is not
/// below stride or dilation.
pub fn conv_transpose2d(
    in_channels: usize,
    out_channels: usize,
    kernel: usize,
    config: ConvTranspose2dConfig,
    vb: VarBuilder,
) -> Result<ConvTranspose2d> {
    let what = format!("conv_transpose2d {}", vb.prefix());
    divide(&what, in_channels, out_channels, config.groups)?;
    config.check(&what, (kernel, kernel))?;
    let skipped = config.stride.0.saturating_mul(config.stride.1);
    let fan_in = (in_channels / config.groups * kernel * kernel) as f64 / skipped as f64;
    let weight = vb.get_with_hints(
        (in_channels, out_channels / config.groups, kernel, kernel),
        "weight",
        Init::Randn { mean: 0., stdev: (2. / fan_in).sqrt() },
    )?;
    let bias = vb.get_with_hints(out_channels, "bias", Init::Const(0.))?;
    Ok(ConvTranspose2d { weight, bias, config })
}

impl Module for ConvTranspose2d {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::conv_transpose2d(xs, &self.weight, Some(&self.bias), self.config)
    }
}

fn divide(what: &str, in_channels: usize, out_channels: usize, groups: usize) -> Result<()> {
    if in_channels == 0 || out_channels == 0 {
        bail!("{what}: expected channels above 0, got {in_channels} -> {out_channels}")
    }
    if groups == 0 || !in_channels.is_multiple_of(groups) || !out_channels.is_multiple_of(groups) {
        bail!(
            "{what}: expected groups that divide {in_channels} and {out_channels} channels, got {groups}"
        )
    }
    Ok(())
}
