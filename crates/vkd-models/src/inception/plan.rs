//! Inception-v3's layers as data: built, counted and run by one recursion each.

use super::InceptionVariant;
use crate::conv_norm::{ConvNorm, of_parts};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use vkd_nn::{
    Activation, BatchNormConfig, Context, Conv2dConfig, Pool2dConfig, avg_pool2d, batch_norm2d,
    conv2d_rect_no_bias, max_pool2d,
};

/// Channels of the first convolution that the numbers below belong to.
pub(super) const WIDTH: usize = 32;

/// Epsilon of the batch norms.
const EPS: f64 = 1e-3;

/// One layer, or several branches side by side.
pub(super) enum Layer {
    /// Convolution, batch norm and ReLU.
    Conv { name: String, width: usize, kernel: [usize; 2], stride: usize, padding: [usize; 2] },
    /// A pool of 3×3 pixels.
    Pool { kind: Pool, stride: usize },
    /// All of the same input, their channels one after the other.
    Branches(Vec<Vec<Layer>>),
}

/// Kind of a pool.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pool {
    Max,
    /// The padding's zeros count where it says so.
    Average {
        count_padding: bool,
    },
}

impl Pool {
    /// Padded by one pixel where it has no stride, as then the size stays.
    fn config(self, stride: usize) -> Pool2dConfig {
        let pad = usize::from(stride == 1);
        let count_padding = self != Self::Average { count_padding: false };
        Pool2dConfig {
            stride: (stride, stride),
            padding: (pad, pad),
            count_padding,
            ..Pool2dConfig::new(3)
        }
    }
}

fn layer(name: &str, width: usize, kernel: [usize; 2], stride: usize, padded: bool) -> Layer {
    let padding = kernel.map(|k| if padded { k / 2 } else { 0 });
    Layer::Conv { name: name.to_owned(), width, kernel, stride, padding }
}

/// Of the size that came.
fn conv(name: &str, width: usize, kernel: [usize; 2]) -> Layer {
    layer(name, width, kernel, 1, true)
}

/// 3×3 with stride 2, without padding.
fn halving(name: &str, width: usize) -> Layer {
    layer(name, width, [3, 3], 2, false)
}

/// Names of a block's layers after the block's own.
fn block(name: &str, branches: Vec<Vec<Layer>>) -> Layer {
    let mut block = Layer::Branches(branches);
    prefix(name, &mut block);
    block
}

fn prefix(before: &str, layer: &mut Layer) {
    match layer {
        Layer::Conv { name, .. } => *name = format!("{before}.{name}"),
        Layer::Pool { .. } => {}
        Layer::Branches(branches) => {
            branches.iter_mut().flatten().for_each(|layer| prefix(before, layer));
        }
    }
}

/// All layers before the last average, in order; torchvision's names, and its figures of blocks (arXiv:1512.00567).
pub(super) fn layers(variant: InceptionVariant) -> Vec<Layer> {
    let average = Pool::Average { count_padding: variant == InceptionVariant::Torchvision };
    let last = if variant == InceptionVariant::Fid { Pool::Max } else { average };
    let max = || Layer::Pool { kind: Pool::Max, stride: 2 };
    vec![
        halving("Conv2d_1a_3x3", 32),
        layer("Conv2d_2a_3x3", 32, [3, 3], 1, false),
        conv("Conv2d_2b_3x3", 64, [3, 3]),
        max(),
        conv("Conv2d_3b_1x1", 80, [1, 1]),
        layer("Conv2d_4a_3x3", 192, [3, 3], 1, false),
        max(),
        figure5("Mixed_5b", 32, average),
        figure5("Mixed_5c", 64, average),
        figure5("Mixed_5d", 64, average),
        block(
            "Mixed_6a",
            vec![
                vec![halving("branch3x3", 384)],
                vec![
                    conv("branch3x3dbl_1", 64, [1, 1]),
                    conv("branch3x3dbl_2", 96, [3, 3]),
                    halving("branch3x3dbl_3", 96),
                ],
                vec![max()],
            ],
        ),
        figure6("Mixed_6b", 128, average),
        figure6("Mixed_6c", 160, average),
        figure6("Mixed_6d", 160, average),
        figure6("Mixed_6e", 192, average),
        block(
            "Mixed_7a",
            vec![
                vec![conv("branch3x3_1", 192, [1, 1]), halving("branch3x3_2", 320)],
                vec![
                    conv("branch7x7x3_1", 192, [1, 1]),
                    conv("branch7x7x3_2", 192, [1, 7]),
                    conv("branch7x7x3_3", 192, [7, 1]),
                    halving("branch7x7x3_4", 192),
                ],
                vec![max()],
            ],
        ),
        figure7("Mixed_7b", average),
        figure7("Mixed_7c", last),
    ]
}

/// A branch that pools and then maps.
fn pooled(pool: Pool, width: usize) -> Vec<Layer> {
    vec![Layer::Pool { kind: pool, stride: 1 }, conv("branch_pool", width, [1, 1])]
}

/// The block of figure 5: windows of 3×3 and 5×5.
fn figure5(name: &str, last: usize, pool: Pool) -> Layer {
    block(
        name,
        vec![
            vec![conv("branch1x1", 64, [1, 1])],
            vec![conv("branch5x5_1", 48, [1, 1]), conv("branch5x5_2", 64, [5, 5])],
            vec![
                conv("branch3x3dbl_1", 64, [1, 1]),
                conv("branch3x3dbl_2", 96, [3, 3]),
                conv("branch3x3dbl_3", 96, [3, 3]),
            ],
            pooled(pool, last),
        ],
    )
}

/// The block of figure 6: windows of 7×7 as a row and a column, `inner` channels between them.
fn figure6(name: &str, inner: usize, pool: Pool) -> Layer {
    block(
        name,
        vec![
            vec![conv("branch1x1", 192, [1, 1])],
            vec![
                conv("branch7x7_1", inner, [1, 1]),
                conv("branch7x7_2", inner, [1, 7]),
                conv("branch7x7_3", 192, [7, 1]),
            ],
            vec![
                conv("branch7x7dbl_1", inner, [1, 1]),
                conv("branch7x7dbl_2", inner, [7, 1]),
                conv("branch7x7dbl_3", inner, [1, 7]),
                conv("branch7x7dbl_4", inner, [7, 1]),
                conv("branch7x7dbl_5", 192, [1, 7]),
            ],
            pooled(pool, 192),
        ],
    )
}

/// The block of figure 7: a row and a column of 3 beside each other.
fn figure7(name: &str, pool: Pool) -> Layer {
    let both = |row: &str, column: &str| {
        Layer::Branches(vec![vec![conv(row, 384, [1, 3])], vec![conv(column, 384, [3, 1])]])
    };
    block(
        name,
        vec![
            vec![conv("branch1x1", 320, [1, 1])],
            vec![conv("branch3x3_1", 384, [1, 1]), both("branch3x3_2a", "branch3x3_2b")],
            vec![
                conv("branch3x3dbl_1", 448, [1, 1]),
                conv("branch3x3dbl_2", 384, [3, 3]),
                both("branch3x3dbl_3a", "branch3x3dbl_3b"),
            ],
            pooled(pool, 192),
        ],
    )
}

/// Channels and rows, which columns are as many as, of what a layer puts out, and multiply-adds until there.
#[derive(Clone, Copy)]
pub(super) struct Reached {
    pub(super) channels: usize,
    pub(super) side: usize,
    pub(super) multiply_adds: usize,
}

impl Layer {
    /// What comes out, of a network whose first convolution has `width` channels.
    pub(super) fn reach(&self, from: Reached, width: usize) -> Reached {
        let fit = |kernel: usize, stride: usize, pad: usize| {
            (from.side + 2 * pad).saturating_sub(kernel) / stride + 1
        };
        match self {
            Self::Conv { width: own, kernel, stride, padding, .. } => {
                let channels = scaled(*own, width);
                // Rows and columns are as many, whatever the window.
                let side = fit(kernel[0], *stride, padding[0]);
                let weights = from.channels * channels * kernel[0] * kernel[1];
                let multiply_adds = from.multiply_adds + weights * side * side;
                Reached { channels, side, multiply_adds }
            }
            Self::Pool { stride, .. } => {
                Reached { side: fit(3, *stride, usize::from(*stride == 1)), ..from }
            }
            Self::Branches(branches) => {
                let mut all = Reached { channels: 0, ..from };
                for branch in branches {
                    let start = Reached { multiply_adds: 0, ..from };
                    let end = branch.iter().fold(start, |at, layer| layer.reach(at, width));
                    all.channels += end.channels;
                    all.multiply_adds += end.multiply_adds;
                    all.side = end.side;
                }
                all
            }
        }
    }
}

fn scaled(channels: usize, width: usize) -> usize {
    channels * width / WIDTH
}

/// A [`Layer`] with its weights.
pub(super) enum Step {
    Conv(ConvNorm),
    Pool(Pool, Pool2dConfig),
    Branches(Vec<Vec<Step>>),
}

impl Step {
    /// Builds a layer that sees `channels`, which become those that it puts out.
    pub(super) fn new(
        layer: &Layer,
        channels: &mut usize,
        width: usize,
        vb: &VarBuilder,
    ) -> Result<Self> {
        Ok(match layer {
            Layer::Conv { name, width: own, kernel: [rows, columns], stride, padding } => {
                let (vb, output) = (vb.pp(name), scaled(*own, width));
                let config = Conv2dConfig {
                    stride: (*stride, *stride),
                    padding: (padding[0], padding[1]),
                    ..Conv2dConfig::default()
                };
                let kernel = (*rows, *columns);
                let conv = conv2d_rect_no_bias(*channels, output, kernel, config, vb.pp("conv"))?;
                let eps = BatchNormConfig { eps: EPS, ..BatchNormConfig::default() };
                *channels = output;
                let norm = batch_norm2d(output, eps, vb.pp("bn"))?;
                Self::Conv(of_parts(conv, norm, Activation::Relu))
            }
            Layer::Pool { kind, stride } => Self::Pool(*kind, kind.config(*stride)),
            Layer::Branches(branches) => {
                let (input, mut output) = (*channels, 0);
                let mut built = Vec::with_capacity(branches.len());
                for branch in branches {
                    let mut own = input;
                    let steps = branch.iter().map(|layer| Self::new(layer, &mut own, width, vb));
                    built.push(steps.collect::<Result<Vec<_>>>()?);
                    output += own;
                }
                *channels = output;
                Self::Branches(built)
            }
        })
    }

    /// `(B, H, W, C)` to `(B, H', W', C')`, as in evaluation.
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Conv(conv) => conv.forward(xs, &Context::eval()),
            Self::Pool(Pool::Max, config) => max_pool2d(xs, *config),
            Self::Pool(Pool::Average { .. }, config) => avg_pool2d(xs, *config),
            Self::Branches(branches) => {
                let each = branches.iter().map(|steps| run(steps, xs));
                Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 3)
            }
        }
    }
}

/// All steps, one after the other.
pub(super) fn run(steps: &[Step], xs: &Tensor) -> Result<Tensor> {
    steps.iter().try_fold(xs.clone(), |xs, step| step.forward(&xs))
}
