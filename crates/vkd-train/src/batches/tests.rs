//! A batch is a function of seed and step, whoever makes it.

use super::*;
use crate::Recipe;

fn recipe(set: &[&str]) -> Result<DataConfig> {
    let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
    Ok(Recipe::parse(include_str!("../../tests/tiny.toml"), "tiny.toml", &set)?.data)
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
