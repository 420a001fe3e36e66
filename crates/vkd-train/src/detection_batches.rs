//! Batches of images with boxes: a function of the seed and the step alone.

use crate::augment::boxes::{self, Look, Marked};
use crate::batches::Pool;
use crate::data::detection::{bytes, size};
use crate::data::{DetectionDataset, normalization};
use crate::loader::{Prefetch, guarded};
use crate::recipe::{ComputeDevice, DetectionDataConfig};
use crate::share::Share;
use candle_core::{Device, Result, Tensor, bail};
use rayon::ThreadPool;
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vkd_tasks::DetectionBatch;

/// Training batches of a data set with boxes.
///
/// With workers a thread makes them ahead, each batch on a pool of `workers` threads; a batch is the same for any number.
///
/// # Example
/// ```
/// use vkd_train::{DetectionBatches, DetectionDataConfig, DetectionDataset, DetectionSource, ScenesConfig};
///
/// let source = DetectionSource::Scenes(ScenesConfig { size: 48, ..ScenesConfig::default() });
/// let config = DetectionDataConfig { sides: vec![40, 48, 56], ..DetectionDataConfig::plain(source) };
/// let data = DetectionDataset::open(&config)?;
/// let batch = DetectionBatches::new(&data, &config, 4, 0)?.get(0)?;
/// assert_eq!(batch.images.dims()[..2], [4, 1]);
/// assert_eq!(batch.padding.dims(), [&[4], &batch.images.dims()[2..]].concat());
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct DetectionBatches {
    maker: Maker,
    ahead: Option<Prefetch<DetectionBatch>>,
    /// The recipe's table whose `batch` they are.
    table: &'static str,
    device: ComputeDevice,
}

#[derive(Clone)]
struct Maker {
    data: DetectionDataset,
    config: DetectionDataConfig,
    seed: u64,
    pool: Pool,
    count: u64,
    threads: Option<Arc<ThreadPool>>,
    share: Share,
}

impl DetectionBatches {
    /// Batches of `count` training images, changed at random as `config` says.
    ///
    /// # Errors
    /// An empty batch, no training images, or settings that can't be met.
    pub fn new(
        data: &DetectionDataset,
        config: &DetectionDataConfig,
        count: usize,
        seed: u64,
    ) -> Result<Self> {
        config.check()?;
        if count == 0 || data.train.is_empty() {
            bail!(
                "batches: expected images to draw, got {count} of {} for training",
                data.train.len()
            )
        }
        let maker = Maker {
            data: data.clone(),
            config: config.clone(),
            seed,
            pool: Pool::new("batches.detection", data.train.clone(), seed),
            count: count as u64,
            threads: None,
            share: Share::whole(),
        };
        let ahead = (config.workers > 0).then(|| Prefetch::new(config.workers));
        Ok(Self { maker, ahead, table: "training", device: ComputeDevice::Cpu })
    }

    /// The teacher's: messages name `teacher.batch`.
    pub(crate) fn of_teacher(self) -> Self {
        Self { table: "teacher", ..self }
    }

    /// The same on `device`: each batch is made on the CPU and moved once, by the thread that asks for it.
    pub fn on(self, device: ComputeDevice) -> Self {
        Self { device, ..self }
    }

    /// From now on only the block of every batch that `share` says, padded as the whole batch is. A rank reads no image of another:
    /// an image's size in the batch is known without its pixels.
    ///
    /// # Errors
    /// A number of images that can't be split evenly, by its key in the recipe.
    pub fn share(&mut self, share: Share) -> Result<()> {
        share.check(&format!("{}.batch", self.table), self.maker.count as usize, false)?;
        self.maker.share = share;
        if let Some(ahead) = &mut self.ahead {
            ahead.forget();
        }
        Ok(())
    }

    /// Threads that make batches ahead of the step.
    pub fn workers(&self) -> usize {
        self.ahead.as_ref().map_or(0, Prefetch::workers)
    }

    /// The batch of one step, or the [`share`](Self::share) of it. Steps may be asked for in any order; the next one after the last
    /// is already being made.
    ///
    /// # Errors
    /// An image that can't be read or is larger than `data.pad`, by its name; those of the device.
    pub fn get(&mut self, step: u64) -> Result<DetectionBatch> {
        let batch = match &mut self.ahead {
            None => self.maker.batch(step, &AtomicBool::new(false)),
            Some(ahead) => ahead.get(step, |threads| {
                let mut maker = Maker { threads: Some(threads), ..self.maker.clone() };
                move |step, stop| maker.batch(step, stop)
            }),
        }?;
        batch.to_device(&self.device.open()?)
    }
}

impl Maker {
    fn batch(&mut self, step: u64, stop: &AtomicBool) -> Result<DetectionBatch> {
        let (data, config, seed) = (&self.data, &self.config, self.seed);
        let length = data.train.len() as u64;
        let mut looks = Vec::with_capacity(self.count as usize);
        for at in step * self.count..(step + 1) * self.count {
            let index = self.pool.get(at);
            let size = data.size(index)?;
            looks.push((index, Look::draw(size, config, seed, at / length, index as u64)?));
        }
        // Of the images of all ranks.
        let canvas = config.pad.unwrap_or_else(|| largest(looks.iter().map(|(_, look)| look.size)));
        let own = self.share.of(&looks).to_vec();
        collate(data, Some(canvas), self.threads.as_deref(), own, |(index, look)| {
            if stop.load(Ordering::Relaxed) {
                bail!("loader: expected to go on, got the end of the run")
            }
            look.show(data.sample(index)?)
        })
    }
}

/// Images `indices` as evaluation sees them, with nothing random.
///
/// # Errors
/// An image that can't be read or is larger than `data.pad`, by its name.
pub fn plain_detection(
    data: &DetectionDataset,
    config: &DetectionDataConfig,
    indices: &[usize],
) -> Result<DetectionBatch> {
    let drawn = indices.iter().map(|index| (*index, ())).collect();
    let resize = config.resize();
    collate(data, config.pad, None, drawn, |(index, ())| boxes::plain(data.sample(index)?, resize))
}

/// Height and width that hold all of `sizes`.
pub(crate) fn largest(sizes: impl Iterator<Item = [usize; 2]>) -> [usize; 2] {
    sizes.fold([0, 0], |[height, width], [h, w]| [height.max(h), width.max(w)])
}

/// Makes each image, then one batch of them all, of the height and width `pad` or those that hold them.
fn collate<L: Send>(
    data: &DetectionDataset,
    pad: Option<[usize; 2]>,
    threads: Option<&ThreadPool>,
    drawn: Vec<(usize, L)>,
    make: impl Fn((usize, L)) -> Result<Marked> + Send + Sync,
) -> Result<DetectionBatch> {
    let indices: Vec<usize> = drawn.iter().map(|(index, _)| *index).collect();
    let one = |(index, look)| guarded(&data.image_name(index), || make((index, look)));
    let (images, objects): (Vec<_>, Vec<_>) = each(threads, drawn, one)?.into_iter().unzip();
    let sizes: Vec<[usize; 2]> = images.iter().map(size).collect();
    let [height, width] = pad.unwrap_or_else(|| largest(sizes.iter().copied()));
    if let Some(i) = sizes.iter().position(|[h, w]| *h > height || *w > width) {
        bail!(
            "{}: expected at most {width}x{height} pixels, data.pad, got {}x{}",
            data.image_name(indices[i]),
            sizes[i][1],
            sizes[i][0]
        )
    }
    let (channels, plane) = (data.channels, height * width);
    let tables: Vec<_> =
        (0..channels).map(|c| normalization::table(data.preprocessing(), c)).collect();
    let mut values = vec![0f32; images.len() * channels * plane];
    let mut padding = vec![1u8; images.len() * plane];
    let rows = values.chunks_exact_mut((channels * plane).max(1));
    let work = images.iter().zip(rows.zip(padding.chunks_exact_mut(plane.max(1)))).collect();
    each(threads, work, |(image, (values, padding)): (_, (&mut [f32], &mut [u8]))| {
        let [h, w] = size(image);
        for (y, row) in bytes(image).chunks_exact(w * channels).enumerate().take(h) {
            padding[y * width..][..w].fill(0);
            for (channel, table) in tables.iter().enumerate() {
                let out = &mut values[channel * plane + y * width..][..w];
                let from = row[channel..].iter().step_by(channels);
                for (value, raw) in out.iter_mut().zip(from) {
                    *value = table[usize::from(*raw)];
                }
            }
        }
        Ok(())
    })?;
    let count = images.len();
    Ok(DetectionBatch {
        images: Tensor::from_vec(values, (count, channels, height, width), &Device::Cpu)?,
        padding: Tensor::from_vec(padding, (count, height, width), &Device::Cpu)?,
        objects,
        sizes,
        original_sizes: indices.iter().map(|i| data.size(*i)).collect::<Result<_>>()?,
        sample_ids: indices.iter().map(|i| *i as u64).collect(),
    })
}

/// `work` on every item in order, spread over `threads` where there are some.
fn each<T: Send, R: Send>(
    threads: Option<&ThreadPool>,
    items: Vec<T>,
    work: impl Fn(T) -> Result<R> + Send + Sync,
) -> Result<Vec<R>> {
    match threads {
        None => items.into_iter().map(work).collect(),
        Some(threads) => threads.install(|| items.into_par_iter().map(work).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{DetectionSource, ScenesConfig};

    fn config(workers: usize) -> DetectionDataConfig {
        let scenes =
            ScenesConfig { train: 10, validation: 2, test: 3, channels: 3, ..Default::default() };
        let mut config = DetectionDataConfig::plain(DetectionSource::Scenes(scenes));
        config.sides = vec![40, 48, 64];
        config.workers = workers;
        config
    }

    fn values(batch: &DetectionBatch) -> Result<(Vec<f32>, Vec<u8>)> {
        Ok((batch.images.flatten_all()?.to_vec1()?, batch.padding.flatten_all()?.to_vec1()?))
    }

    #[test]
    fn any_number_of_workers_gives_the_same_bits_in_any_order() -> Result<()> {
        let data = DetectionDataset::open(&config(0))?;
        let mut want = Vec::new();
        for workers in [0, 1, 3] {
            let mut batches = DetectionBatches::new(&data, &config(workers), 4, 5)?;
            let mut got = Vec::new();
            for step in [0, 1, 2, 8, 9, 3] {
                let batch = batches.get(step)?;
                got.push((values(&batch)?, batch.objects, batch.sizes, batch.sample_ids));
            }
            if want.is_empty() {
                want = got;
            } else {
                assert!(want == got, "{workers} workers");
            }
        }
        let other = DetectionBatches::new(&data, &config(0), 4, 6)?.get(0)?;
        assert_ne!(other.sample_ids, want[0].3);
        Ok(())
    }

    #[test]
    fn an_epoch_holds_each_image_once() -> Result<()> {
        let data = DetectionDataset::open(&config(0))?;
        let mut batches = DetectionBatches::new(&data, &config(0), 5, 1)?;
        let mut seen = [batches.get(0)?.sample_ids, batches.get(1)?.sample_ids].concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<u64>>());
        Ok(())
    }

    #[test]
    fn padding_is_zero_and_marked_and_lies_behind_the_image() -> Result<()> {
        let data = DetectionDataset::open(&config(0))?;
        let batch = DetectionBatches::new(&data, &config(0), 10, 1)?.get(0)?;
        let (images, padding) = values(&batch)?;
        let [count, channels, height, width] = batch.images.dims()[..] else { bail!("rank") };
        assert_eq!((count, channels, height, width), (10, 3, 64, 64));
        assert!(batch.sizes.contains(&[40, 40]) && batch.sizes.contains(&[64, 64]));
        for (i, [h, w]) in batch.sizes.iter().enumerate() {
            let mut zeros = 0;
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                let padded = y >= *h || x >= *w;
                assert_eq!(padding[(i * height + y) * width + x] == 1, padded);
                let at = |c: usize| images[((i * 3 + c) * height + y) * width + x];
                assert!(!padded || (0..3).all(|c| at(c) == 0.));
                zeros += usize::from(at(0) == 0.);
            }
            assert!(zeros < height * width - h * w / 2, "an image must not be black");
            let inside = |b: &[f32; 4]| b[2] <= *w as f32 && b[3] <= *h as f32;
            assert!(batch.objects[i].boxes.iter().all(inside));
        }
        Ok(())
    }

    #[test]
    fn evaluation_sees_images_as_they_are() -> Result<()> {
        let mut config = config(0);
        let data = DetectionDataset::open(&config)?;
        let batch = plain_detection(&data, &config, &data.test)?;
        assert_eq!((batch.len(), batch.images.dims()), (3, &[3, 3, 64, 64][..]));
        let (image, objects) = data.sample(data.test[1])?;
        assert_eq!((&batch.objects[1], batch.sample_ids[1]), (&objects, data.test[1] as u64));
        let first = batch.images.get(1)?.get(2)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(first[0], data.preprocessing().value(2, bytes(&image)[2]));
        config.test_side = Some(32);
        config.pad = Some([40, 48]);
        let batch = plain_detection(&data, &config, &data.test)?;
        assert_eq!((batch.images.dims(), batch.sizes[0]), (&[3, 3, 40, 48][..], [32, 32]));
        assert_eq!(batch.original_sizes[0], [64, 64]);
        config.pad = Some([16, 48]);
        let message = plain_detection(&data, &config, &data.test).err().map(|e| e.to_string());
        assert!(message.is_some_and(|m| m.contains("scene 12: expected at most 48x16")));
        Ok(())
    }
}
