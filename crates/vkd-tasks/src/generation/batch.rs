//! What a step of a GAN learns from, and what it draws.

use crate::task::moved;
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::Rng;
use std::ops::Range;
use std::sync::Arc;
use vkd_norm::{flags, stream};

/// Real images with a class each.
#[derive(Clone, Debug)]
pub struct GenerationBatch {
    /// Images `(B, C, H, W)` in the generator's range, usually -1 to 1.
    pub images: Tensor,
    /// Classes `(B)`, u32.
    pub labels: Tensor,
    /// Identity of each image in its data set, `B` of them.
    pub sample_ids: Arc<[u64]>,
}

/// Standard normal numbers `(rows, width)` in f32: row i of all, of which `rows` are made, is a function of `(seed, name, step, i)` alone.
///
/// # Errors
/// None on the CPU.
///
/// # Example
/// ```
/// use candle_core::Device;
/// use vkd_tasks::white_noise;
/// let noise = white_noise(7, "samples", 0, 0..3, 16, &Device::Cpu)?;
/// let last = white_noise(7, "samples", 0, 2..3, 16, &Device::Cpu)?;
/// assert_eq!(noise.get(2)?.to_vec1::<f32>()?, last.get(0)?.to_vec1::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn white_noise(
    seed: u64,
    name: &str,
    step: u64,
    rows: Range<usize>,
    width: usize,
    device: &Device,
) -> Result<Tensor> {
    let count = rows.len();
    let mut values = Vec::with_capacity(count * width);
    for row in rows {
        let mut rng = stream(seed, name, step, row as u64);
        values.extend((0..width).map(|_| normal(&mut rng) as f32));
    }
    Tensor::from_vec(values, (count, width), device)
}

/// A standard normal number by Box and Muller's transform.
fn normal(rng: &mut impl Rng) -> f64 {
    // In (0, 1], so that the logarithm is finite.
    let radius = (-2. * (1. - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// Classes `(rows)`, u32, each one of `classes` with the same probability: row i of all is a function of `(seed, name, step, i)` alone.
///
/// # Errors
/// No class.
pub fn uniform_classes(
    seed: u64,
    name: &str,
    step: u64,
    rows: Range<usize>,
    classes: usize,
    device: &Device,
) -> Result<Tensor> {
    let Ok(classes @ 1..) = u32::try_from(classes) else {
        bail!("generation: expected a count of classes that fits u32, at least one, got {classes}")
    };
    let draw = |row: usize| stream(seed, name, step, row as u64).random_range(0..classes);
    let count = rows.len();
    Tensor::from_vec(rows.map(draw).collect::<Vec<_>>(), count, device)
}

impl GenerationBatch {
    /// The same on `device`; what lies there already is shared.
    ///
    /// # Errors
    /// Those of the copy.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            images: moved(&self.images, device)?,
            labels: moved(&self.labels, device)?,
            sample_ids: self.sample_ids.clone(),
        })
    }

    /// Refuses a batch that contradicts itself or names a class that there isn't; such a class on a device sets a bit of [`flags`].
    pub(super) fn check(&self, classes: usize) -> Result<usize> {
        let batch = match *self.images.dims() {
            [batch, _, _, _] if batch > 0 => batch,
            ref dims => bail!("generation: expected images (B, C, H, W), got {dims:?}"),
        };
        if self.labels.dims() != [batch] || self.labels.dtype() != DType::U32 {
            bail!(
                "generation: expected {batch} classes of u32, got {:?} of {:?}",
                self.labels.dims(),
                self.labels.dtype()
            )
        }
        if self.sample_ids.len() != batch {
            bail!("generation: expected {batch} sample ids, got {}", self.sample_ids.len())
        }
        if !self.labels.device().is_cpu() {
            let what = format!("classes below the generator's {classes}");
            flags::expect("generation", &what, &self.labels, [0., classes as f64 - 1.])?;
            return Ok(batch);
        }
        if let Some(odd) = self.labels.to_vec1::<u32>()?.iter().find(|c| **c as usize >= classes) {
            bail!("generation: expected classes below the generator's {classes}, got {odd}")
        }
        Ok(batch)
    }
}
