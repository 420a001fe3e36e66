//! Which images a step sees, and what they look like: a function of the seed and the step alone.

use crate::augment::Augment;
use crate::augment::mix::{Mix, draw};
use crate::data::Dataset;
use crate::loader::{Prefetch, guarded};
use crate::recipe::{AugmentConfig, ComputeDevice, DataConfig};
use crate::share::Share;
use candle_core::{Device, Result, Tensor, bail};
use rand::Rng;
use rand::seq::SliceRandom;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vkd_models::Preprocessing;
use vkd_nn::stream;
use vkd_tasks::Batch;

/// Images drawn in place of one that can't be read before the batch is given up.
const REPLACEMENTS: u64 = 100;

/// Endless stream of indices from a pool: one seeded permutation after the other.
#[derive(Clone)]
pub(crate) struct Pool {
    name: &'static str,
    indices: Arc<[usize]>,
    seed: u64,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Pool {
    pub(crate) fn new(name: &'static str, indices: Vec<usize>, seed: u64) -> Self {
        Self { name, indices: indices.into(), seed, epoch: None }
    }

    /// The `at`-th index of the stream.
    pub(crate) fn get(&mut self, at: u64) -> usize {
        let (epoch, place) = (at / self.indices.len() as u64, at % self.indices.len() as u64);
        match &self.epoch {
            Some((current, order)) if *current == epoch => order[place as usize],
            _ => {
                let mut order = self.indices.to_vec();
                order.shuffle(&mut stream(self.seed, self.name, epoch, 0));
                let index = order[place as usize];
                self.epoch = Some((epoch, order));
                index
            }
        }
    }
}

/// Training batches of a data set.
///
/// With workers a thread makes them ahead, each batch on a pool of `workers` threads; a batch is the same for any number.
pub struct Batches {
    maker: Maker,
    /// None where the caller's thread does all.
    ahead: Option<Prefetch<Batch>>,
    /// The recipe's table whose `batch` they are.
    table: &'static str,
    device: ComputeDevice,
}

/// Makes the batch of a step.
#[derive(Clone)]
struct Maker {
    data: Dataset,
    augment: Augment,
    config: AugmentConfig,
    seed: u64,
    labelled: Pool,
    labelled_count: usize,
    all: Pool,
    all_count: usize,
    /// None where the caller's thread does all.
    threads: Option<Arc<ThreadPool>>,
    /// How many looks each image has, where they are counted.
    looks: Option<u64>,
    share: Share,
}

/// One image's place in a batch.
///
/// The id is `index + count · (look + looks · times)`, with the number of images `count`, and `times` for earlier
/// appearances in this batch: it tells image and look. Without a number of looks it counts as one.
#[derive(Clone, Copy)]
struct Slot {
    /// Among those of all ranks.
    place: usize,
    index: usize,
    id: u64,
    labelled: bool,
}

impl Batches {
    /// Batches of `labelled_count` images of `labelled`, followed by `rest_count` of all training images without
    /// their labels, changed at random as `config` says.
    ///
    /// # Errors
    /// An empty batch, labelled images wanted from an empty list, a shift of half the image or more, or a change of colour
    /// where the values don't reach 255.
    pub fn new(
        data: &Dataset,
        labelled: Vec<usize>,
        labelled_count: usize,
        rest_count: usize,
        config: &DataConfig,
        seed: u64,
    ) -> Result<Self> {
        if labelled_count + rest_count == 0 || (labelled_count > 0 && labelled.is_empty()) {
            bail!(
                "batches: expected images to draw, got {labelled_count} of {} labelled and {rest_count} others",
                labelled.len()
            )
        }
        let processors = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let workers = match config.workers {
            Some(workers) => workers,
            None if data.encoded() => processors(),
            None => 0,
        };
        let maker = Maker {
            augment: Augment::new(data, config, seed)?,
            config: config.augment.clone(),
            seed,
            labelled: Pool::new("batches.labelled", labelled, seed),
            labelled_count,
            all: Pool::new("batches.all", data.train.clone(), seed),
            all_count: rest_count,
            data: data.clone(),
            threads: None,
            looks: config.looks().ok(),
            share: Share::whole(),
        };
        let ahead = (workers > 0).then(|| Prefetch::new(workers));
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

    /// From now on only the part of every batch that `share` says: of the labelled images and of the others a block each, or,
    /// where images are mixed, a block and its mirror image, so that partners stay together. A rank reads no image of another.
    ///
    /// # Errors
    /// Numbers of images that can't be split evenly, by their keys in the recipe.
    pub fn share(&mut self, share: Share) -> Result<()> {
        let Maker { labelled_count, all_count, .. } = self.maker;
        let mixes = self.maker.config.mixes();
        if labelled_count > 0 && all_count > 0 {
            share.check(&format!("{}.labelled", self.table), labelled_count, mixes)?;
        }
        share.check(&format!("{}.batch", self.table), labelled_count + all_count, mixes)?;
        self.maker.share = share;
        if let Some(ahead) = &mut self.ahead {
            ahead.forget();
        }
        Ok(())
    }

    /// Threads that make batches ahead of the step; 0 where [`get`](Self::get) makes them.
    pub fn workers(&self) -> usize {
        self.ahead.as_ref().map_or(0, Prefetch::workers)
    }

    /// The batch of one step, or the [`share`](Self::share) of it: images `(B, C, H, W)` in f32, labelled ones first, their labels,
    /// and `B` sample ids. Labels are classes `(L)`, or `(L, K)` shares of the classes where images are mixed; labelled images are
    /// mixed with labelled ones, the others among themselves.
    ///
    /// Steps may be asked for in any order; the next one after the last is already being made.
    ///
    /// # Errors
    /// An image that can't be read, by its name, where the recipe says to stop; a hundred in a row where it says to skip; those of
    /// the device.
    pub fn get(&mut self, step: u64) -> Result<Batch> {
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
    fn batch(&mut self, step: u64, stop: &AtomicBool) -> Result<Batch> {
        let mut slots = self.slots(step);
        let (size, channels) = (self.data.size, self.data.channels);
        let length = channels * size * size;
        let mut values = vec![0f32; slots.len() * length];
        match self.threads.clone() {
            None => {
                for (slot, out) in slots.iter_mut().zip(values.chunks_exact_mut(length)) {
                    self.fill(slot, step, out)?;
                }
            }
            Some(threads) => threads.install(|| {
                let work = slots.par_iter_mut().zip(values.par_chunks_exact_mut(length));
                work.try_for_each(|(slot, out)| {
                    if stop.load(Ordering::Relaxed) {
                        bail!("loader: expected to go on, got the end of the run")
                    }
                    self.fill(slot, step, out)
                })
            })?,
        }
        let labelled = slots.iter().filter(|s| s.labelled);
        let labels: Vec<u32> = labelled.map(|s| self.data.label(s.index)).collect();
        let count = labels.len();
        let labels = if self.config.mixes() {
            let mix = draw(&self.config, size, &mut stream(self.seed, "augment.mix", step, 0))?;
            let (front, back) = values.split_at_mut(count * length);
            mix.images(front, channels, size);
            mix.images(back, channels, size);
            self.soft(mix, &labels)?
        } else {
            Tensor::new(labels, &Device::Cpu)?
        };
        Ok(Batch {
            images: Tensor::from_vec(values, (slots.len(), channels, size, size), &Device::Cpu)?,
            labels,
            sample_ids: slots.iter().map(|s| s.id).collect(),
        })
    }

    fn soft(&self, mix: Mix, labels: &[u32]) -> Result<Tensor> {
        let classes = self.data.class_names.len();
        let rows = mix.labels(labels, classes, self.data.size);
        Tensor::from_vec(rows, (labels.len(), classes), &Device::Cpu)
    }

    /// Which images of the step this rank makes.
    fn slots(&mut self, step: u64) -> Vec<Slot> {
        let repeats = self.config.repeats as u64;
        let (labelled, rest) = (self.labelled_count as u64, self.all_count as u64);
        let mut slots = Vec::with_capacity((labelled + rest) as usize);
        // A second appearance in a batch gets an identity of its own, so that it is drawn for anew.
        let mut seen: HashMap<usize, u64> = HashMap::new();
        let (count, looks) = (self.data.len() as u64, self.looks.unwrap_or(1));
        let mut add = |pool: &mut Pool, place: u64, labelled: bool| {
            let index = pool.get(place / repeats);
            // The looks take turns with each appearance in the pool.
            let epoch = place / repeats / pool.indices.len() as u64;
            let look = (epoch * repeats + place % repeats) % looks;
            let times = seen.entry(index).or_default();
            let id = index as u64 + count * (look + looks * *times);
            slots.push(Slot { place: slots.len(), index, id, labelled });
            *times += 1;
        };
        (0..labelled).for_each(|i| add(&mut self.labelled, step * labelled + i, true));
        (0..rest).for_each(|i| add(&mut self.all, step * rest + i, false));
        let mixes = self.config.mixes();
        let labelled = self.share.places(self.labelled_count, mixes);
        let rest = self.share.places(self.all_count, mixes).map(|i| self.labelled_count + i);
        labelled.chain(rest).filter_map(|place| slots.get(place).copied()).collect()
    }

    /// Reads a slot's image and writes it as the network sees it; where it can't be read and the recipe says to skip,
    /// another of the same pool takes the slot, drawn from its step and sample.
    fn fill(&self, slot: &mut Slot, step: u64, out: &mut [f32]) -> Result<()> {
        let (pool, count) =
            (if slot.labelled { &self.labelled } else { &self.all }, self.data.len());
        let mut rng = None;
        for attempt in 1..=REPLACEMENTS {
            let index = slot.index;
            let made = guarded(&self.data.image_name(index), || {
                let (draw, id) = match self.looks {
                    Some(looks) => (slot.id / count as u64 % looks, index as u64),
                    None => (step, slot.id),
                };
                self.augment.sample(self.data.image(index)?, draw, id, out);
                Ok(())
            });
            if self.data.or_skip(index, made)?.is_some() {
                return Ok(());
            }
            let rng =
                rng.get_or_insert_with(|| stream(self.seed, "batches.replacement", step, slot.id));
            slot.index = pool.indices[rng.random_range(0..pool.indices.len())];
            // Beyond any appearance that was planned, and apart for each place and attempt.
            let batch = (self.labelled_count + self.all_count) as u64 * self.looks.unwrap_or(1);
            slot.id = slot.index as u64 + count as u64 * (batch * attempt + slot.place as u64);
        }
        bail!(
            "{}: expected an image among {REPLACEMENTS} drawn, got none that can be read",
            self.data.name
        )
    }
}

/// Images `indices` as evaluation sees them, `(B, C, H, W)`: nothing random.
///
/// # Errors
/// An image that can't be read, by its name.
pub fn plain_images(
    data: &Dataset,
    indices: &[usize],
    preprocessing: &Preprocessing,
) -> Result<Tensor> {
    let (images, read) = readable_images(data, indices, preprocessing)?;
    match indices.iter().find(|i| !read.contains(i)) {
        Some(index) => {
            bail!("{}: expected an image, got one that was skipped", data.image_name(*index))
        }
        None => Ok(images),
    }
}

/// As [`plain_images`], without those that can't be read where the recipe says to skip them; and which ones are left.
pub(crate) fn readable_images(
    data: &Dataset,
    indices: &[usize],
    preprocessing: &Preprocessing,
) -> Result<(Tensor, Vec<usize>)> {
    preprocessing.check(data.channels)?;
    let augment = Augment::plain(data, preprocessing);
    let length = data.channels * data.size * data.size;
    let read = |&index: &usize| -> Result<Option<(usize, Vec<f32>)>> {
        let made = guarded(&data.image_name(index), || {
            let mut out = vec![0f32; length];
            augment.sample(data.view(index)?, 0, 0, &mut out);
            Ok((index, out))
        });
        data.or_skip(index, made)
    };
    let made: Vec<_> = match data.encoded() {
        true => indices.par_iter().map(read).collect::<Result<_>>()?,
        false => indices.iter().map(read).collect::<Result<_>>()?,
    };
    let (mut kept, mut values) = (Vec::new(), Vec::with_capacity(indices.len() * length));
    for (index, image) in made.into_iter().flatten() {
        kept.push(index);
        values.extend(image);
    }
    let shape = (kept.len(), data.channels, data.size, data.size);
    Ok((Tensor::from_vec(values, shape, &Device::Cpu)?, kept))
}

#[cfg(test)]
mod tests;
