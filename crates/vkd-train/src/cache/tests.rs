//! What is remembered is what would have been computed, or nothing.

use super::{Answers, CachePlan};
use crate::networks::network;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use vkd_models::{Architecture, CnnConfig, ModelConfig};
use vkd_nn::{Context, VarStore};
use vkd_tasks::{Network, NetworkOutput};
use vkd_testkit::normal;

const IMAGES: usize = 12;
const LOOKS: u64 = 2;

fn open(dir: &Path, key: &str, flush_from: u64) -> Result<Answers> {
    let plan = CachePlan { images: IMAGES, looks: LOOKS, row_bytes: 100, limit_mib: 1 };
    let taps = BTreeSet::from(["grid".to_owned()]);
    let mut answers = Answers::open(dir, key.to_owned(), taps, IMAGES, &plan)?;
    answers.flush_from = flush_from;
    Ok(answers)
}

/// A small convolutional teacher that counts how often it is asked.
struct Teacher {
    forward: Box<dyn Network>,
    asked: Cell<usize>,
}

impl Teacher {
    fn new(seed: u64) -> Result<Self> {
        let store = VarStore::new(seed, DType::F32, &Device::Cpu);
        let architecture = Architecture::Cnn(CnnConfig { widths: vec![4, 6] });
        let model = ModelConfig { image_size: 8, channels: 1, classes: 3, architecture };
        model.build(store.builder())?;
        let forward = Box::new(network(model.build(store.frozen())?));
        Ok(Self { forward, asked: Cell::new(0) })
    }

    fn compute(&self, images: &Tensor) -> Result<NetworkOutput> {
        self.asked.set(self.asked.get() + 1);
        self.forward.forward(images, &Context::eval())
    }

    /// Logits and features through `answers`, as bits; and whether the teacher itself was asked.
    fn through(&self, answers: &Answers, images: &Tensor, ids: &[u64]) -> Result<(Vec<u32>, bool)> {
        let before = self.asked.get();
        let output = answers.ask(images, ids, || self.compute(images))?;
        Ok((bits(&output)?, self.asked.get() > before))
    }
}

fn bits(output: &NetworkOutput) -> Result<Vec<u32>> {
    let grid = output.tap("teacher", "grid")?.tensor();
    let mut all = Vec::new();
    for tensor in [&output.logits, grid] {
        all.extend(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits));
    }
    Ok(all)
}

fn flipped(images: &Tensor) -> Result<Tensor> {
    let last = images.dim(3)? as u32;
    let order = Tensor::new((0..last).rev().collect::<Vec<_>>(), &Device::Cpu)?;
    images.contiguous()?.index_select(&order, 3)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for folder in std::fs::read_dir(dir)? {
        for file in std::fs::read_dir(folder?.path())? {
            all.push(file?.path());
        }
    }
    all.sort();
    Ok(all)
}

#[test]
fn features_of_the_flipped_image_are_no_flipped_features() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (answers, teacher) = (open(folder.path(), "k", u64::MAX)?, Teacher::new(1)?);
    let images = normal(&[4, 1, 8, 8], DType::F32, 1)?;
    let mirror = flipped(&images)?;
    let ids = [0, 1, 2, 3];
    let (plain, asked) = teacher.through(&answers, &images, &ids)?;
    assert!(asked);
    // Compared with what is remembered, and from then on remembered.
    assert_eq!(teacher.through(&answers, &images, &ids)?, (plain.clone(), true));
    assert_eq!(teacher.through(&answers, &images, &ids)?, (plain.clone(), false));
    // A convolution does not commute with a flip, so a memory that answers by image alone would lie.
    let want = teacher.compute(&mirror)?;
    let lie = flipped(teacher.compute(&images)?.tap("teacher", "grid")?.tensor())?;
    let apart = (want.tap("teacher", "grid")?.tensor() - lie)?.abs()?.flatten_all()?.max(0)?;
    assert!(apart.to_scalar::<f32>()? > 0.01);
    let want = bits(&want)?;
    // The other look is another answer; and where a caller mistakes one for the other, the pixels tell.
    let look = ids.map(|id| id + IMAGES as u64);
    for ids in [look, ids] {
        assert_eq!(teacher.through(&answers, &mirror, &ids)?, (want.clone(), true));
        assert_eq!(teacher.through(&answers, &mirror, &ids)?, (want.clone(), false));
    }
    // Another appearance in a batch is the same image in the same look, and a batch of both has both.
    let again = look.map(|id| id + LOOKS * IMAGES as u64);
    assert_eq!(teacher.through(&answers, &mirror, &again)?, (want, false));
    Ok(())
}

#[test]
fn a_kill_a_damaged_file_and_strange_ones_cost_time_and_no_bit() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path();
    let teacher = Teacher::new(1)?;
    let images = normal(&[12, 1, 8, 8], DType::F32, 1)?;
    let batches = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]];
    let batch = |ids: &[u64; 4]| images.narrow(0, ids[0] as usize, 4);
    let pass = |answers: &Answers| -> Result<(Vec<Vec<u32>>, usize)> {
        let (mut all, mut asked) = (Vec::new(), 0);
        for ids in &batches {
            let (bits, computed) = teacher.through(answers, &batch(ids)?, ids)?;
            all.push(bits);
            asked += usize::from(computed);
        }
        Ok((all, asked))
    };
    // Written after each second batch; the third is lost with the process.
    let answers = open(dir, "k", 800)?;
    let (want, asked) = pass(&answers)?;
    assert_eq!(asked, 3);
    std::mem::forget(answers);
    let found = files(dir)?;
    assert_eq!(found.len(), 1);
    std::fs::write(found[0].with_file_name(".vkd-x.tmp"), "half a write")?;
    // One batch is computed to compare, the second remembered, the third computed and written at the end.
    let answers = open(dir, "k", u64::MAX)?;
    assert_eq!(pass(&answers)?, (want.clone(), 2));
    assert_eq!(pass(&answers)?, (want.clone(), 0));
    drop(answers);
    assert_eq!(files(dir)?.len(), 3);
    // A flipped bit.
    let mut bytes = std::fs::read(&found[0])?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&found[0], &bytes)?;
    let answers = open(dir, "k", u64::MAX)?;
    assert!(!found[0].exists(), "a damaged file is removed");
    assert_eq!(pass(&answers)?, (want.clone(), 3));
    drop(answers);
    assert_eq!(pass(&open(dir, "k", u64::MAX)?)?, (want.clone(), 1));
    // Another teacher's answers in this one's place, by name and by folder.
    let other = Teacher::new(2)?;
    let strange = open(dir, "other", u64::MAX)?;
    let (theirs, _) = other.through(&strange, &batch(&batches[0])?, &batches[0])?;
    assert_ne!(theirs, want[0]);
    drop(strange);
    let (ours, theirs): (Vec<_>, Vec<_>) =
        files(dir)?.into_iter().partition(|path| path.parent() == found[0].parent());
    let (Some(ours), Some(theirs)) = (ours.last(), theirs.first()) else { bail!("no files") };
    std::fs::copy(theirs, ours.with_file_name("part-00.safetensors"))?;
    assert_eq!(pass(&open(dir, "k", u64::MAX)?)?, (want, 1));
    assert!(!ours.with_file_name("part-00.safetensors").exists());
    Ok(())
}

#[test]
fn a_teacher_that_answers_otherwise_is_found_out() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let images = normal(&[4, 1, 8, 8], DType::F32, 1)?;
    let ids = [0, 1, 2, 3];
    Teacher::new(1)?.through(&open(folder.path(), "k", 1)?, &images, &ids)?;
    let answers = open(folder.path(), "k", 1)?;
    let message = Teacher::new(2)?.through(&answers, &images, &ids).err().map(|e| e.to_string());
    let message = message.unwrap_or_default();
    assert!(message.contains("computes for sample 0, got other bits"), "{message}");
    Ok(())
}

#[test]
fn two_processes_write_no_answer_twice() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (dir, teacher) = (folder.path(), Teacher::new(1)?);
    let images = normal(&[8, 1, 8, 8], DType::F32, 1)?;
    let (a, b) = (open(dir, "k", u64::MAX)?, open(dir, "k", u64::MAX)?);
    let front: Vec<u64> = (0..8).collect();
    let (want, _) = teacher.through(&a, &images, &front)?;
    let half = images.narrow(0, 4, 4)?;
    teacher.through(&b, &half, &front[4..])?;
    a.flush()?;
    b.flush()?;
    assert_eq!(files(dir)?.len(), 1);
    // The second has read what the first has written.
    assert_eq!(teacher.through(&b, &images, &front)?, (want.clone(), true));
    assert_eq!(teacher.through(&b, &images, &front)?, (want, false));
    Ok(())
}
