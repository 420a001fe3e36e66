//! Which images a step sees, and how they are shifted: a function of the seed and the step alone.

use crate::data::Dataset;
use candle_core::{Device, Result, Tensor, bail};
use rand::Rng;
use rand::seq::SliceRandom;
use vkd_models::Preprocessing;
use vkd_nn::stream;
use vkd_tasks::Batch;

/// Endless stream of indices from a pool: one seeded permutation after the other.
struct Pool {
    name: &'static str,
    indices: Vec<usize>,
    seed: u64,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Pool {
    fn new(name: &'static str, indices: Vec<usize>, seed: u64) -> Self {
        Self { name, indices, seed, epoch: None }
    }

    /// The `at`-th index of the stream.
    fn get(&mut self, at: u64) -> usize {
        let (epoch, place) = (at / self.indices.len() as u64, at % self.indices.len() as u64);
        match &self.epoch {
            Some((current, order)) if *current == epoch => order[place as usize],
            _ => {
                let mut order = self.indices.clone();
                order.shuffle(&mut stream(self.seed, self.name, epoch, 0));
                let index = order[place as usize];
                self.epoch = Some((epoch, order));
                index
            }
        }
    }
}

/// Training batches of a data set.
pub struct Batches<'a> {
    data: &'a Dataset,
    preprocessing: Preprocessing,
    seed: u64,
    shift: usize,
    labelled: Pool,
    labelled_count: usize,
    all: Pool,
    all_count: usize,
}

impl<'a> Batches<'a> {
    /// Batches of `labelled_count` images of `labelled`, followed by `rest_count` of all training images without
    /// their labels. Images are shifted by up to `shift` pixels a axis, the border filled with raw zeros.
    ///
    /// # Errors
    /// An empty batch, labelled images wanted from an empty list, or a shift of half the image or more.
    pub fn new(
        data: &'a Dataset,
        labelled: Vec<usize>,
        labelled_count: usize,
        rest_count: usize,
        shift: usize,
        seed: u64,
    ) -> Result<Self> {
        if labelled_count + rest_count == 0 || (labelled_count > 0 && labelled.is_empty()) {
            bail!(
                "batches: expected images to draw, got {labelled_count} of {} labelled and {rest_count} others",
                labelled.len()
            )
        }
        if 2 * shift >= data.size {
            bail!("data.shift: expected less than half of the {} pixels, got {shift}", data.size)
        }
        Ok(Self {
            data,
            preprocessing: data.preprocessing(),
            seed,
            shift,
            labelled: Pool::new("batches.labelled", labelled, seed),
            labelled_count,
            all: Pool::new("batches.all", data.train.clone(), seed),
            all_count: rest_count,
        })
    }

    /// The batch of one step: images `(B, 1, H, W)` in f32, labels `(L)`, `B` sample ids; labelled images first.
    pub fn get(&mut self, step: u64) -> Result<Batch> {
        let (labelled, rest) = (self.labelled_count as u64, self.all_count as u64);
        let mut indices: Vec<usize> =
            (0..labelled).map(|i| self.labelled.get(step * labelled + i)).collect();
        let labels: Vec<u32> = indices.iter().map(|&i| u32::from(self.data.label(i))).collect();
        indices.extend((0..rest).map(|i| self.all.get(step * rest + i)));
        let sample_ids = self.sample_ids(&indices);
        let size = self.data.size;
        let mut values = Vec::with_capacity(indices.len() * size * size);
        for (&index, &id) in indices.iter().zip(&sample_ids) {
            let mut rng = stream(self.seed, "augment.shift", step, id);
            let s = self.shift as i32;
            let (down, right) = (rng.random_range(-s..=s), rng.random_range(-s..=s));
            push_shifted(
                &mut values,
                self.data.image(index),
                size,
                down,
                right,
                &self.preprocessing,
            );
        }
        Ok(Batch {
            images: Tensor::from_vec(values, (indices.len(), 1, size, size), &Device::Cpu)?,
            labels: Tensor::new(labels, &Device::Cpu)?,
            sample_ids: sample_ids.into(),
        })
    }

    /// An image's index; its second appearance in a batch gets an identity of its own, so that it is drawn for anew.
    fn sample_ids(&self, indices: &[usize]) -> Vec<u64> {
        let mut seen = std::collections::HashMap::new();
        indices
            .iter()
            .map(|&i| {
                let times: &mut u64 = seen.entry(i).or_default();
                let id = i as u64 + *times * self.data.len() as u64;
                *times += 1;
                id
            })
            .collect()
    }
}

fn push_shifted(
    out: &mut Vec<f32>,
    image: &[u8],
    size: usize,
    down: i32,
    right: i32,
    p: &Preprocessing,
) {
    let value = |raw: u8| ((f64::from(raw) / p.divisor - p.mean) / p.std) as f32;
    for y in 0..size {
        for x in 0..size {
            let from =
                (y.checked_add_signed(-down as isize), x.checked_add_signed(-right as isize));
            out.push(match from {
                (Some(y), Some(x)) if y < size && x < size => value(image[y * size + x]),
                _ => value(0),
            });
        }
    }
}

/// Images `indices` without any shift, `(B, 1, H, W)`.
pub fn plain_images(
    data: &Dataset,
    indices: &[usize],
    preprocessing: &Preprocessing,
) -> Result<Tensor> {
    let size = data.size;
    let mut values = Vec::with_capacity(indices.len() * size * size);
    for &i in indices {
        push_shifted(&mut values, data.image(i), size, 0, 0, preprocessing);
    }
    Tensor::from_vec(values, (indices.len(), 1, size, size), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Recipe;

    fn data() -> Result<Dataset> {
        let recipe = Recipe::parse(include_str!("../tests/tiny.toml"), "tiny.toml", &[])?;
        Dataset::open(&recipe.data)
    }

    #[test]
    fn a_batch_is_a_function_of_seed_and_step() -> Result<()> {
        let data = data()?;
        let few = data.labelled(20, 3)?;
        let make = |seed| Batches::new(&data, few.clone(), 8, 24, 1, seed);
        let (mut a, mut b) = (make(1)?, make(1)?);
        a.get(0)?;
        let (x, y) = (a.get(7)?, b.get(7)?);
        assert_eq!(
            x.images.flatten_all()?.to_vec1::<f32>()?,
            y.images.flatten_all()?.to_vec1::<f32>()?
        );
        assert_eq!(x.sample_ids, y.sample_ids);
        assert_eq!((x.labels.dims(), x.images.dims()), (&[8][..], &[32, 1, 8, 8][..]));
        assert_ne!(make(2)?.get(7)?.sample_ids, x.sample_ids);
        Ok(())
    }

    #[test]
    fn an_epoch_holds_each_image_once() -> Result<()> {
        let data = data()?;
        let mut batches = Batches::new(&data, vec![], 0, data.train.len() / 4, 0, 1)?;
        let mut seen: Vec<u64> = Vec::new();
        for step in 0..4 {
            seen.extend(batches.get(step)?.sample_ids.iter());
        }
        seen.sort_unstable();
        let mut want: Vec<u64> = data.train.iter().map(|&i| i as u64).collect();
        want.sort_unstable();
        want.truncate(seen.len());
        seen.dedup();
        assert_eq!(seen.len(), data.train.len() / 4 * 4);
        Ok(())
    }

    #[test]
    fn repeats_within_a_batch_are_shifted_apart() -> Result<()> {
        let data = data()?;
        let mut batches = Batches::new(&data, vec![data.train[0]], 40, 0, 1, 1)?;
        let batch = batches.get(0)?;
        let rows = batch.images.flatten_from(1)?.to_vec2::<f32>()?;
        assert!(
            rows.iter().any(|r| r != &rows[0]),
            "forty draws of one image must not all be shifted alike"
        );
        Ok(())
    }

    #[test]
    fn shifts_move_pixels_and_fill_with_raw_zero() {
        let p = Preprocessing { divisor: 1., mean: 0.5, std: 1. };
        let mut out = Vec::new();
        push_shifted(&mut out, &[1, 2, 3, 4], 2, 1, 0, &p);
        assert_eq!(out, [-0.5, -0.5, 0.5, 1.5]);
        out.clear();
        push_shifted(&mut out, &[1, 2, 3, 4], 2, 0, -1, &p);
        assert_eq!(out, [1.5, -0.5, 3.5, -0.5]);
    }
}
