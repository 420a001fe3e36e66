//! `vkd predict`: classify image files.

use candle_core::{Device, Result, bail};
use image::imageops::FilterType;
use std::path::{Path, PathBuf};
use vkd_models::Student;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The student's weights, with its card (.json) beside them
    student: PathBuf,
    /// Images (PNG, JPEG or BMP); turned to grey and scaled to the student's size
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// The images are dark on light, as scans are; the student's data sets are light on dark
    #[arg(long)]
    invert: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let student = Student::load(&args.student, &Device::Cpu)?;
    let pixels = args
        .images
        .iter()
        .map(|path| read(path, &student, args.invert))
        .collect::<Result<Vec<_>>>()?;
    let views: Vec<&[u8]> = pixels.iter().map(Vec::as_slice).collect();
    let probabilities = student.probabilities(&student.preprocess(&views)?)?.to_vec2::<f32>()?;
    let mut text = String::new();
    for (path, row) in args.images.iter().zip(probabilities) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        let best: Vec<String> = order
            .iter()
            .take(3)
            .map(|&c| format!("{} {:.1} %", student.card.class_names[c], 100. * row[c]))
            .collect();
        text.push_str(&format!("{}: {}\n", path.display(), best.join(", ")));
    }
    crate::print(&text)
}

/// Pixels in the range of the student's data set.
fn read(path: &Path, student: &Student, invert: bool) -> Result<Vec<u8>> {
    if student.card.model.channels != 1 {
        bail!(
            "predict: expected a student for grey images, got one for {} channels",
            student.card.model.channels
        )
    }
    let image = match image::open(path) {
        Ok(image) => image,
        Err(e) => bail!("{}: expected an image: {e}", path.display()),
    };
    let size = student.card.model.image_size as u32;
    let grey = image.resize_exact(size, size, FilterType::Triangle).into_luma8();
    let scale = student.card.preprocessing.divisor / 255.;
    let value = |p: u8| (f64::from(if invert { 255 - p } else { p }) * scale).round() as u8;
    Ok(grey.into_raw().into_iter().map(value).collect())
}
