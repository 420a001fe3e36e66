//! `vkd predict`: classify image files, or find objects in them.

use crate::recipe_args::DeviceArgs;
use candle_core::{Result, bail};
use image::imageops::FilterType;
use std::path::{Path, PathBuf};
use vkd_models::{DetectorStudent, Student, StudentKind, student_kind};
use vkd_train::{ComputeDevice, Image, detect};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The student's weights, with its card (.json) beside them
    student: PathBuf,
    /// Images (PNG, JPEG or BMP); for a classifier turned to grey and scaled to its size
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// The images are dark on light, as scans are; the student's data sets are light on dark
    #[arg(long)]
    invert: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match student_kind(&args.student)? {
        StudentKind::Classifier => {}
        StudentKind::Detector => return objects(args),
        StudentKind::Generator => bail!(
            "predict: expected a classifier or a detector, got a generator: vkd sample draws its images"
        ),
    }
    let student = Student::load(&args.student, &args.device.open(ComputeDevice::Cpu)?)?;
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

/// Less sure detections are not told.
const SURE: f32 = 0.5;

/// What a detector finds: class, score, left, top, width and height in pixels, a line each.
fn objects(args: &Args) -> Result<()> {
    let student = DetectorStudent::load(&args.student, &args.device.open(ComputeDevice::Cpu)?)?;
    let mut text = String::new();
    for path in &args.images {
        let found = detect(&student, &image(path, student.card.model.channels, args.invert)?)?;
        let sure: Vec<_> = found.iter().filter(|d| d.score >= SURE).collect();
        let count = sure.len();
        text += &format!("{}: {count} found with a score of {SURE} or more\n", path.display());
        for one in sure {
            let [x0, y0, x1, y1] = one.bbox;
            let name = student.card.class_names.get(one.class as usize).map_or("?", String::as_str);
            text += &format!(
                "  {name} {:.3} at {x0:.1}, {y0:.1}, {:.1} wide, {:.1} high\n",
                one.score,
                x1 - x0,
                y1 - y0
            );
        }
    }
    crate::print(&text)
}

/// An image file in one channel or three.
fn image(path: &Path, channels: usize, invert: bool) -> Result<Image> {
    let mut read = match image::open(path) {
        Ok(image) => image,
        Err(e) => bail!("{}: expected an image: {e}", path.display()),
    };
    if invert {
        read.invert();
    }
    let (width, height) = (read.width() as usize, read.height() as usize);
    let pixels = match channels {
        1 => read.into_luma8().into_raw(),
        _ => read.into_rgb8().into_raw(),
    };
    Image::new(width, height, channels, pixels)
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
