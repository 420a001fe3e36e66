//! DiffAugment: changes of images that gradients pass through.

use candle_core::{D, Result, Tensor, bail};
use rand::Rng;
use vkd_norm::Context;

const OP: &str = "diff augment";

/// Which augmentations real and generated images get before a discriminator (Zhao et al., *Differentiable augmentation for
/// data-efficient GAN training*, arXiv:2006.10738), in the order colour, translation, cutout.
///
/// | part | draws | of |
/// | --- | --- | --- |
/// | [`brightness`], [`saturation`], [`contrast`] | u in `[0, 1)` each | image |
/// | [`translation`] | rows and columns, at most `⌊ratio · size + ½⌋` either way | image |
/// | [`cutout`] | the place of a box of `⌊ratio · size + ½⌋` a side | image |
///
/// All seven numbers are drawn from the image's own stream, whether used or not: turning one part off does not change the others.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use vkd_norm::Context;
/// use vkd_tasks::DiffAugment;
///
/// let images = Tensor::ones((2, 1, 8, 8), DType::F32, &Device::Cpu)?;
/// let augment = DiffAugment::cifar();
/// let seen = augment.apply(&images, "real", &Context::train(0, 3, [7, 9]))?;
/// // A box of 4 by 4 is gone, or the part of it within the image.
/// assert!(seen.sum_all()?.to_scalar::<f32>()? < 128.);
/// let alone = augment.apply(&images.narrow(0, 1, 1)?, "real", &Context::train(0, 3, [9]))?;
/// assert_eq!(alone.flatten_all()?.to_vec1::<f32>()?, seen.get(1)?.flatten_all()?.to_vec1::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiffAugment {
    /// Brightness, saturation and contrast.
    pub color: bool,
    /// Largest shift as a share of the size, published 1/8; none: no translation.
    pub translation: Option<f64>,
    /// Side of the box as a share of the size, published 1/2; none: no cutout.
    pub cutout: Option<f64>,
}

/// The numbers of one image.
struct Draws {
    color: [f64; 3],
    shift: [i64; 2],
    place: [i64; 2],
}

impl DiffAugment {
    /// Nothing.
    pub fn none() -> Self {
        Self { color: false, translation: None, cutout: None }
    }

    /// Translation by 1/8 and cutout of 1/2: the policy of the CIFAR experiments.
    pub fn cifar() -> Self {
        Self { color: false, translation: Some(0.125), cutout: Some(0.5) }
    }

    /// All three with the published sizes.
    pub fn all() -> Self {
        Self { color: true, ..Self::cifar() }
    }

    /// Refuses shares outside `[0, 1]`.
    ///
    /// # Errors
    /// Such a share, by name.
    pub fn check(&self) -> Result<()> {
        for (name, ratio) in [("translation", self.translation), ("cutout", self.cutout)] {
            if !(0. ..=1.).contains(&ratio.unwrap_or(0.)) {
                bail!("{OP}: {name}: expected a share in [0, 1], got {ratio:?}")
            }
        }
        Ok(())
    }

    /// `images` `(B, C, H, W)`, each changed by the numbers of the stream `(ctx.seed, diffaug.NAME, ctx.step, its sample id)`; in evaluation
    /// nothing happens.
    ///
    /// # Gradient
    /// Flows to `images`, exactly.
    ///
    /// # Errors
    /// Another rank, a number of sample ids other than B, and those of [`check`](Self::check).
    pub fn apply(&self, images: &Tensor, name: &str, ctx: &Context) -> Result<Tensor> {
        self.check()?;
        let (batch, _, height, width) = images.dims4()?;
        if !ctx.train || *self == Self::none() {
            return Ok(images.clone());
        }
        if ctx.sample_ids.len() != batch {
            bail!("{OP}: expected {batch} sample ids, got {}", ctx.sample_ids.len())
        }
        let name = format!("diffaug.{name}");
        let draw = |id: &u64| self.draw(&mut ctx.rng(&name, *id), [height, width]);
        let draws: Vec<Draws> = ctx.sample_ids.iter().map(draw).collect();
        let mut xs = images.clone();
        if self.color {
            let number = |i: usize| draws.iter().map(|d| d.color[i]).collect::<Vec<_>>();
            xs = brightness(&xs, &number(0))?;
            xs = saturation(&xs, &number(1))?;
            xs = contrast(&xs, &number(2))?;
        }
        if self.translation.is_some() {
            xs = translation(&xs, &draws.iter().map(|d| d.shift).collect::<Vec<_>>())?;
        }
        if let Some(ratio) = self.cutout {
            let size = [height, width].map(|side| rounded(ratio, side));
            xs = cutout(&xs, size, &draws.iter().map(|d| d.place).collect::<Vec<_>>())?;
        }
        Ok(xs)
    }

    fn draw(&self, rng: &mut impl Rng, size: [usize; 2]) -> Draws {
        let color = [0; 3].map(|_| rng.random::<f64>());
        let shift = size.map(|side| {
            let most = rounded(self.translation.unwrap_or(0.), side) as i64;
            rng.random_range(-most..=most)
        });
        let place = size.map(|side| {
            let hole = rounded(self.cutout.unwrap_or(0.), side);
            rng.random_range(0..=(side - hole % 2) as i64)
        });
        Draws { color, shift, place }
    }
}

/// `⌊ratio · side + ½⌋`, at most the side.
fn rounded(ratio: f64, side: usize) -> usize {
    ((ratio * side as f64 + 0.5).floor() as usize).min(side)
}

/// One number an image as `(B, 1, 1, 1)`.
fn numbers(images: &Tensor, values: Vec<f64>) -> Result<Tensor> {
    let batch = images.dims4()?.0;
    if values.len() != batch {
        bail!("{OP}: expected a draw for each of {batch} images, got {}", values.len())
    }
    Tensor::from_vec(values, (batch, 1, 1, 1), images.device())?.to_dtype(images.dtype())
}

/// `x + (u − ½)` with one u for each image of `(B, C, H, W)`.
///
/// # Errors
/// Another rank, or another number of draws.
pub fn brightness(images: &Tensor, draws: &[f64]) -> Result<Tensor> {
    images.broadcast_add(&numbers(images, draws.iter().map(|u| u - 0.5).collect())?)
}

/// `(x − m) · 2u + m`, m the mean over channels at each place.
///
/// # Errors
/// Those of [`brightness`].
pub fn saturation(images: &Tensor, draws: &[f64]) -> Result<Tensor> {
    let factors = numbers(images, draws.iter().map(|u| 2. * u).collect())?;
    stretched(images, &images.mean_keepdim(1)?, &factors)
}

/// `(x − m) · (u + ½) + m`, m the mean over channels and places.
///
/// # Errors
/// Those of [`brightness`].
pub fn contrast(images: &Tensor, draws: &[f64]) -> Result<Tensor> {
    let factors = numbers(images, draws.iter().map(|u| u + 0.5).collect())?;
    let mean = images.flatten_from(1)?.mean_keepdim(D::Minus1)?;
    stretched(images, &mean.reshape(((), 1, 1, 1))?, &factors)
}

fn stretched(images: &Tensor, mean: &Tensor, factors: &Tensor) -> Result<Tensor> {
    images.broadcast_sub(mean)?.broadcast_mul(factors)?.broadcast_add(mean)
}

/// `y[h, w] = x[h + rows, w + columns]` with one shift `[rows, columns]` for each image; zero where that lies outside.
///
/// # Errors
/// Those of [`brightness`].
pub fn translation(images: &Tensor, shifts: &[[i64; 2]]) -> Result<Tensor> {
    let (batch, channels, height, width) = images.dims4()?;
    if shifts.len() != batch {
        bail!("{OP}: expected a shift for each of {batch} images, got {}", shifts.len())
    }
    let places = height * width;
    let mut from = Vec::with_capacity(batch * channels * places);
    let mut inside = Vec::with_capacity(batch * places);
    for [rows, columns] in shifts {
        let start = from.len();
        for h in 0..height as i64 {
            for w in 0..width as i64 {
                let (y, x) = (h + rows, w + columns);
                let within = (0..height as i64).contains(&y) && (0..width as i64).contains(&x);
                // Any place will do where the mask makes a zero.
                from.push(if within { (y * width as i64 + x) as u32 } else { 0 });
                inside.push(u8::from(within));
            }
        }
        for _ in 1..channels {
            from.extend_from_within(start..start + places);
        }
    }
    let device = images.device();
    let from = Tensor::from_vec(from, (batch, channels, places), device)?;
    let moved = images.flatten_from(2)?.contiguous()?.gather(&from, 2)?;
    masked(&moved.reshape(images.shape())?, inside)
}

/// Zeroes a box of `size` (rows, columns) in each image: rows from `place − rows / 2` on, columns alike, within the image.
///
/// # Errors
/// Those of [`brightness`].
pub fn cutout(images: &Tensor, size: [usize; 2], places: &[[i64; 2]]) -> Result<Tensor> {
    let (batch, _, height, width) = images.dims4()?;
    if places.len() != batch {
        bail!("{OP}: expected a place for each of {batch} images, got {}", places.len())
    }
    let mut kept = Vec::with_capacity(batch * height * width);
    for place in places {
        let [rows, columns] = [0, 1].map(|axis| {
            let start = place[axis] - (size[axis] / 2) as i64;
            start..start + size[axis] as i64
        });
        for h in 0..height as i64 {
            kept.extend(
                (0..width as i64).map(|w| u8::from(!(rows.contains(&h) && columns.contains(&w)))),
            );
        }
    }
    masked(images, kept)
}

/// Times a mask `(B, H, W)` of zeros and ones.
fn masked(images: &Tensor, mask: Vec<u8>) -> Result<Tensor> {
    let (batch, _, height, width) = images.dims4()?;
    let mask = Tensor::from_vec(mask, (batch, 1, height, width), images.device())?;
    images.broadcast_mul(&mask.to_dtype(images.dtype())?)
}
