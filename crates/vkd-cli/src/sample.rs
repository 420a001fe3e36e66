//! `vkd sample`: images of a saved generator.

use crate::recipe_args::DeviceArgs;
use candle_core::{Result, bail};
use std::path::{Path, PathBuf};
use vkd_models::{GeneratorStudent, StudentKind, student_kind, write_atomically};
use vkd_train::{ComputeDevice, Sampler, sample_grid};

/// Columns of a picture.
const COLUMNS: usize = 10;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The generator's weights, with its card (.json) beside them
    student: PathBuf,
    /// A PNG file of all samples, ten in a row
    #[arg(long, value_name = "FILE.png", required_unless_present = "dir")]
    out: Option<PathBuf>,
    /// A folder for a PNG file each, in a folder for each class
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How many
    #[arg(long, default_value = "100")]
    count: usize,
    /// Names of the classes, which take turns; without any, all
    #[arg(long, value_delimiter = ',', value_name = "CLASS,..")]
    classes: Vec<String>,
    /// Seed of the noise
    #[arg(long, default_value = "0")]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let kind = student_kind(&args.student)?;
    if kind != StudentKind::Generator {
        bail!("{}: expected a generator, got a {}", args.student.display(), kind.name())
    }
    if args.count == 0 {
        bail!("sample: --count: expected at least 1, got 0")
    }
    let device = args.device.open(ComputeDevice::Cpu)?;
    let student = GeneratorStudent::load(&args.student, &device)?;
    let names = student.card.class_names.clone();
    let class = |name: &String| match names.iter().position(|n| n == name) {
        Some(class) => Ok(class as u32),
        None => bail!("sample: --classes: expected some of {}, got {name}", names.join(", ")),
    };
    let mut classes = args.classes.iter().map(class).collect::<Result<Vec<u32>>>()?;
    if classes.is_empty() {
        classes = (0..names.len() as u32).collect();
    }
    let sampler = Sampler::new(student.into_network(), args.seed);
    let labels: Vec<u32> = classes.iter().copied().cycle().take(args.count).collect();
    let images = sampler.images("samples.drawn", &labels)?;
    if let Some(path) = &args.out {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_atomically(path, &sample_grid(&images, COLUMNS)?.to_png()?)?;
    }
    if let Some(dir) = &args.dir {
        for (i, label) in labels.iter().enumerate() {
            let folder = dir.join(safe(&names[*label as usize]));
            std::fs::create_dir_all(&folder)?;
            let image = sample_grid(&images.narrow(0, i, 1)?, 1)?;
            write_atomically(&folder.join(format!("{i:06}.png")), &image.to_png()?)?;
        }
    }
    let places = [args.out.as_deref(), args.dir.as_deref()];
    let places: Vec<String> = places.into_iter().flatten().map(shown).collect();
    crate::print(&format!("{} samples in {}\n", args.count, places.join(" and ")))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A class's name as a folder's.
fn safe(name: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || c == '-' { c } else { '_' };
    name.chars().map(plain).collect()
}
