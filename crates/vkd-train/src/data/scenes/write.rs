//! Scenes as a COCO data set on the disk.

use super::{Part, Scenes, annotation_ids, image_id};
use crate::data::coco::{CocoAnnotation, CocoCategory, CocoFile, CocoImage};
use crate::recipe::ScenesConfig;
use candle_core::{Error, Result, bail};
use rayon::prelude::*;
use std::path::Path;
use vkd_models::write_atomically;

/// Writes `annotations/instances_PART.json` and `PART/N.png` for `train`, `val` and `test` under `dir`, and says how many
/// images and boxes each part has.
///
/// `N` counts the images of a part from 1. Ids are those of [`DetectionDataset`](crate::DetectionDataset): an image's counts on
/// through the parts, so that none is in two files. Categories are the digits in order, `area` is a box's. Other tools read the
/// files as COCO's own.
///
/// # Errors
/// Settings that can't be met, or a folder that can't be written.
pub fn write_scenes(
    dir: &Path,
    config: &ScenesConfig,
) -> Result<Vec<(&'static str, usize, usize)>> {
    let scenes = Scenes::new(config)?;
    let annotations = dir.join("annotations");
    let made = |dir: &Path| match std::fs::create_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(e) => bail!("{}: {e}", dir.display()),
    };
    made(&annotations)?;
    let mut written = Vec::new();
    for part in Part::ALL {
        let folder = dir.join(part.name());
        made(&folder)?;
        let file = write_part(&scenes, part, &folder)?;
        let json = serde_json::to_vec(&file).map_err(Error::wrap)?;
        write_atomically(&annotations.join(format!("instances_{}.json", part.name())), &json)?;
        written.push((part.name(), file.images.len(), file.annotations.len()));
    }
    Ok(written)
}

fn write_part(scenes: &Scenes, part: Part, folder: &Path) -> Result<CocoFile> {
    let first = scenes.first(part);
    let one = |index: usize| {
        let (image, objects) = scenes.scene(part, index as u64)?;
        let file_name = format!("{:06}.png", index + 1);
        let path = folder.join(&file_name);
        if let Err(e) = std::fs::write(&path, image.to_png()?) {
            bail!("{}: {e}", path.display())
        }
        let size = scenes.size() as u64;
        Ok((
            CocoImage { id: image_id(first + index), file_name, width: size, height: size },
            objects,
        ))
    };
    let made: Vec<_> = (0..scenes.count(part)).into_par_iter().map(one).collect::<Result<_>>()?;
    let mut file = CocoFile::new(
        "handwritten digits (UCI, E. Alpaydin, C. Kaynak, CC BY 4.0) composed by vkd",
    );
    for (index, (image, objects)) in made.into_iter().enumerate() {
        let marked = objects.boxes.iter().zip(&objects.classes);
        for (id, (corners, class)) in annotation_ids(first + index).zip(marked) {
            let [x0, y0, x1, y1] = corners.map(f64::from);
            file.annotations.push(CocoAnnotation {
                id,
                image_id: image.id,
                category_id: u64::from(*class) + 1,
                bbox: [x0, y0, x1 - x0, y1 - y0],
                area: Some((x1 - x0) * (y1 - y0)),
                iscrowd: 0,
            });
        }
        file.images.push(image);
    }
    file.categories = (0..10).map(|d| CocoCategory { id: d + 1, name: d.to_string() }).collect();
    Ok(file)
}
