//! A compact anchor-free detector: FCOS on a small convolutional body.

use crate::ModelCost;
use crate::conv_norm::strided;
use crate::cost::recorded;
use crate::model::{at_least_one, channels_last, named_tap};
use candle_core::{Module, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vkd_nn::{Conv2d, Conv2dConfig, LayerNorm, conv2d, layer_norm, relu, upsample_nearest2d};

/// Probability of every class at the start, so that the many places without an object don't drown the others (focal loss,
/// arXiv:1708.02002): the bias is `-log((1 - p) / p)`.
const PRIOR: f64 = 0.01;

/// Standard deviation of the first weights of a prediction, as in RetinaNet and FCOS.
const STDEV: f64 = 0.01;

/// Largest logarithm of a distance over its stride: e^8 strides are beyond any image, and a wild weight stays finite.
const FARTHEST: f64 = 8.;

/// Stride of the first stage.
const FIRST: usize = 4;

/// Sizes of an [`Fcos`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FcosConfig {
    /// Channels of the stem, at stride 2.
    pub stem: usize,
    /// Channels of each stage: the first at stride 4, each later one at twice the stride before it. Each is a level.
    pub widths: Vec<usize>,
    /// Residual blocks of each stage.
    pub depth: usize,
    /// Channels of the neck and the heads.
    pub neck: usize,
    /// 3×3 convolutions of each head before its prediction.
    pub head_depth: usize,
}

/// Width and stride of a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridShape {
    /// Channels.
    pub width: usize,
    /// Pixels of the image from one place to the next.
    pub stride: usize,
}

/// What a dense detector predicts on one level of its pyramid; place `(x, y)` of a map stands for the pixel
/// `((x + 0.5) · stride, (y + 0.5) · stride)`.
#[derive(Clone, Debug)]
pub struct DenseLevel {
    /// Class logits `(B, K, h, w)`, for a sigmoid each: there is no class for the background.
    pub logits: Tensor,
    /// Distances `(B, 4, h, w)` of the place to the left, top, right and bottom side of its box, in pixels, at least 0.
    pub distances: Tensor,
    /// Logits `(B, 1, h, w)` of how near the place lies to the middle of its box.
    pub centerness: Tensor,
    /// Pixels from one place to the next.
    pub stride: usize,
}

/// Result of one forward pass of a dense detector.
#[derive(Clone, Debug)]
pub struct DenseOutput {
    /// Predictions, finest level first.
    pub levels: Vec<DenseLevel>,
    /// Features by name, grids `(B, C, h, w)`; [`FcosConfig::taps`] has their strides.
    pub taps: BTreeMap<String, Tensor>,
}

impl DenseOutput {
    /// The features of tap `name`.
    ///
    /// # Errors
    /// An unknown name; the message lists the known ones.
    pub fn tap(&self, name: &str) -> Result<&Tensor> {
        named_tap("detector", &self.taps, name)
    }
}

impl FcosConfig {
    /// For the scenes of digits: 78 thousand parameters, and 9.5 million multiply-adds on 64×64 grey pixels.
    pub fn student() -> Self {
        Self { stem: 12, widths: vec![16, 24, 32], depth: 1, neck: 24, head_depth: 1 }
    }

    /// For the scenes of digits: 760 thousand parameters, and 65 million multiply-adds on 64×64 grey pixels.
    pub fn teacher() -> Self {
        Self { stem: 16, widths: vec![32, 64, 96], depth: 2, neck: 48, head_depth: 2 }
    }

    /// Shape of each tap: `stage1` and on of the body, `neck1` and on of the neck, finest first.
    pub fn taps(&self) -> BTreeMap<String, GridShape> {
        let levels = self.widths.iter().enumerate().flat_map(|(i, &width)| {
            let shape = |width| GridShape { width, stride: stride(i) };
            [
                (format!("stage{}", i + 1), shape(width)),
                (format!("neck{}", i + 1), shape(self.neck)),
            ]
        });
        levels.collect()
    }

    /// Name and shape of every variable, without allocating any.
    ///
    /// # Errors
    /// Those of [`Fcos::new`].
    pub fn variables(&self, channels: usize, classes: usize) -> Result<BTreeMap<String, Shape>> {
        recorded(|vb| Fcos::new(self, channels, classes, vb))
    }

    /// Parameters, and the multiply-adds of one image of `size` (height, width), without building the model.
    ///
    /// # Errors
    /// Those of [`Fcos::new`].
    ///
    /// # Example
    /// ```
    /// use vkd_models::FcosConfig;
    /// let cost = FcosConfig::student().cost(1, 10, [64, 64])?;
    /// assert_eq!((cost.parameters, cost.multiply_adds), (77_634, 9_484_416));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn cost(&self, channels: usize, classes: usize, size: [usize; 2]) -> Result<ModelCost> {
        let variables = self.variables(channels, classes)?;
        let parameters = variables.values().map(Shape::elem_count).sum();
        // A weight does as many multiply-adds at each place as it has values; gains of norms are none.
        let maps = variables.iter().filter(|(n, s)| n.ends_with(".weight") && s.rank() > 1);
        let multiply_adds = maps.map(|(n, s)| s.elem_count() * self.places(size, n)).sum();
        Ok(ModelCost { parameters, multiply_adds })
    }

    /// How often the weight `name` is applied to one image.
    fn places(&self, size: [usize; 2], name: &str) -> usize {
        // Convolutions of stride two, one after the other.
        let halved = |times: usize| size.map(|side| (0..times).fold(side, |s, _| strided(s, 2)));
        let level = |i: usize| halved(i + 2).iter().product::<usize>();
        let at = |part: &str| part.parse::<usize>().map_or(0, level);
        match name.split('.').collect::<Vec<_>>()[..] {
            ["stem", ..] => halved(1).iter().product(),
            ["stages", i, ..] | ["neck", _, i, ..] => at(i),
            _ => (0..self.widths.len()).map(level).sum(),
        }
    }
}

/// Pixels from one place of level `i` to the next.
fn stride(i: usize) -> usize {
    FIRST << i
}

/// A 3×3 convolution and layer norm over the channels of each place.
struct ConvLayer {
    conv: Conv2d,
    norm: LayerNorm,
}

impl ConvLayer {
    fn new(channels: [usize; 2], stride: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            conv: conv2d(channels[0], channels[1], 3, three(stride), vb.pp("conv"))?,
            norm: layer_norm(channels[1], 1e-6, vb.pp("norm"))?,
        })
    }
}

impl Module for ConvLayer {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(xs)?)
    }
}

/// A 3×3 convolution that keeps the size over its stride.
fn three(stride: usize) -> Conv2dConfig {
    Conv2dConfig { stride: (stride, stride), padding: (1, 1), ..Conv2dConfig::default() }
}

/// The convolution of a prediction: small weights, so that it starts at its bias.
fn prediction(input: usize, output: usize, bias: f64, vb: VarBuilder) -> Result<Conv2d> {
    // The first request of a variable decides its value, so these come before the layer's own.
    let weight = Init::Randn { mean: 0., stdev: STDEV };
    vb.get_with_hints((output, input, 3, 3), "weight", weight)?;
    vb.get_with_hints(output, "bias", Init::Const(bias))?;
    conv2d(input, output, 3, three(1), vb)
}

/// ReLU layers one after the other.
fn chain(layers: &[ConvLayer], xs: &Tensor) -> Result<Tensor> {
    layers.iter().try_fold(xs.clone(), |xs, layer| relu(&layer.forward(&xs)?))
}

struct Stage {
    down: ConvLayer,
    blocks: Vec<[ConvLayer; 2]>,
}

impl Stage {
    fn new(channels: [usize; 2], depth: usize, vb: VarBuilder) -> Result<Self> {
        let width = channels[1];
        let block = |j: usize| {
            let vb = vb.pp("blocks").pp(j);
            let layer = |k: usize| ConvLayer::new([width, width], 1, vb.pp(k));
            Ok([layer(0)?, layer(1)?])
        };
        Ok(Self {
            down: ConvLayer::new(channels, 2, vb.pp("down"))?,
            blocks: (0..depth).map(block).collect::<Result<_>>()?,
        })
    }
}

impl Module for Stage {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = relu(&self.down.forward(xs)?)?;
        for [first, second] in &self.blocks {
            let branch = second.forward(&relu(&first.forward(&xs)?)?)?;
            xs = relu(&(xs + branch)?)?;
        }
        Ok(xs)
    }
}

/// One level of the neck.
struct Neck {
    lateral: Conv2d,
    smooth: ConvLayer,
}

/// FCOS (Tian et al., arXiv:1904.01355): every place of every level predicts classes, the box around it and how central it is.
///
/// The body is a strided convolution and residual stages, the neck a top-down pyramid, and the two heads are shared by all
/// levels. Every convolution is followed by layer norm over the channels of a place, which works the same in training and
/// evaluation and for any batch. There is no mask: images of a batch are padded to the largest, and predictions whose field of
/// view reaches into the padding differ from those of the image alone. A distance is `stride · exp(scale · x)` with a learnt scale for
/// each level.
///
/// Variables: `stem`, `stages.I.down`, `stages.I.blocks.J.{0,1}`, `neck.smooth.I`, `head.class_tower.J`, `head.box_tower.J`, each
/// with `conv.{weight,bias}` and `norm.{weight,bias}`; `neck.lateral.I`, `head.logits`, `head.distances` and `head.centerness` with
/// `{weight,bias}`; `head.scales.I`.
///
/// Taps: `stage1` and on, `neck1` and on, finest first.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use vkd_models::{Fcos, FcosConfig};
/// use vkd_nn::VarStore;
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let detector = Fcos::new(&FcosConfig::student(), 1, 10, store.builder())?;
/// let output = detector.forward(&Tensor::zeros((2, 1, 64, 48), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(output.levels[0].logits.dims(), [2, 10, 16, 12]);
/// assert_eq!(output.levels[2].distances.dims(), [2, 4, 4, 3]);
/// assert_eq!(output.tap("neck2")?.dims(), [2, 24, 8, 6]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct Fcos {
    channels: usize,
    stem: ConvLayer,
    stages: Vec<Stage>,
    neck: Vec<Neck>,
    class_tower: Vec<ConvLayer>,
    box_tower: Vec<ConvLayer>,
    logits: Conv2d,
    distances: Conv2d,
    centerness: Conv2d,
    scales: Vec<Tensor>,
}

impl Fcos {
    /// Builds the network for images of so many channels under `vb`.
    ///
    /// # Errors
    /// No stages, more than eight, or a zero size; a depth of zero is none.
    pub fn new(
        config: &FcosConfig,
        channels: usize,
        classes: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let sizes = [
            ("channels", channels),
            ("classes", classes),
            ("stem", config.stem),
            ("neck", config.neck),
            ("widths", config.widths.iter().copied().min().unwrap_or(0)),
        ];
        at_least_one("fcos", &sizes)?;
        if config.widths.len() > 8 {
            bail!("fcos: widths: expected at most 8 stages, got {}", config.widths.len())
        }
        let (mut stages, mut neck, mut before) = (Vec::new(), Vec::new(), config.stem);
        for (i, &width) in config.widths.iter().enumerate() {
            stages.push(Stage::new([before, width], config.depth, vb.pp("stages").pp(i))?);
            let vb = vb.pp("neck");
            let lateral =
                conv2d(width, config.neck, 1, Conv2dConfig::default(), vb.pp("lateral").pp(i))?;
            let smooth = ConvLayer::new([config.neck; 2], 1, vb.pp("smooth").pp(i))?;
            neck.push(Neck { lateral, smooth });
            before = width;
        }
        let head = vb.pp("head");
        let tower = |name: &str| {
            let layer = |j: usize| ConvLayer::new([config.neck; 2], 1, head.pp(name).pp(j));
            (0..config.head_depth).map(layer).collect::<Result<Vec<_>>>()
        };
        let scale = |i: usize| head.pp("scales").get_with_hints(1, &i.to_string(), Init::Const(1.));
        let bias = -((1. - PRIOR) / PRIOR).ln();
        Ok(Self {
            channels,
            stem: ConvLayer::new([channels, config.stem], 2, vb.pp("stem"))?,
            class_tower: tower("class_tower")?,
            box_tower: tower("box_tower")?,
            logits: prediction(config.neck, classes, bias, head.pp("logits"))?,
            distances: prediction(config.neck, 4, 0., head.pp("distances"))?,
            centerness: prediction(config.neck, 1, 0., head.pp("centerness"))?,
            scales: (0..config.widths.len()).map(scale).collect::<Result<_>>()?,
            stages,
            neck,
        })
    }

    /// Images `(B, channels, H, W)` of any size to predictions and taps. A level of stride s is `⌈H / s⌉` by `⌈W / s⌉` places.
    ///
    /// # Errors
    /// Images of another shape.
    pub fn forward(&self, images: &Tensor) -> Result<DenseOutput> {
        let mut xs = relu(&self.stem.forward(&channels_last("fcos", images, self.channels)?)?)?;
        let mut stages = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            xs = stage.forward(&xs)?;
            stages.push(xs.clone());
        }
        let mut taps = BTreeMap::new();
        let mut levels = Vec::with_capacity(stages.len());
        let mut above: Option<Tensor> = None;
        for (i, (stage, neck)) in stages.iter().zip(&self.neck).enumerate().rev() {
            let mut merged = neck.lateral.forward(stage)?;
            if let Some(above) = &above {
                let (_, height, width, _) = merged.dims4()?;
                merged = (merged + upsample_nearest2d(above, (height, width))?)?;
            }
            let features = relu(&neck.smooth.forward(&merged)?)?;
            above = Some(merged);
            levels.push(self.level(i, &features)?);
            taps.insert(format!("stage{}", i + 1), channels_first(stage)?);
            taps.insert(format!("neck{}", i + 1), channels_first(&features)?);
        }
        levels.reverse();
        Ok(DenseOutput { levels, taps })
    }

    /// Both heads on the features of level `i`.
    fn level(&self, i: usize, features: &Tensor) -> Result<DenseLevel> {
        let classes = chain(&self.class_tower, features)?;
        let boxes = chain(&self.box_tower, features)?;
        let far = self.distances.forward(&boxes)?.broadcast_mul(&self.scales[i])?;
        let distances = (far.minimum(FARTHEST)?.exp()? * stride(i) as f64)?;
        Ok(DenseLevel {
            logits: channels_first(&self.logits.forward(&classes)?)?,
            distances: channels_first(&distances)?,
            centerness: channels_first(&self.centerness.forward(&boxes)?)?,
            stride: stride(i),
        })
    }
}

fn channels_first(xs: &Tensor) -> Result<Tensor> {
    xs.permute((0, 3, 1, 2))
}
