//! Our GAN as the task takes it, and pictures of its samples.

use crate::data::Image;
use candle_core::{DType, Result, Tensor, bail};
use vkd_models::{Discriminator, Generator};
use vkd_nn::Context;
use vkd_tasks::{DiscriminatorNetwork, FeatureMap, GeneratorNetwork, Judgement, Layout};

/// A generator of vkd-models for a [`GenerationTask`](vkd_tasks::GenerationTask).
pub fn generator_network(generator: Generator) -> impl GeneratorNetwork + 'static {
    move |noise: &Tensor, labels: &Tensor, ctx: &Context| generator.forward(noise, labels, ctx)
}

/// A discriminator of vkd-models for a [`GenerationTask`](vkd_tasks::GenerationTask), with all its taps.
pub fn discriminator_network(discriminator: Discriminator) -> impl DiscriminatorNetwork + 'static {
    move |images: &Tensor, labels: &Tensor, ctx: &Context| -> Result<Judgement> {
        let output = discriminator.forward(images, labels, ctx)?;
        let tap = |(name, features): (String, Tensor)| {
            let layout = if features.rank() == 2 { Layout::Pooled } else { Layout::Grid };
            Ok((name, FeatureMap::new(features, layout)?))
        };
        let taps = output.taps.into_iter().map(tap).collect::<Result<_>>()?;
        Ok(Judgement { score: output.score, taps })
    }
}

/// Images `(N, 1 or 3, H, W)` from -1 to 1 as one picture: `columns` beside each other, row by row from the top, a black pixel between them.
/// Values beyond the range are cut; [`Image::to_png`] makes a file of it.
///
/// # Errors
/// Another shape, no image, or no column.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// let samples = Tensor::ones((5, 1, 8, 8), DType::F32, &Device::Cpu)?;
/// let grid = vkd_train::sample_grid(&samples, 3)?;
/// assert_eq!((grid.width(), grid.height()), (3 * 9 - 1, 2 * 9 - 1));
/// assert_eq!((grid.pixels()[0], grid.pixels()[8]), (255, 0));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sample_grid(images: &Tensor, columns: usize) -> Result<Image> {
    let [count, channels, height, width] = match *images.dims() {
        [n, c @ (1 | 3), h, w] if n * h * w * columns > 0 => [n, c, h, w],
        ref dims => bail!(
            "sample grid: expected images (N, 1 or 3, H, W) and columns, got {dims:?} and {columns}"
        ),
    };
    let columns = columns.min(count);
    let rows = count.div_ceil(columns);
    let (wide, high) = (columns * (width + 1) - 1, rows * (height + 1) - 1);
    let mut pixels = vec![0u8; wide * high * channels];
    let last = images.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?;
    let values = last.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
    let line = width * channels;
    for (i, source) in values.chunks_exact(line).enumerate() {
        let (image, y) = (i / height, i % height);
        let (row, column) = (image / columns, image % columns);
        let start = ((row * (height + 1) + y) * wide + column * (width + 1)) * channels;
        for (to, from) in pixels.iter_mut().skip(start).zip(source) {
            // A cast of NaN is zero.
            *to = ((from + 1.) * 127.5).round() as u8;
        }
    }
    Image::new(wide, high, channels, pixels)
}
