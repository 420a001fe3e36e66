//! An image folder made of the embedded digits, to try the whole path from files to a student without a download.

use super::{Dataset, Image};
use crate::augment::resize;
use crate::recipe::DataConfig;
use candle_core::{Error, Result, bail};
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use rand::Rng;
use std::path::Path;
use vkd_nn::stream;

const QUALITY: u8 = 90;

/// Writes `train/CLASS/N.jpg` and `val/CLASS/N.jpg` under `dir`: digits in two drawn colours, enlarged to `size` by
/// `size`, `train` and `val` of each of ten classes.
///
/// # Errors
/// A folder that can't be written, no pixels, or more images than the digits have of a class.
pub fn write_image_folder(
    dir: &Path,
    size: usize,
    train: usize,
    val: usize,
    seed: u64,
) -> Result<()> {
    let digits = Dataset::open(&DataConfig::digits(1, 1))?;
    if size == 0 || train == 0 || val == 0 {
        bail!("images: expected sizes and counts of at least 1, got {size}, {train} and {val}")
    }
    for (class, name) in digits.class_names.iter().enumerate() {
        let of_class: Vec<usize> =
            (0..digits.len()).filter(|&i| digits.label(i) as usize == class).collect();
        if train + val > of_class.len() {
            bail!(
                "images: expected at most the {} digits of class {name}, got {train} + {val}",
                of_class.len()
            )
        }
        for (n, &index) in of_class.iter().take(train + val).enumerate() {
            let part = if n < train { "train" } else { "val" };
            let folder = dir.join(part).join(name);
            std::fs::create_dir_all(&folder)?;
            let image = colored(&digits.image(index)?, size, seed, index as u64)?;
            std::fs::write(folder.join(format!("{n}.jpg")), jpeg(&image)?)?;
        }
    }
    Ok(())
}

/// The bytes of a JPEG file.
fn jpeg(image: &Image) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY)
        .write_image(
            &image.pixels,
            image.width as u32,
            image.height as u32,
            ExtendedColorType::Rgb8,
        )
        .map_err(Error::wrap)?;
    Ok(bytes)
}

/// Ink of one colour on paper of another.
fn colored(digit: &Image, size: usize, seed: u64, id: u64) -> Result<Image> {
    let mut rng = stream(seed, "images.colors", 0, id);
    let ink: [f32; 3] = std::array::from_fn(|_| rng.random_range(128. ..=255.));
    let paper: [f32; 3] = std::array::from_fn(|_| rng.random_range(0. ..=96.));
    let pixels = digit.pixels.iter().flat_map(|&value| {
        let share = f32::from(value) / 16.;
        std::array::from_fn::<u8, 3, _>(|c| (paper[c] + share * (ink[c] - paper[c])) as u8)
    });
    let small = Image::new(digit.width, digit.height, 3, pixels.collect())?;
    resize(&small, size, size)
}
