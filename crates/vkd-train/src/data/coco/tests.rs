//! What is read of COCO files, what is passed over and counted, and what is refused by which name.

use super::*;
use crate::data::scenes::write_scenes;
use crate::recipe::{DetectionDataConfig, DetectionSource, ScenesConfig};
use crate::{Counts, DetectionDataset};
use tempfile::TempDir;

fn config(dir: &Path, validation: ValidationPart) -> CocoConfig {
    CocoConfig {
        dir: dir.to_owned(),
        train: "train".to_owned(),
        validation,
        test: "test".to_owned(),
        channels: 1,
        outside: Outside::Clip,
        ids_as_classes: false,
    }
}

fn open(config: CocoConfig) -> Result<DetectionDataset> {
    DetectionDataset::open(&DetectionDataConfig::plain(DetectionSource::Coco(config)))
}

const CATEGORIES: &str = r#"[{"id": 90, "name": "brush"}, {"id": 3, "name": "car"}]"#;

/// A data set whose parts both have images 5 (4 wide, 3 high) and 2 (2x2), with `annotations`.
fn folder(annotations: &str) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir_all(folder.path().join("annotations"))?;
    for part in ["train", "test"] {
        let images = folder.path().join(part);
        std::fs::create_dir_all(&images)?;
        for (name, width, height) in [("five.png", 4, 3), ("two.png", 2, 2)] {
            let image = ::image::GrayImage::from_pixel(width, height, ::image::Luma([9]));
            image.save(images.join(name)).map_err(Error::wrap)?;
        }
        let json = format!(
            r#"{{"info": null, "images": [{{"id": 5, "file_name": "five.png", "width": 4, "height": 3}},
{{"id": 2, "file_name": "two.png", "width": 2, "height": 2}}],
"annotations": [{annotations}], "categories": {CATEGORIES}}}"#
        );
        std::fs::write(folder.path().join(format!("annotations/instances_{part}.json")), json)?;
    }
    Ok(folder)
}

fn annotation(id: u64, bbox: &str, rest: &str) -> String {
    format!(r#"{{"id": {id}, "image_id": 5, "category_id": 90, "bbox": {bbox}{rest}}}"#)
}

fn says(dir: &Path, change: impl Fn(&mut CocoConfig)) -> String {
    let mut config = config(dir, ValidationPart::Cut(0));
    change(&mut config);
    open(config).err().map(|e| crate::plain(&e)).unwrap_or_default()
}

#[test]
fn scenes_are_read_back_as_they_were_written() -> Result<()> {
    let scenes = ScenesConfig { train: 4, validation: 2, test: 3, ..ScenesConfig::default() };
    for channels in [1, 3] {
        let scenes = ScenesConfig { channels, ..scenes.clone() };
        let folder = tempfile::tempdir()?;
        let written = write_scenes(folder.path(), &scenes)?;
        let config = config(folder.path(), ValidationPart::Part("val".to_owned()));
        let from_files = open(CocoConfig { channels, ..config })?;
        let plain = DetectionDataConfig::plain(DetectionSource::Scenes(scenes));
        let direct = DetectionDataset::open(&plain)?;
        assert_eq!(written.iter().map(|w| w.1).collect::<Vec<_>>(), [4, 2, 3]);
        assert_eq!(from_files.class_names, direct.class_names);
        assert_eq!((&from_files.train, &from_files.test), (&direct.train, &direct.test));
        let mut boxes = 0;
        for index in 0..9 {
            assert_eq!(from_files.sample(index)?, direct.sample(index)?);
            let marked = from_files.annotations(index)?;
            assert_eq!(marked, direct.annotations(index)?);
            assert_eq!(from_files.image_id(index)?, direct.image_id(index)?);
            assert_eq!(from_files.size(index)?, direct.size(index)?);
            boxes += marked.len();
        }
        assert_eq!(written.iter().map(|w| w.2).sum::<usize>(), boxes);
        assert_eq!(from_files.counts(), Counts::default());
        assert_eq!(from_files.category_id(3)?, direct.category_id(3)?);
    }
    Ok(())
}

#[test]
fn crowds_empty_boxes_and_images_and_odd_ids() -> Result<()> {
    let all = [
        annotation(10, "[0, 0, 2, 3]", r#", "iscrowd": 1, "area": 2.5"#),
        annotation(11, "[1, 1, 0, 1]", ""),
        annotation(12, "[-1, 1, 3, 9]", ""),
        annotation(13, "[0.5, 0, 3.505, 3.01]", ""),
        annotation(14, "[7, 0, 2, 2]", ""),
        annotation(15, "[1, 1, 2, 1]", r#", "area": 0.5"#).replace("90", "3"),
    ];
    let folder = folder(&all.join(","))?;
    let data = open(config(folder.path(), ValidationPart::Cut(1)))?;
    assert_eq!(data.class_names, ["car", "brush"]);
    assert_eq!([data.category_id(0)?, data.category_id(1)?], [3, 90]);
    assert!(data.category_id(2).is_err());
    assert_eq!([data.train.len(), data.validation.len(), data.test.len()], [1, 1, 2]);
    // Ascending ids: the second of each part is image 5.
    let five = data.test[1];
    assert_eq!((data.image_id(five)?, data.size(five)?), (5, [3, 4]));
    let (_, objects) = data.sample(five)?;
    assert_eq!(objects.boxes, [[0., 1., 2., 3.], [0.5, 0., 4., 3.], [1., 1., 3., 2.]]);
    assert_eq!(objects.classes, [1, 1, 0]);
    let annotations = data.annotations(five)?;
    assert_eq!(annotations.len(), 6);
    assert!(annotations[0].crowd && annotations[0].area == 2.5);
    assert_eq!((annotations[2].bbox, annotations[2].area), ([-1., 1., 3., 9.], 27.));
    assert!(data.sample(data.test[0])?.1.is_empty());
    // Of both parts.
    assert_eq!(data.counts(), Counts { crowds: 2, empty: 4, clipped: 4 });
    Ok(())
}

#[test]
fn ids_may_be_the_classes() -> Result<()> {
    let folder = folder(&annotation(1, "[0, 0, 2, 2]", ""))?;
    let config = config(folder.path(), ValidationPart::Cut(0));
    let data = open(CocoConfig { ids_as_classes: true, ..config })?;
    assert_eq!((data.class_names.len(), data.class_names[90].as_str()), (91, "brush"));
    assert_eq!(data.sample(data.test[1])?.1.classes, [90]);
    assert_eq!(data.category_id(90)?, 90);
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    for (bad, wanted) in [
        (annotation(7, "[0, 0, -1, 2]", ""), "annotation 7: expected a finite bbox"),
        (annotation(7, "[0, 0, 1e999, 2]", ""), "line 3 column"),
        (annotation(7, "[0, 0, NaN, 2]", ""), "line 3 column"),
        (annotation(7, "[0, 0, 1, 2]", r#", "area": -1"#), "annotation 7: expected an area"),
        (annotation(7, "[0, 0, 1, 2]", r#", "iscrowd": 2"#), "iscrowd of 0 or 1, got 2"),
        (
            annotation(7, "[0, 0, 1, 2]", "").replace("90", "91"),
            "annotation 7: expected a category of the file, got category_id 91",
        ),
        (
            annotation(7, "[0, 0, 1, 2]", "").replace("\"image_id\": 5", "\"image_id\": 6"),
            "annotation 7: expected an image of the file, got image_id 6",
        ),
        (
            [annotation(7, "[0, 0, 1, 2]", ""), annotation(7, "[0, 0, 1, 2]", "")].join(","),
            "annotation id once, got 7 twice",
        ),
    ] {
        let folder = folder(&bad)?;
        let message = says(folder.path(), |_| ());
        assert!(message.contains("instances_train.json") && message.contains(wanted), "{message}");
    }
    let folder = folder(&annotation(7, "[2, 0, 2.5, 2]", ""))?;
    let refused = says(folder.path(), |c| c.outside = Outside::Refuse);
    assert!(refused.contains("annotation 7: expected a box within 4x3"), "{refused}");
    assert_eq!(says(folder.path(), |_| ()), "");
    let cut = says(folder.path(), |c| c.validation = ValidationPart::Cut(2));
    assert!(cut.contains("fewer than the 2 images of train, got 2"), "{cut}");
    let none = says(folder.path(), |c| c.test = "val2017".to_owned());
    assert!(none.contains("instances_val2017.json: expected an instances file"), "{none}");
    let same = says(folder.path(), |c| c.test = "train".to_owned());
    assert!(
        same.contains("data.source.test: expected another part than data.source.train"),
        "{same}"
    );
    let part = |name: &str| ValidationPart::Part(name.to_owned());
    let seen = says(folder.path(), |c| c.validation = part("train"));
    assert!(seen.contains("data.source.validation: expected another part than data"), "{seen}");
    assert_eq!(says(folder.path(), |c| c.validation = part("test")), "");
    Ok(())
}

#[test]
fn files_that_are_missing_broken_or_of_another_size_are_named() -> Result<()> {
    let folder = folder(&annotation(7, "[0, 0, 1, 2]", ""))?;
    let test = folder.path().join("test");
    std::fs::write(test.join("two.png"), b"no image")?;
    std::fs::rename(folder.path().join("train/two.png"), test.join("five.png"))?;
    std::fs::copy(test.join("five.png"), folder.path().join("train/two.png"))?;
    let data = open(config(folder.path(), ValidationPart::Cut(0)))?;
    let message =
        |index: usize| data.sample(index).err().map(|e| crate::plain(&e)).unwrap_or_default();
    let broken = message(data.test[0]);
    assert!(broken.contains("two.png: expected a JPEG, PNG or WebP image"), "{broken}");
    let size = message(data.test[1]);
    assert!(size.contains("five.png: expected 4x3 pixels") && size.contains("got 2x2"), "{size}");
    std::fs::remove_file(test.join("five.png"))?;
    let missing = says(folder.path(), |_| ());
    assert!(
        missing.contains("2 images, got none for 1: ") && missing.contains("five.png"),
        "{missing}"
    );
    let path = folder.path().join("annotations/instances_test.json");
    let text = std::fs::read_to_string(&path)?.replace("brush", "broom");
    std::fs::write(&path, text)?;
    let other = says(folder.path(), |_| ());
    assert!(other.contains("categories of train, 90 (brush), got 90 (broom)"), "{other}");
    Ok(())
}
