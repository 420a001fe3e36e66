//! Layers with spectral norm, and self-attention over a map.

use super::config::attention_widths;
use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use vkd_nn::{
    Activation, Conv2dConfig, Pool2dConfig, SpectralNorm, max_pool2d, ops, softmax, spectral_norm,
};

/// First values of every weight, as BigGAN's code calls them N02.
pub(super) const NORMAL: Init = Init::Randn { mean: 0., stdev: 0.02 };

/// A square convolution that keeps the size, channels last.
pub(super) struct SpectralConv {
    weight: Tensor,
    bias: Option<Tensor>,
    norm: SpectralNorm,
    config: Conv2dConfig,
}

impl SpectralConv {
    pub(super) fn new(channels: [usize; 2], kernel: usize, vb: VarBuilder) -> Result<Self> {
        let bias = vb.get_with_hints(channels[1], "bias", Init::Const(0.))?;
        Ok(Self { bias: Some(bias), ..Self::without_bias(channels, kernel, vb)? })
    }

    pub(super) fn without_bias(
        [from, to]: [usize; 2],
        kernel: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let padding = (kernel / 2, kernel / 2);
        Ok(Self {
            weight: vb.get_with_hints((to, from, kernel, kernel), "weight", NORMAL)?,
            bias: None,
            norm: spectral_norm(to, vb)?,
            config: Conv2dConfig { padding, ..Conv2dConfig::default() },
        })
    }

    pub(super) fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        ops::conv2d(xs, &self.norm.forward(&self.weight, train)?, self.bias.as_ref(), self.config)
    }

    pub(super) fn forward_relu(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let weight = self.norm.forward(&self.weight, train)?;
        ops::conv2d_relu(xs, &weight, self.bias.as_ref(), self.config)
    }
}

/// A linear map of rows.
pub(super) struct SpectralLinear {
    weight: Tensor,
    bias: Option<Tensor>,
    norm: SpectralNorm,
}

impl SpectralLinear {
    pub(super) fn new(widths: [usize; 2], vb: VarBuilder) -> Result<Self> {
        let bias = vb.get_with_hints(widths[1], "bias", Init::Const(0.))?;
        Ok(Self { bias: Some(bias), ..Self::without_bias(widths, vb)? })
    }

    pub(super) fn without_bias([from, to]: [usize; 2], vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints((to, from), "weight", NORMAL)?,
            bias: None,
            norm: spectral_norm(to, vb)?,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let weight = self.norm.forward(&self.weight, train)?;
        ops::linear(xs, &weight, self.bias.as_ref(), Activation::Identity)
    }
}

/// Self-attention over the places of a map (Zhang et al., arXiv:1805.08318), keys and values pooled 2×2; it starts at nothing, as
/// `gamma` is zero at first.
pub(super) struct MapAttention {
    theta: SpectralConv,
    phi: SpectralConv,
    g: SpectralConv,
    o: SpectralConv,
    gamma: Tensor,
}

impl MapAttention {
    pub(super) fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        let [keys, values] = attention_widths(width);
        let conv = |channels, name: &str| SpectralConv::without_bias(channels, 1, vb.pp(name));
        Ok(Self {
            theta: conv([width, keys], "theta")?,
            phi: conv([width, keys], "phi")?,
            g: conv([width, values], "g")?,
            o: conv([values, width], "o")?,
            gamma: vb.get_with_hints((), "gamma", Init::Const(0.))?,
        })
    }

    /// `(B, H, W, C)` to the same.
    pub(super) fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let (batch, height, width, _) = xs.dims4()?;
        let pooled = |conv: &SpectralConv| -> Result<Tensor> {
            max_pool2d(&conv.forward(xs, train)?, Pool2dConfig::new(2))?.flatten(1, 2)
        };
        let queries = self.theta.forward(xs, train)?.flatten(1, 2)?;
        let scores = queries.matmul(&pooled(&self.phi)?.transpose(1, 2)?.contiguous()?)?;
        let found = softmax(&scores)?.matmul(&pooled(&self.g)?)?;
        let found = self.o.forward(&found.reshape((batch, height, width, ()))?, train)?;
        xs + found.broadcast_mul(&self.gamma)?
    }
}
