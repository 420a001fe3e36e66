//! The projection discriminator.

use super::DiscriminatorConfig;
use super::layers::{MapAttention, NORMAL, SpectralConv, SpectralLinear};
use crate::model::{channels_last, named_tap};
use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::collections::BTreeMap;
use vkd_nn::{Context, Pool2dConfig, SpectralNorm, avg_pool2d, gather_rows, relu, spectral_norm};

/// Result of one forward pass of a [`Discriminator`].
#[derive(Clone, Debug)]
pub struct DiscriminatorOutput {
    /// Score `(B)`: high for what looks real.
    pub score: Tensor,
    /// Features by name: grids `(B, C, H, W)`, and `pooled` and `head` `(B, C)`.
    pub taps: BTreeMap<String, Tensor>,
}

impl DiscriminatorOutput {
    /// The features of tap `name`.
    ///
    /// # Errors
    /// An unknown name; the message lists the known ones.
    pub fn tap(&self, name: &str) -> Result<&Tensor> {
        named_tap("discriminator", &self.taps, name)
    }
}

/// BigGAN's discriminator for small images (Brock et al., arXiv:1809.11096) with the class by projection (Miyato and Koyama,
/// arXiv:1802.05637): the score is `linear(h) + ⟨embed[class], h⟩`, `h` the sum over all places of the last block's ReLU.
///
/// A block is ReLU (but in the first), 3×3 convolution, ReLU, 3×3 convolution, plus its input, through a 1×1 convolution where the
/// width changes or the block halves the map by averages. All weights have [spectral norm](vkd_nn::SpectralNorm) and start normal
/// with standard deviation 0.02. There is no batch norm: a sample's score depends on no other sample.
///
/// Variables have the names of BigGAN's code: `blocks.I.0.{conv1,conv2,conv_sc}`, `linear` and `linear_cls_1` and on (the `head`'s) with
/// `{weight,bias,u0,sv0}`, `embed.{weight,u0,sv0}`, and `blocks.I.1` with `{theta,phi,g,o}.{weight,u0,sv0}` and `gamma`.
///
/// Taps: `block1` and on, `pooled` (that is `h`), and `head`.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use vkd_models::{Discriminator, DiscriminatorConfig};
/// use vkd_nn::{Context, VarStore};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let discriminator = Discriminator::new(&DiscriminatorConfig::digits(), 1, 10, store.builder())?;
/// let images = Tensor::zeros((2, 1, 8, 8), DType::F32, &Device::Cpu)?;
/// let output = discriminator.forward(&images, &Tensor::new(&[3u32, 7], &Device::Cpu)?, &Context::eval())?;
/// assert_eq!((output.score.dims(), output.tap("pooled")?.dims()), (&[2][..], &[2, 32][..]));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct Discriminator {
    channels: usize,
    /// Sides must be multiples of this.
    step: usize,
    blocks: Vec<Block>,
    linear: SpectralLinear,
    embed: Tensor,
    embed_norm: SpectralNorm,
    head: Vec<SpectralLinear>,
}

struct Block {
    first: bool,
    halves: bool,
    convs: [SpectralConv; 2],
    shortcut: Option<SpectralConv>,
    attention: Option<MapAttention>,
}

impl Block {
    fn new(
        config: &DiscriminatorConfig,
        i: usize,
        channels: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let (width, layers) = (config.width, vb.pp("0"));
        let from = if i == 0 { channels } else { width };
        let conv = |from, kernel, name| SpectralConv::new([from, width], kernel, layers.pp(name));
        let halves = i < config.halvings;
        let attention = config.attention.contains(&i);
        Ok(Self {
            first: i == 0,
            halves,
            convs: [conv(from, 3, "conv1")?, conv(width, 3, "conv2")?],
            shortcut: (halves || from != width).then(|| conv(from, 1, "conv_sc")).transpose()?,
            attention: attention.then(|| MapAttention::new(width, vb.pp("1"))).transpose()?,
        })
    }

    fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let smaller = |xs: Tensor| match self.halves {
            true => avg_pool2d(&xs, Pool2dConfig::new(2)),
            false => Ok(xs),
        };
        let branch = if self.first { xs.clone() } else { relu(xs)? };
        let branch = self.convs[0].forward_relu(&branch, train)?;
        let branch = smaller(self.convs[1].forward(&branch, train)?)?;
        // An average of a 1×1 convolution is the convolution of the average, for a quarter of the work.
        let shortcut = smaller(xs.clone())?;
        let shortcut = match &self.shortcut {
            Some(conv) => conv.forward(&shortcut, train)?,
            None => shortcut,
        };
        let ys = (branch + shortcut)?;
        match &self.attention {
            Some(attention) => attention.forward(&ys, train),
            None => Ok(ys),
        }
    }
}

impl Discriminator {
    /// Builds the network for images of so many channels under `vb`.
    ///
    /// # Errors
    /// A zero size, more than twelve blocks, more halvings than blocks, or attention after a block that there isn't.
    pub fn new(
        config: &DiscriminatorConfig,
        channels: usize,
        classes: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        config.check(channels, classes)?;
        let width = config.width;
        let (blocks, embed) = (vb.pp("blocks"), vb.pp("embed"));
        let mut head = Vec::new();
        let mut from = width;
        for (i, &to) in config.head.iter().enumerate() {
            let name = format!("linear_cls_{}", i + 1);
            head.push(SpectralLinear::new([from, to], vb.pp(name))?);
            from = to;
        }
        Ok(Self {
            channels,
            step: 1 << config.halvings,
            blocks: (0..config.blocks)
                .map(|i| Block::new(config, i, channels, blocks.pp(i)))
                .collect::<Result<_>>()?,
            linear: SpectralLinear::new([width, 1], vb.pp("linear"))?,
            embed: embed.get_with_hints((classes, width), "weight", NORMAL)?,
            embed_norm: spectral_norm(classes, embed)?,
            head,
        })
    }

    /// Images `(B, channels, H, W)` and their classes `(B)`, u32, to scores and taps; in training the power iterations move.
    ///
    /// # Errors
    /// Another shape, a side that the halvings don't divide, a class beyond the classes, and those of the layers.
    pub fn forward(
        &self,
        images: &Tensor,
        labels: &Tensor,
        ctx: &Context,
    ) -> Result<DiscriminatorOutput> {
        let mut xs = channels_last("discriminator", images, self.channels)?.contiguous()?;
        let (batch, height, width, _) = xs.dims4()?;
        if height == 0 || width == 0 || height % self.step != 0 || width % self.step != 0 {
            bail!(
                "discriminator: expected images with sides that {} divides, got {height} by {width}",
                self.step
            )
        }
        if labels.dims() != [batch] {
            bail!("discriminator: expected {batch} classes, got {:?}", labels.dims())
        }
        let mut taps = BTreeMap::new();
        for (i, block) in self.blocks.iter().enumerate() {
            xs = block.forward(&xs, ctx.train)?;
            taps.insert(format!("block{}", i + 1), xs.permute((0, 3, 1, 2))?);
        }
        let pooled = relu(&xs)?.sum((1, 2))?;
        let table = self.embed_norm.forward(&self.embed, ctx.train)?;
        let projection = (gather_rows(&table, labels)? * &pooled)?.sum(1)?;
        let score = (self.linear.forward(&pooled, ctx.train)?.squeeze(1)? + projection)?;
        if !self.head.is_empty() {
            let head =
                self.head.iter().try_fold(pooled.clone(), |xs, map| map.forward(&xs, ctx.train));
            taps.insert("head".to_owned(), head?);
        }
        taps.insert("pooled".to_owned(), pooled);
        Ok(DiscriminatorOutput { score, taps })
    }
}
