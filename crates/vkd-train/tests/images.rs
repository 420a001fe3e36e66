//! Data sets of image files: what is read, what is refused and by which name, and a run from files to a student.

use candle_core::Result;
use std::path::Path;
use vkd_train::{
    Batches, Dataset, Recipe, RunFolder, check, plain_images, train_arm, train_teacher,
};

const TINY: &str = include_str!("tiny.toml");

fn recipe(dir: &Path, set: &[&str]) -> Result<Recipe> {
    let mut all = vec![format!("data.dir={}", dir.display())];
    all.extend(
        ["data.kind=folder", "data.size=16", "data.train=60", "data.validation=10"]
            .map(String::from),
    );
    all.extend(set.iter().map(|s| (*s).to_owned()));
    Recipe::parse(TINY, "tiny.toml", &all)
}

fn says<T>(result: Result<T>) -> String {
    result.err().map(|e| vkd_train::plain(&e)).unwrap_or_default()
}

const PAPER: [&str; 7] = [
    "data.augment.crop.scale=[0.08, 1.0]",
    "data.augment.flip=0.5",
    "data.augment.three_augment=true",
    "data.augment.color_jitter=0.3",
    "data.augment.mixup=0.8",
    "data.augment.cutmix=1.0",
    "data.workers=2",
];

#[test]
fn an_arm_trains_on_jpegs_with_the_papers_augmentation() -> Result<()> {
    let (images, out) = (tempfile::tempdir()?, tempfile::tempdir()?);
    vkd_train::write_image_folder(images.path(), 24, 8, 2, 0)?;
    let set = [
        &PAPER[..],
        &[r#"arms=["vkd"]"#, "teacher.floor=0.0", "teacher.steps=4", "arm.vkd.labels=all"],
    ]
    .concat();
    let recipe = recipe(images.path(), &set)?;
    let data = Dataset::open(&recipe.data)?;
    assert_eq!(
        (data.channels, data.train.len(), data.validation.len(), data.test.len()),
        (3, 60, 10, 20)
    );
    check(&recipe, &data)?;
    let run = RunFolder::create(out.path(), recipe, false)?;
    train_teacher(&run, &data, &mut |_| Ok(()))?;
    let report = train_arm(&run, &data, "vkd", &mut |_| Ok(()))?;
    assert!(report.projector_residual_max.is_some_and(|r| r <= 1e-6));
    assert!(data.skipped().is_empty() && data.unreadable(|| {}).is_empty());
    Ok(())
}

#[test]
fn a_broken_file_stops_by_name_or_is_skipped_and_counted() -> Result<()> {
    let images = tempfile::tempdir()?;
    vkd_train::write_image_folder(images.path(), 24, 8, 2, 0)?;
    std::fs::write(images.path().join("train/3/0.jpg"), b"\xff\xd8\xff no more")?;
    for workers in ["data.workers=0", "data.workers=2"] {
        let stop = recipe(images.path(), &["data.train=70", workers])?;
        let data = Dataset::open(&stop.data)?;
        // All training images in one batch, so that the broken one is among them.
        let broken = (0..data.len()).find(|&i| data.image(i).is_err()).map(|i| vec![i]);
        let broken = broken.unwrap_or_default();
        let make = |data: &Dataset, recipe: &Recipe| {
            Batches::new(data, broken.clone(), 1, 0, &recipe.data, 0)
        };
        let message = says(make(&data, &stop)?.get(0));
        assert!(message.contains("3/0.jpg") || message.contains("3\\0.jpg"), "{message}");
        assert!(data.unreadable(|| {})[0].contains("0.jpg"));
        let skip = recipe(images.path(), &["data.train=70", workers, "data.on_corrupt=skip"])?;
        let data = Dataset::open(&skip.data)?;
        let mut labelled = broken.clone();
        labelled.push((broken[0] + 1) % data.len());
        let batch = Batches::new(&data, labelled, 2, 0, &skip.data, 0)?.get(0)?;
        assert_eq!(batch.images.dims(), [2, 3, 16, 16]);
        let id = (broken[0] + 1) % data.len();
        assert!(batch.sample_ids.iter().all(|i| *i as usize % data.len() == id));
        assert_ne!(batch.sample_ids[0], batch.sample_ids[1]);
        assert_eq!(data.skipped().len(), 1);
    }
    Ok(())
}

#[test]
fn validation_images_are_decoded_once() -> Result<()> {
    let images = tempfile::tempdir()?;
    vkd_train::write_image_folder(images.path(), 24, 8, 2, 0)?;
    let recipe = recipe(images.path(), &[])?;
    let data = Dataset::open(&recipe.data)?;
    let look = |indices: &[usize]| -> Result<Vec<f32>> {
        plain_images(&data, indices, data.preprocessing())?.flatten_all()?.to_vec1()
    };
    let first = look(&data.validation)?;
    look(&data.train)?;
    for part in ["train", "val"] {
        std::fs::remove_dir_all(images.path().join(part))?;
    }
    // The files are gone, and the very same numbers come back; of the others nothing was kept.
    assert_eq!(look(&data.validation)?, first);
    assert!(look(&data.train[..1]).is_err() && look(&data.test[..1]).is_err());
    Ok(())
}

#[test]
fn folders_that_do_not_fit_are_named() -> Result<()> {
    let images = tempfile::tempdir()?;
    vkd_train::write_image_folder(images.path(), 8, 8, 2, 0)?;
    let open = || says(recipe(images.path(), &[]).and_then(|r| Dataset::open(&r.data)));
    assert_eq!(open(), "");
    std::fs::create_dir_all(images.path().join("val/extra"))?;
    assert!(open().contains("extra: expected .jpg"), "{}", open());
    std::fs::copy(images.path().join("val/0/8.jpg"), images.path().join("val/extra/a.jpg"))?;
    assert!(open().contains("expected train/extra as in val"), "{}", open());
    std::fs::remove_dir_all(images.path().join("val/extra"))?;
    std::fs::remove_dir_all(images.path().join("val/4"))?;
    assert!(open().contains("expected val/4 as in train"), "{}", open());
    Ok(())
}

type Files<'a> = &'a [(&'a str, &'a [u8])];

fn tar(path: &Path, files: Files) -> Result<()> {
    let mut builder = tar::Builder::new(std::fs::File::create(path)?);
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes)?;
    }
    builder.finish()?;
    Ok(())
}

#[test]
fn shards_give_the_files_images_and_name_their_faults() -> Result<()> {
    let folder = tempfile::tempdir()?;
    vkd_train::write_image_folder(folder.path(), 24, 1, 1, 0)?;
    let jpg = std::fs::read(folder.path().join("train/0/0.jpg"))?;
    let dir = tempfile::tempdir()?;
    for part in ["train", "val"] {
        std::fs::create_dir(dir.path().join(part))?;
        tar(
            &dir.path().join(part).join("0.tar"),
            &[("b.jpg", &jpg), ("b.cls", b"1"), ("a.jpg", &jpg), ("a.cls", b"0\n")],
        )?;
    }
    let open = || {
        let set = ["data.kind=shards", "data.train=1", "data.validation=1"];
        recipe(dir.path(), &set).and_then(|r| Dataset::open(&r.data))
    };
    let data = open()?;
    assert_eq!((data.len(), data.label(0), data.label(1), data.test.len()), (4, 0, 1, 2));
    assert_eq!(data.image(1)?, vkd_train::Image::decode(&jpg, 3)?);
    let shard = dir.path().join("train/0.tar");
    let cases: [(Files, &str); 4] = [
        // As many names as this number would fill the memory.
        (
            &[("a.jpg", &jpg), ("a.cls", b"4000000000")],
            "got none of class 0 but some of 4000000000",
        ),
        (&[("a.jpg", &jpg)], "a.jpg: expected a.cls beside it"),
        (&[("a.cls", b"0")], "a.cls: expected an image of that key"),
        (&[("a.jpg", &jpg), ("a.cls", b"cat")], "a.cls: expected a class number, got \"cat\""),
    ];
    for (files, part) in cases {
        tar(&shard, files)?;
        let message = says(open());
        assert!(message.contains(part), "{message}");
        assert!(message.contains("0.tar") || part.contains("none of class"), "{message}");
    }
    Ok(())
}

#[test]
fn cifar_reads_planes_and_names_what_is_cut_off() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut record = vec![7u8, 42];
    record.extend([vec![1u8; 1024], vec![2; 1024], vec![3; 1024]].concat());
    let two = [record.clone(), record.clone()].concat();
    std::fs::write(dir.path().join("train.bin"), &two)?;
    std::fs::write(dir.path().join("test.bin"), &record)?;
    let open = || {
        let set = ["data.kind=cifar100", "data.size=32", "data.train=1", "data.validation=1"];
        recipe(dir.path(), &set).and_then(|r| Dataset::open(&r.data))
    };
    let data = open()?;
    assert_eq!((data.len(), data.label(0), data.channels), (3, 42, 3));
    assert_eq!(data.image(2)?.pixels()[..6], [1, 2, 3, 1, 2, 3]);
    std::fs::write(dir.path().join("train.bin"), &two[..two.len() - 1])?;
    assert!(says(open()).contains("train.bin: expected records of 3074 bytes each, got 6147"));
    record[1] = 100;
    std::fs::write(dir.path().join("train.bin"), &record)?;
    assert!(says(open()).contains("offset 1: expected a label of 0 to 99, got 100"));
    Ok(())
}
