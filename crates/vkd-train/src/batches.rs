//! Which images a step sees, and what they look like: a function of the seed and the step alone.

use crate::augment::Augment;
use crate::augment::mix::{Mix, draw};
use crate::data::Dataset;
use crate::loader::{Prefetch, guarded};
use crate::recipe::{AugmentConfig, DataConfig};
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
}

/// One image's place in a batch.
///
/// The id is `index + count · (look + looks · times)`, with the number of images `count`, and `times` for earlier
/// appearances in this batch: it tells image and look. Without a number of looks it counts as one.
struct Slot {
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
        };
        Ok(Self { maker, ahead: (workers > 0).then(|| Prefetch::new(workers)) })
    }

    /// Threads that make batches ahead of the step; 0 where [`get`](Self::get) makes them.
    pub fn workers(&self) -> usize {
        self.ahead.as_ref().map_or(0, Prefetch::workers)
    }

    /// The batch of one step: images `(B, C, H, W)` in f32, labelled ones first, their labels, and `B` sample ids.
    /// Labels are classes `(L)`, or `(L, K)` shares of the classes where images are mixed; labelled images are mixed with
    /// labelled ones, the others among themselves.
    ///
    /// Steps may be asked for in any order; the next one after the last is already being made.
    ///
    /// # Errors
    /// An image that can't be read, by its name, where the recipe says to stop; a hundred in a row where it says to skip.
    pub fn get(&mut self, step: u64) -> Result<Batch> {
        let Some(ahead) = &mut self.ahead else {
            return self.maker.batch(step, &AtomicBool::new(false));
        };
        ahead.get(step, |threads| {
            let mut maker = Maker { threads: Some(threads), ..self.maker.clone() };
            move |step, stop| maker.batch(step, stop)
        })
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
                for (place, (slot, out)) in
                    slots.iter_mut().zip(values.chunks_exact_mut(length)).enumerate()
                {
                    self.fill(slot, place, step, out)?;
                }
            }
            Some(threads) => threads.install(|| {
                let work = slots.par_iter_mut().zip(values.par_chunks_exact_mut(length));
                work.enumerate().try_for_each(|(place, (slot, out))| {
                    if stop.load(Ordering::Relaxed) {
                        bail!("loader: expected to go on, got the end of the run")
                    }
                    self.fill(slot, place, step, out)
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

    /// Which images the step wants.
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
            slots.push(Slot { index, id, labelled });
            *times += 1;
        };
        (0..labelled).for_each(|i| add(&mut self.labelled, step * labelled + i, true));
        (0..rest).for_each(|i| add(&mut self.all, step * rest + i, false));
        slots
    }

    /// Reads a slot's image and writes it as the network sees it; where it can't be read and the recipe says to skip,
    /// another of the same pool takes the slot, drawn from its step and sample.
    fn fill(&self, slot: &mut Slot, place: usize, step: u64, out: &mut [f32]) -> Result<()> {
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
            slot.id = slot.index as u64 + count as u64 * (batch * attempt + place as u64);
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
mod tests {
    use super::*;
    use crate::Recipe;

    fn recipe(set: &[&str]) -> Result<DataConfig> {
        let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
        Ok(Recipe::parse(include_str!("../tests/tiny.toml"), "tiny.toml", &set)?.data)
    }

    fn values(batch: &Batch) -> Result<Vec<f32>> {
        batch.images.flatten_all()?.to_vec1()
    }

    #[test]
    fn a_batch_is_a_function_of_seed_and_step() -> Result<()> {
        let config = recipe(&["data.augment.repeats=1"])?;
        let data = Dataset::open(&config)?;
        let few = data.labelled(20, 3)?;
        let make = |seed| Batches::new(&data, few.clone(), 8, 24, &config, seed);
        let (mut a, mut b) = (make(1)?, make(1)?);
        a.get(0)?;
        let (x, y) = (a.get(7)?, b.get(7)?);
        assert_eq!(values(&x)?, values(&y)?);
        assert_eq!(x.sample_ids, y.sample_ids);
        assert_eq!((x.labels.dims(), x.images.dims()), (&[8][..], &[32, 1, 8, 8][..]));
        assert_ne!(make(2)?.get(7)?.sample_ids, x.sample_ids);
        Ok(())
    }

    #[test]
    fn one_and_four_workers_and_none_give_the_same_bits() -> Result<()> {
        let set = [
            "data.augment.flip=0.5",
            "data.augment.erase=0.5",
            "data.augment.crop.scale=[0.3, 1.0]",
            "data.augment.mixup=0.8",
            "data.augment.cutmix=1.0",
            "data.augment.repeats=3",
        ];
        let data = Dataset::open(&recipe(&set)?)?;
        let few = data.labelled(20, 3)?;
        let mut want = Vec::new();
        for workers in ["data.workers=0", "data.workers=1", "data.workers=4"] {
            let config = recipe(&[&set[..], &[workers]].concat())?;
            let mut batches = Batches::new(&data, few.clone(), 7, 9, &config, 5)?;
            let mut got = Vec::new();
            // Not only in order: a jump starts anew.
            for step in [0, 1, 2, 9, 10, 3] {
                let batch = batches.get(step)?;
                assert_eq!(batch.labels.dims(), [7, 10]);
                let labels = batch.labels.flatten_all()?.to_vec1::<f32>()?;
                got.push((values(&batch)?, labels, batch.sample_ids));
            }
            if want.is_empty() {
                want = got;
            } else {
                assert!(want == got, "{workers}");
            }
        }
        Ok(())
    }

    #[test]
    fn an_epoch_holds_each_image_once() -> Result<()> {
        let config = recipe(&["data.shift=0"])?;
        let data = Dataset::open(&config)?;
        let mut batches = Batches::new(&data, vec![], 0, data.train.len() / 4, &config, 1)?;
        let mut seen: Vec<u64> = Vec::new();
        for step in 0..4 {
            seen.extend(batches.get(step)?.sample_ids.iter());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), data.train.len() / 4 * 4);
        assert!(seen.iter().all(|id| data.train.contains(&(*id as usize))));
        Ok(())
    }

    #[test]
    fn repeats_within_a_batch_are_shifted_apart() -> Result<()> {
        let config = recipe(&[])?;
        let data = Dataset::open(&config)?;
        let mut batches = Batches::new(&data, vec![data.train[0]], 40, 0, &config, 1)?;
        let batch = batches.get(0)?;
        let rows = batch.images.flatten_from(1)?.to_vec2::<f32>()?;
        assert!(
            rows.iter().any(|r| r != &rows[0]),
            "forty draws of one image must not all be shifted alike"
        );
        Ok(())
    }

    #[test]
    fn repeated_augmentation_shows_each_image_in_a_row() -> Result<()> {
        let config = recipe(&["data.augment.repeats=3"])?;
        let data = Dataset::open(&config)?;
        let mut batches = Batches::new(&data, vec![], 0, 12, &config, 1)?;
        let batch = batches.get(0)?;
        let count = data.len() as u64;
        for three in batch.sample_ids.chunks(3) {
            assert_eq!([three[0] + count, three[0] + 2 * count], three[1..]);
        }
        Ok(())
    }

    #[test]
    fn the_looks_of_an_image_take_turns_and_stay() -> Result<()> {
        let set =
            ["data.augment.views=3", "data.augment.flip=0.5", "data.augment.crop.scale=[0.3, 1.0]"];
        let config = recipe(&[&set[..], &["data.augment.repeats=2"]].concat())?;
        let data = Dataset::open(&config)?;
        let (count, few) = (data.len() as u64, data.labelled(20, 3)?);
        let mut batches = Batches::new(&data, few, 10, 30, &config, 1)?;
        let mut seen: HashMap<u64, Vec<f32>> = HashMap::new();
        let mut again = 0;
        for step in 0..60 {
            let batch = batches.get(step)?;
            let rows = batch.images.flatten_from(1)?.to_vec2::<f32>()?;
            assert_eq!(batch.sample_ids.iter().collect::<std::collections::HashSet<_>>().len(), 40);
            for (id, row) in batch.sample_ids.iter().zip(rows) {
                match seen.get(&(id % (3 * count))) {
                    Some(before) => again += usize::from(before == &row),
                    None => drop(seen.insert(id % (3 * count), row)),
                }
            }
        }
        // 2,400 images of at most 600 looks; each of the 20 labelled ones has shown its three, which differ.
        assert!(seen.len() <= 600 && again == 2400 - seen.len(), "{} {again}", seen.len());
        let index = data.labelled(20, 3)?[0] as u64;
        let looks = [0, 1, 2].map(|look| &seen[&(index + count * look)]);
        assert!(looks[0] != looks[1] && looks[1] != looks[2] && looks[0] != looks[2]);
        Ok(())
    }

    #[test]
    fn changes_of_colour_need_bytes() -> Result<()> {
        let config = recipe(&["data.augment.three_augment=true"])?;
        let data = Dataset::open(&config)?;
        let message = Batches::new(&data, vec![], 0, 4, &config, 1).err().map(|e| e.to_string());
        assert!(message.is_some_and(|m| m.contains("expected images of 0 to 255, got 0 to 16")));
        Ok(())
    }
}
