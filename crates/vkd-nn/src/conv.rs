//! Convolution over channels-last images.

use crate::{add_bias, unfold2d};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// Stride and zero padding of a [`Conv2d`], both for rows and columns alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Step of the window in pixels.
    pub stride: usize,
    /// Zeros added on each side.
    pub padding: usize,
}

/// Convolution `(B, H, W, C)` to `(B, H', W', C')`, as one gather of windows and one matrix product.
///
/// Channels come last, because then a window is a few contiguous runs and the product needs no transposition. The
/// weight keeps PyTorch's shape `(C', C, kernel, kernel)`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    config: Conv2dConfig,
}

/// Creates a [`Conv2d`] with variables `weight` (normal, standard deviation `sqrt(2 / fan_in)`: He et al.,
/// arXiv:1502.01852) and `bias` (zero).
///
/// # Errors
/// A zero width, kernel or stride.
pub fn conv2d(
    in_channels: usize,
    out_channels: usize,
    kernel: usize,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    if in_channels == 0 || out_channels == 0 || kernel == 0 || config.stride == 0 {
        bail!(
            "conv2d {}: expected sizes above 0, got {in_channels} -> {out_channels} channels, kernel {kernel}, stride {}",
            vb.prefix(),
            config.stride
        )
    }
    let stdev = (2. / (in_channels * kernel * kernel) as f64).sqrt();
    let weight = vb.get_with_hints(
        (out_channels, in_channels, kernel, kernel),
        "weight",
        Init::Randn { mean: 0., stdev },
    )?;
    Ok(Conv2d { weight, bias: vb.get_with_hints(out_channels, "bias", Init::Const(0.))?, config })
}

impl Module for Conv2d {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (out_channels, in_channels, kernel, _) = self.weight.dims4()?;
        match xs.dims() {
            [_, _, _, c] if *c == in_channels => {}
            dims => bail!("conv2d: expected (B, H, W, {in_channels}), got {dims:?}"),
        }
        let windows = unfold2d(xs, kernel, self.config.stride, self.config.padding)?;
        let (b, h, w, width) = windows.dims4()?;
        let weight = self.weight.permute((2, 3, 1, 0))?.reshape((width, out_channels))?;
        let ys = windows.reshape((b * h * w, width))?.matmul(&weight)?;
        add_bias(&ys, &self.bias)?.reshape((b, h, w, out_channels))
    }
}
