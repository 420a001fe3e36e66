//! The parts of all ranks are the batch of one.

use super::*;
use crate::data::write_scenes;
use crate::recipe::{
    BoxAugmentConfig, BoxCropConfig, CocoConfig, DataConfig, DetectionDataConfig, DetectionRecipe,
    DetectionSource, GenerationRecipe, Outside, Recipe, ScenesConfig, ValidationPart,
};
use crate::workload::{Classification, Detection, Generation, Stream, Workload};
use crate::{Batches, Dataset, DetectionBatches, DetectionDataset, write_image_folder};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use vkd_tasks::{Batch, DetectionBatch, GenerationBatch, Objects};

const RANKS: [usize; 3] = [1, 2, 4];
const WORKERS: [usize; 2] = [0, 2];
/// Not only in order: a jump starts anew.
const STEPS: [u64; 4] = [0, 1, 5, 2];

/// What draws a great deal.
const DRAWS: [&str; 4] = [
    "data.augment.flip=0.5",
    "data.augment.erase=0.5",
    "data.augment.crop.scale=[0.3, 1.0]",
    "data.shift=0",
];
const MIXES: [&str; 2] = ["data.augment.mixup=0.8", "data.augment.cutmix=1.0"];

fn strings(set: &[&str]) -> Vec<String> {
    set.iter().map(|s| (*s).to_owned()).collect()
}

fn recipe(set: &[&str]) -> Result<Recipe> {
    Recipe::parse(include_str!("../../tests/tiny.toml"), "tiny.toml", &strings(set))
}

fn says<T>(result: Result<T>) -> String {
    result.err().map(|e| crate::plain(&e)).unwrap_or_default()
}

/// Id, pixels and label of a sample; without one the last is empty.
type Sample = (u64, Vec<f32>, Vec<f32>);

fn samples(batch: &Batch) -> Result<Vec<Sample>> {
    let pixels = batch.images.flatten_from(1)?.to_vec2::<f32>()?;
    let labels = match batch.labels.rank() {
        1 => batch.labels.to_vec1::<u32>()?.iter().map(|class| vec![*class as f32]).collect(),
        _ => batch.labels.to_vec2::<f32>()?,
    };
    assert_eq!(pixels.len(), batch.sample_ids.len());
    let labels = labels.into_iter().chain(std::iter::repeat(Vec::new()));
    let all = batch.sample_ids.iter().zip(pixels).zip(labels);
    Ok(all.map(|((id, pixels), labels)| (*id, pixels, labels)).collect())
}

/// The streams of `size` ranks.
fn ranks<S: Stream>(size: usize, make: impl Fn() -> Result<S>) -> Result<Vec<S>> {
    let one = |rank| {
        let mut stream = make()?;
        stream.share(Share::new(rank, size)?)?;
        Ok(stream)
    };
    (0..size).map(one).collect()
}

fn sorted(mut samples: Vec<Sample>) -> Vec<Sample> {
    samples.sort_by_key(|sample| sample.0);
    samples
}

/// Asserts that the parts of 1, 2 and 4 ranks are the batches of one, of `labelled` labelled images and `rest` others.
fn parts_are_the_whole(
    data: &Dataset,
    config: &DataConfig,
    [labelled, rest]: [usize; 2],
) -> Result<()> {
    let few = data.labelled(20, 3)?;
    let make = || Batches::new(data, few.clone(), labelled, rest, config, 5);
    let mut whole = make()?;
    for size in RANKS {
        let mut streams = ranks(size, make)?;
        for step in STEPS {
            let want = samples(&whole.get(step)?)?;
            let mut got = Vec::new();
            for stream in &mut streams {
                let part = samples(&Stream::get(stream, step)?)?;
                let with_label = |sample: &Sample| !sample.2.is_empty();
                assert_eq!(part.len(), (labelled + rest) / size);
                assert_eq!(part.iter().filter(|s| with_label(s)).count(), labelled / size);
                assert!(part.iter().take(labelled / size).all(with_label));
                got.extend(part);
            }
            match size {
                1 => assert!(got == want, "step {step}: one rank"),
                _ => assert!(sorted(got) == sorted(want), "step {step}: {size} ranks"),
            }
        }
    }
    Ok(())
}

#[test]
fn the_parts_of_a_batch_are_the_batch() -> Result<()> {
    let more: [&[&str]; 4] = [
        &[],
        &["data.augment.repeats=3"],
        &["data.augment.views=3"],
        &["data.augment.repeats=2", "data.augment.views=2"],
    ];
    for (workers, more) in WORKERS.iter().flat_map(|w| more.map(|m| (w, m))) {
        let workers = format!("data.workers={workers}");
        let set = [&DRAWS[..], more, &[workers.as_str()]].concat();
        let config = recipe(&set)?.data;
        let data = Dataset::open(&config)?;
        parts_are_the_whole(&data, &config, [12, 20])?;
        parts_are_the_whole(&data, &config, [0, 4])?;
        // Twice each labelled image.
        parts_are_the_whole(&data, &config, [40, 0])?;
        let config = recipe(&[&set[..], &MIXES].concat())?.data;
        parts_are_the_whole(&data, &config, [16, 24])?;
        parts_are_the_whole(&data, &config, [0, 8])?;
        parts_are_the_whole(&data, &config, [40, 0])?;
    }
    Ok(())
}

#[test]
fn without_mixing_a_part_is_a_block_and_mixing_takes_mirrored_ones() -> Result<()> {
    for (set, mixes) in [(&DRAWS[..], false), (&[&DRAWS[..], &MIXES].concat()[..], true)] {
        let config = recipe(set)?.data;
        let data = Dataset::open(&config)?;
        let few = data.labelled(20, 3)?;
        let make = || Batches::new(&data, few.clone(), 8, 16, &config, 5);
        let whole = make()?.get(3)?;
        let mut two = ranks(2, make)?;
        let (first, second) = (two[0].get(3)?, two[1].get(3)?);
        let at = |places: &[usize]| -> Vec<u64> {
            places.iter().filter_map(|p| whole.sample_ids.get(*p).copied()).collect()
        };
        if mixes {
            assert_eq!(first.sample_ids[..], at(&[0, 1, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23]));
            assert_eq!(second.sample_ids[..], at(&[2, 3, 4, 5, 12, 13, 14, 15, 16, 17, 18, 19]));
            let mixed = |row: &Vec<f32>| row.iter().filter(|share| **share > 0.).count() == 2;
            assert!(whole.labels.to_vec2::<f32>()?.iter().any(mixed));
        } else {
            assert_eq!(first.sample_ids[..], at(&[0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15]));
            assert_eq!(second.sample_ids[..], at(&[4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23]));
        }
    }
    Ok(())
}

#[test]
fn a_stream_may_be_split_when_it_has_run_and_made_whole_again() -> Result<()> {
    for workers in ["data.workers=0", "data.workers=2"] {
        let config = recipe(&[workers])?.data;
        let data = Dataset::open(&config)?;
        let make = || Batches::new(&data, data.train.clone(), 12, 0, &config, 5);
        let (mut whole, mut batches) = (make()?, make()?);
        batches.get(0)?;
        // The next batch is being made when the stream is split.
        batches.share(Share::new(1, 3)?)?;
        assert_eq!(samples(&batches.get(1)?)?, samples(&whole.get(1)?)?[4..8]);
        batches.share(Share::new(0, 2)?)?;
        assert_eq!(samples(&batches.get(2)?)?, samples(&whole.get(2)?)?[..6]);
        assert!(batches.share(Share::new(0, 5)?).is_err());
        batches.share(Share::whole())?;
        assert_eq!(samples(&batches.get(3)?)?, samples(&whole.get(3)?)?);
    }
    Ok(())
}

/// A tar file of one image of a class.
fn shard(to: &Path, image: &[u8], class: &str) -> Result<()> {
    let mut builder = tar::Builder::new(std::fs::File::create(to)?);
    for (name, bytes) in [("image.jpg", image), ("image.cls", class.as_bytes())] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes)?;
    }
    Ok(builder.finish()?)
}

/// Thirty training images in files, or in shards of one image each.
fn images(dir: &Path, shards: bool, set: &[&str]) -> Result<DataConfig> {
    let (files, tars) = (dir.join("files"), dir.join("shards"));
    write_image_folder(&files, 20, 4, 1, 0)?;
    for (part, class) in ["train", "val"].iter().flat_map(|p| (0..10).map(move |c| (p, c))) {
        std::fs::create_dir_all(tars.join(part))?;
        for n in 0..5 {
            if let Ok(image) = std::fs::read(files.join(format!("{part}/{class}/{n}.jpg"))) {
                let to = tars.join(format!("{part}/{class}-{n}.tar"));
                shard(&to, &image, &class.to_string())?;
            }
        }
    }
    let (kind, dir) = if shards { ("shards", tars) } else { ("folder", files) };
    let (kind, dir) = (format!("data.kind={kind}"), format!("data.dir={}", dir.display()));
    let own = [kind.as_str(), dir.as_str(), "data.size=16", "data.train=30", "data.validation=10"];
    Ok(recipe(&[&own[..], set].concat())?.data)
}

/// The file that holds an image.
fn file(name: &str) -> PathBuf {
    let path = PathBuf::from(name);
    match path.parent() {
        Some(tar) if tar.extension().is_some_and(|e| e == "tar") => tar.to_owned(),
        _ => path,
    }
}

/// Calls `then` while none of `files` can be read.
fn without<T>(files: &BTreeSet<PathBuf>, then: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut kept = Vec::new();
    for file in files {
        kept.push((file, std::fs::read(file)?));
        std::fs::write(file, "no image")?;
    }
    let result = then();
    for (file, bytes) in kept {
        std::fs::write(file, bytes)?;
    }
    result
}

#[test]
fn a_rank_reads_no_image_of_another() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let kinds = [false, true].iter().flat_map(|shards| WORKERS.map(|w| (*shards, w)));
    for ((shards, workers), mixes) in kinds.flat_map(|k| [(k, &[][..]), (k, &MIXES[..])]) {
        let workers = format!("data.workers={workers}");
        let set = [&DRAWS[..], mixes, &[workers.as_str()]].concat();
        let config = images(dir.path(), shards, &set)?;
        let data = Dataset::open(&config)?;
        let few = data.labelled(20, 3)?;
        let make = || Batches::new(&data, few.clone(), 8, 16, &config, 5);
        let files = |ids: &[u64]| -> BTreeSet<PathBuf> {
            ids.iter().map(|id| file(&data.image_name(*id as usize % data.len()))).collect()
        };
        let whole = make()?.get(2)?;
        for size in [2, 4] {
            for rank in 0..size {
                let mut stream = make()?;
                stream.share(Share::new(rank, size)?)?;
                let part = stream.get(2)?;
                let others = &files(&whole.sample_ids) - &files(&part.sample_ids);
                assert!(others.len() >= 4, "{}", others.len());
                let again = without(&others, || {
                    assert!(make()?.get(2).is_err());
                    let mut stream = make()?;
                    stream.share(Share::new(rank, size)?)?;
                    stream.get(2)
                })?;
                assert!(samples(&again)? == samples(&part)?, "rank {rank} of {size}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_takes_the_place_of_an_unreadable_image_is_the_same() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for workers in ["data.workers=0", "data.workers=2"] {
        let set = [&DRAWS[..], &[workers, "data.on_corrupt=skip"]].concat();
        let config = images(dir.path(), false, &set)?;
        let data = Dataset::open(&config)?;
        for index in data.train.iter().step_by(3) {
            std::fs::write(data.image_name(*index), "no image")?;
        }
        parts_are_the_whole(&data, &config, [8, 12])?;
        assert!(data.skipped().len() > 5, "{:?}", data.skipped());
        let config = images(dir.path(), false, &[&set[..], &MIXES].concat())?;
        let data = Dataset::open(&config)?;
        for index in data.train.iter().step_by(3) {
            std::fs::write(data.image_name(*index), "no image")?;
        }
        parts_are_the_whole(&data, &config, [8, 16])?;
        assert!(data.skipped().len() > 5, "{:?}", data.skipped());
    }
    Ok(())
}

/// Id, pixels, padding, objects, size and stored size of a sample.
type Marked = (u64, Vec<f32>, Vec<u8>, Objects, [usize; 2], [usize; 2]);

fn marked(batch: &DetectionBatch) -> Result<Vec<Marked>> {
    let pixels = batch.images.flatten_from(1)?.to_vec2::<f32>()?;
    let padding = batch.padding.flatten_from(1)?.to_vec2::<u8>()?;
    assert_eq!([pixels.len(), padding.len(), batch.objects.len()], [batch.sample_ids.len(); 3]);
    let one = |(i, (pixels, padding)): (usize, _)| {
        let sizes = (batch.sizes[i], batch.original_sizes[i]);
        (batch.sample_ids[i], pixels, padding, batch.objects[i].clone(), sizes.0, sizes.1)
    };
    let all = pixels.into_iter().zip(padding).enumerate();
    Ok(all.map(one).collect())
}

fn scenes(source: DetectionSource, workers: usize) -> DetectionDataConfig {
    let crop = BoxCropConfig { probability: 0.5, sides: vec![40, 56], least: 24, most: 44 };
    DetectionDataConfig {
        sides: vec![32, 40, 48],
        longest: Some(60),
        multiple: 4,
        workers,
        augment: BoxAugmentConfig { flip: 0.5, crop: Some(crop), least_visible: 0.2 },
        ..DetectionDataConfig::plain(source)
    }
}

fn small() -> ScenesConfig {
    ScenesConfig { train: 22, validation: 2, test: 2, size: 48, ..ScenesConfig::default() }
}

#[test]
fn the_parts_of_a_batch_with_boxes_are_padded_as_the_batch() -> Result<()> {
    let mut smaller = 0;
    for (workers, pad) in WORKERS.iter().flat_map(|w| [None, Some([64, 72])].map(|pad| (*w, pad))) {
        let config =
            DetectionDataConfig { pad, ..scenes(DetectionSource::Scenes(small()), workers) };
        let data = DetectionDataset::open(&config)?;
        let make = || DetectionBatches::new(&data, &config, 8, 5);
        let mut whole = make()?;
        for size in RANKS {
            let mut streams = ranks(size, make)?;
            for step in STEPS {
                let want = whole.get(step)?;
                let mut got = Vec::new();
                for stream in &mut streams {
                    let part = stream.get(step)?;
                    assert_eq!(part.len(), 8 / size);
                    assert_eq!(part.images.dims()[1..], want.images.dims()[1..]);
                    let own = crate::detection_batches::largest(part.sizes.iter().copied());
                    smaller += usize::from(pad.is_none() && part.images.dims()[2..] != own);
                    got.extend(marked(&part)?);
                }
                assert!(got == marked(&want)?, "step {step}: {size} ranks");
            }
        }
    }
    assert!(smaller > 10, "{smaller} parts must be padded beyond their own images");
    Ok(())
}

#[test]
fn a_rank_reads_no_image_with_boxes_of_another() -> Result<()> {
    let dir = tempfile::tempdir()?;
    write_scenes(dir.path(), &small())?;
    let source = DetectionSource::Coco(CocoConfig {
        dir: dir.path().to_owned(),
        train: "train".to_owned(),
        validation: ValidationPart::Part("val".to_owned()),
        test: "test".to_owned(),
        channels: 1,
        outside: Outside::Clip,
        ids_as_classes: false,
    });
    for workers in WORKERS {
        let config = scenes(source.clone(), workers);
        let data = DetectionDataset::open(&config)?;
        let make = || DetectionBatches::new(&data, &config, 8, 5);
        let whole = make()?.get(1)?;
        let want = marked(&whole)?;
        for rank in 0..4 {
            let mine = 2 * rank..2 * rank + 2;
            let others = whole.sample_ids.iter().enumerate().filter(|(at, _)| !mine.contains(at));
            let others = others.map(|(_, id)| PathBuf::from(data.image_name(*id as usize)));
            let part = without(&others.collect(), || {
                assert!(make()?.get(1).is_err());
                let mut stream = make()?;
                stream.share(Share::new(rank, 4)?)?;
                stream.get(1)
            })?;
            assert!(marked(&part)? == want[mine], "rank {rank}");
        }
    }
    Ok(())
}

#[test]
fn a_gans_part_is_a_block() -> Result<()> {
    let of = |batch: GenerationBatch| {
        let GenerationBatch { images, labels, sample_ids } = batch;
        samples(&Batch { images, labels, sample_ids })
    };
    for workers in ["data.workers=0", "data.workers=2"] {
        let text = include_str!("../../tests/gan.toml");
        let recipe = GenerationRecipe::parse(text, "gan.toml", &strings(&[workers]))?;
        let data = Generation::open(&recipe.data)?;
        let make =
            || -> Result<_> { Ok(Generation::batches(&recipe, &data, recipe.arm("none")?)?.0) };
        let mut whole = make()?;
        for size in RANKS {
            let mut streams = ranks(size, make)?;
            for step in STEPS {
                let want = of(whole.get(step)?)?;
                for (stream, block) in streams.iter_mut().zip(want.chunks(8 / size)) {
                    assert!(of(stream.get(step)?)? == block, "step {step}: {size} ranks");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn what_can_not_be_split_is_named_by_its_key() -> Result<()> {
    let refused = |set: &[&str], arm: &str, size: usize| -> Result<String> {
        let recipe = recipe(set)?;
        let data = Dataset::open(&recipe.data)?;
        let (mut batches, _) = Classification::batches(&recipe, &data, recipe.arm(arm)?)?;
        Ok(says(batches.share(Share::new(0, size)?)))
    };
    let uneven = |key: &str, size: usize, got: usize| {
        format!("{key}: expected a multiple of {size} ranks, got {got}")
    };
    let thirty = ["training.batch=30"];
    assert_eq!(refused(&thirty, "vkd", 4)?, uneven("training.batch", 4, 30));
    assert_eq!(refused(&thirty, "vkd", 3)?, uneven("training.labelled", 3, 4));
    assert_eq!(refused(&thirty, "none-all-labels", 3)?, "");
    assert_eq!(refused(&thirty, "vkd", 2)?, "");
    let pairs = |key: &str, size: usize, got: usize| {
        format!(
            "{key}: expected a multiple of twice {size} ranks, as images are mixed in pairs, got {got}"
        )
    };
    let mixed = ["training.batch=30", "data.augment.mixup=0.8"];
    assert_eq!(refused(&mixed, "none-all-labels", 2)?, pairs("training.batch", 2, 30));
    assert_eq!(refused(&mixed, "none-all-labels", 1)?, "");
    assert_eq!(refused(&mixed, "vkd", 4)?, pairs("training.labelled", 4, 4));
    assert_eq!(refused(&mixed, "none-all-labels", 3)?, "");

    let few = recipe(&[])?;
    let data = Dataset::open(&few.data)?;
    let mut batches = Classification::teacher_batches(&few, &data)?;
    assert_eq!(says(batches.share(Share::new(2, 3)?)), uneven("teacher.batch", 3, 20));
    let text = include_str!("../../tests/gan.toml");
    let gan = GenerationRecipe::parse(text, "gan.toml", &[])?;
    let data = Generation::open(&gan.data)?;
    let (mut batches, _) = Generation::batches(&gan, &data, gan.arm("none")?)?;
    assert_eq!(says(batches.share(Share::new(2, 3)?)), uneven("training.batch", 3, 8));
    let mut batches = Generation::teacher_batches(&gan, &data)?;
    assert_eq!(says(batches.share(Share::new(2, 3)?)), uneven("teacher.batch", 3, 20));
    let text = include_str!("../../tests/scenes.toml");
    let boxes = DetectionRecipe::parse(text, "scenes.toml", &[])?;
    let data = Detection::open(&boxes.data)?;
    let (mut batches, _) = Detection::batches(&boxes, &data, boxes.arm("vkd")?)?;
    assert_eq!(says(batches.share(Share::new(2, 3)?)), uneven("training.batch", 3, 4));
    let mut batches = Detection::teacher_batches(&boxes, &data)?;
    assert_eq!(says(batches.share(Share::new(2, 3)?)), uneven("teacher.batch", 3, 4));
    Ok(())
}

#[test]
fn every_item_belongs_to_one_rank() -> Result<()> {
    for (count, size) in (0..30).flat_map(|count| (1..9).map(move |size| (count, size))) {
        let items: Vec<usize> = (100..100 + count).collect();
        let (mut blocks, mut lengths) = (Vec::<usize>::new(), Vec::new());
        for rank in 0..size {
            let block = Share::new(rank, size)?.of(&items);
            blocks.extend(block);
            lengths.push(block.len());
        }
        assert_eq!(blocks, items);
        assert!(lengths.iter().all(|l| *l == count / size || *l == count.div_ceil(size)));
        for mirrored in [false, true] {
            let mut places = Vec::new();
            for rank in 0..size {
                let own: Vec<usize> = Share::new(rank, size)?.places(count, mirrored).collect();
                assert!(own.is_sorted());
                if mirrored && count % (2 * size) == 0 {
                    let partners: Vec<usize> = own.iter().rev().map(|i| count - 1 - i).collect();
                    assert_eq!(own, partners);
                }
                places.extend(own);
            }
            places.sort_unstable();
            assert_eq!(places, (0..count).collect::<Vec<_>>());
        }
    }
    assert!(says(Share::new(4, 4)).contains("expected a rank below 4"));
    assert!(says(Share::new(0, 0)).contains("expected a rank below 0"));
    assert_eq!(Share::new(0, 1)?, Share::whole());
    assert_eq!((Share::new(2, 3)?.rank(), Share::new(2, 3)?.size()), (2, 3));
    Ok(())
}
