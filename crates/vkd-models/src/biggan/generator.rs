//! The generator.

use super::GeneratorConfig;
use super::layers::{MapAttention, NORMAL, SpectralConv, SpectralLinear};
use candle_core::{D, Device, Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use vkd_nn::{
    BatchNormConfig, BatchStatistics, ConditionalBatchNorm2d, Context, Embedding,
    conditional_batch_norm2d, embedding, gather_rows, relu, upsample_nearest2d,
};

/// BigGAN's generator for small images (Brock et al., arXiv:1809.11096): noise and class to an image.
///
/// A linear map makes a map of `bottom` pixels a side; each block doubles it: class-conditional batch norm, ReLU, nearest-neighbour
/// upsampling, 3×3 convolution, batch norm, ReLU, 3×3 convolution, plus a 1×1 convolution of the upsampled input. Batch norm, ReLU, a
/// convolution and tanh make the image. Every convolution and linear map has [spectral norm](vkd_nn::SpectralNorm). Weights start
/// normal with standard deviation 0.02, biases at zero; a gain is one more than its table or map says.
///
/// Variables have the names of BigGAN's code: `linear`, `blocks.I.0.{conv1,conv2,conv_sc}`, `output_layer.2`, with
/// `{weight,bias,u0,sv0}`; `blocks.I.0.{bn1,bn2}` with `{gain,bias}.weight`, `stored_mean` and `stored_var` (and `{gain,bias}.{u0,sv0}` where
/// the embedding is shared); `output_layer.0` with `gain`, `bias` and statistics; `shared.weight`; `blocks.I.1` with
/// `{theta,phi,g,o}.{weight,u0,sv0}` and `gamma`.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use vkd_models::{Generator, GeneratorConfig};
/// use vkd_nn::{Context, VarStore};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let config = GeneratorConfig::digits();
/// let generator = Generator::new(&config, 1, 10, store.builder())?;
/// let noise = Tensor::zeros((2, config.noise), DType::F32, &Device::Cpu)?;
/// let images = generator.forward(&noise, &Tensor::new(&[3u32, 7], &Device::Cpu)?, &Context::eval())?;
/// assert_eq!(images.dims(), [2, 1, 8, 8]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct Generator {
    config: GeneratorConfig,
    classes: usize,
    shared: Option<Embedding>,
    linear: SpectralLinear,
    blocks: Vec<Block>,
    gain: Tensor,
    bias: Tensor,
    norm: ConditionalBatchNorm2d,
    output: SpectralConv,
}

struct Block {
    norms: [ClassNorm; 2],
    convs: [SpectralConv; 2],
    shortcut: SpectralConv,
    attention: Option<MapAttention>,
}

/// Batch norm with the gain and bias of a condition.
struct ClassNorm {
    norm: ConditionalBatchNorm2d,
    gain: Condition,
    bias: Condition,
}

/// From a condition to one number a channel.
enum Condition {
    /// A row for each class.
    Table(Tensor),
    /// Of the shared embedding.
    Linear(SpectralLinear),
}

/// What the batch norms of a pass are given.
struct Pass<'a> {
    labels: &'a Tensor,
    /// Noise of the block and embedding, where it is shared.
    condition: Option<Tensor>,
    train: bool,
    statistics: &'a BatchStatistics,
}

impl Condition {
    fn new(condition: Option<usize>, classes: usize, width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(match condition {
            None => Self::Table(vb.get_with_hints((classes, width), "weight", NORMAL)?),
            Some(from) => Self::Linear(SpectralLinear::without_bias([from, width], vb)?),
        })
    }

    fn forward(&self, pass: &Pass) -> Result<Tensor> {
        match (self, &pass.condition) {
            (Self::Table(table), _) => gather_rows(table, pass.labels),
            (Self::Linear(map), Some(condition)) => map.forward(condition, pass.train),
            (Self::Linear(_), None) => bail!("generator: expected a shared embedding, got none"),
        }
    }
}

impl ClassNorm {
    fn new(condition: Option<usize>, classes: usize, width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm: conditional_batch_norm2d(width, BatchNormConfig::default(), vb.clone())?,
            gain: Condition::new(condition, classes, width, vb.pp("gain"))?,
            bias: Condition::new(condition, classes, width, vb.pp("bias"))?,
        })
    }

    /// The norm, and the ReLU that always follows.
    fn forward_relu(&self, xs: &Tensor, pass: &Pass) -> Result<Tensor> {
        let gain = (self.gain.forward(pass)? + 1.)?;
        self.norm.forward_relu(xs, &gain, &self.bias.forward(pass)?, pass.statistics)
    }
}

impl Block {
    fn new(config: &GeneratorConfig, i: usize, classes: usize, vb: VarBuilder) -> Result<Self> {
        let (width, layers) = (config.width, vb.pp("0"));
        let condition = config.shared.map(|shared| shared + config.parts()[1]);
        let norm = |name| ClassNorm::new(condition, classes, width, layers.pp(name));
        let conv = |kernel, name| SpectralConv::new([width, width], kernel, layers.pp(name));
        let attention = config.attention.contains(&i);
        Ok(Self {
            norms: [norm("bn1")?, norm("bn2")?],
            convs: [conv(3, "conv1")?, conv(3, "conv2")?],
            shortcut: conv(1, "conv_sc")?,
            attention: attention.then(|| MapAttention::new(width, vb.pp("1"))).transpose()?,
        })
    }

    fn forward(&self, xs: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (_, height, width, _) = xs.dims4()?;
        let doubled = |xs: &Tensor| upsample_nearest2d(xs, (2 * height, 2 * width));
        let [first, second] = &self.norms;
        let branch = doubled(&first.forward_relu(xs, pass)?)?;
        let branch = self.convs[0].forward(&branch, pass.train)?;
        let branch = second.forward_relu(&branch, pass)?;
        let branch = self.convs[1].forward(&branch, pass.train)?;
        // Copies of a 1×1 convolution are the convolution of copies, for a quarter of the work.
        let ys = (branch + doubled(&self.shortcut.forward(xs, pass.train)?)?)?;
        match &self.attention {
            Some(attention) => attention.forward(&ys, pass.train),
            None => Ok(ys),
        }
    }
}

impl Generator {
    /// Builds the network for images of so many channels under `vb`.
    ///
    /// # Errors
    /// A zero size, more than twelve stages, attention after a block that there isn't, or noise by blocks without a shared embedding or in
    /// parts of different size.
    pub fn new(
        config: &GeneratorConfig,
        channels: usize,
        classes: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        config.check(channels, classes)?;
        let (width, [first, _]) = (config.width, config.parts());
        let blocks = vb.pp("blocks");
        let output = vb.pp("output_layer");
        let shared = |width| embedding(classes, width, NORMAL, vb.pp("shared"));
        Ok(Self {
            config: config.clone(),
            classes,
            shared: config.shared.map(shared).transpose()?,
            linear: SpectralLinear::new([first, width * config.bottom.pow(2)], vb.pp("linear"))?,
            blocks: (0..config.stages)
                .map(|i| Block::new(config, i, classes, blocks.pp(i)))
                .collect::<Result<_>>()?,
            gain: output.pp("0").get_with_hints(width, "gain", Init::Const(1.))?,
            bias: output.pp("0").get_with_hints(width, "bias", Init::Const(0.))?,
            norm: conditional_batch_norm2d(width, BatchNormConfig::default(), output.pp("0"))?,
            output: SpectralConv::new([width, channels], 3, output.pp("2"))?,
        })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        self.gain.device()
    }

    /// Noise `(B, noise)` and classes `(B)`, u32, to images `(B, channels, S, S)` from -1 to 1.
    ///
    /// In training the batch's statistics are used and the stored ones and the power iterations move; in evaluation the stored ones
    /// are used and nothing moves.
    ///
    /// # Errors
    /// Another shape, a class beyond the classes, and those of the layers.
    pub fn forward(&self, noise: &Tensor, labels: &Tensor, ctx: &Context) -> Result<Tensor> {
        let statistics = match (ctx.train, &ctx.replicas) {
            (true, Some(replicas)) => BatchStatistics::Synchronised(replicas.clone()),
            (true, None) => BatchStatistics::Moving,
            (false, _) => BatchStatistics::Stored,
        };
        self.run(noise, labels, ctx.train, &statistics)
    }

    /// As [`forward`](Self::forward) with the batch's statistics, and nothing moves: how the published evaluations sample an averaged
    /// generator, whose stored statistics are another's.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn sample(&self, noise: &Tensor, labels: &Tensor) -> Result<Tensor> {
        self.run(noise, labels, false, &BatchStatistics::Batch)
    }

    /// Numbers of noise for each image.
    pub fn noise(&self) -> usize {
        self.config.noise
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    fn run(
        &self,
        noise: &Tensor,
        labels: &Tensor,
        train: bool,
        statistics: &BatchStatistics,
    ) -> Result<Tensor> {
        let (batch, width) = noise.dims2()?;
        if width != self.config.noise || labels.dims() != [batch] {
            bail!(
                "generator: expected noise ({batch}, {}) and as many classes, got {:?} and {:?}",
                self.config.noise,
                noise.dims(),
                labels.dims()
            )
        }
        let [first, part] = self.config.parts();
        let embedded = self.shared.as_ref().map(|table| table.forward(labels)).transpose()?;
        let xs = self.linear.forward(&noise.narrow(1, 0, first)?.contiguous()?, train)?;
        let bottom = self.config.bottom;
        let xs = xs.reshape((batch, self.config.width, bottom, bottom))?;
        let mut xs = xs.permute((0, 2, 3, 1))?.contiguous()?;
        for (i, block) in self.blocks.iter().enumerate() {
            let condition = match &embedded {
                Some(embedded) if part > 0 => {
                    let own = noise.narrow(1, first + i * part, part)?;
                    Some(Tensor::cat(&[embedded, &own], D::Minus1)?)
                }
                other => other.clone(),
            };
            xs = block.forward(&xs, &Pass { labels, condition, train, statistics })?;
        }
        let xs = relu(&self.norm.affine(&xs, &self.gain, &self.bias, statistics)?)?;
        self.output.forward(&xs, train)?.tanh()?.permute((0, 3, 1, 2))?.contiguous()
    }
}
