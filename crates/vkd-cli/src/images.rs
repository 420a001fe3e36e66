//! `vkd images`: a small image folder in ImageNet's layout, to try recipes of image files without a download.

use candle_core::{Result, bail};
use std::path::{Path, PathBuf};

/// One image for the test to so many for training.
const TRAIN_TO_TEST: usize = 4;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder to write, new or empty: train/CLASS/N.jpg and val/CLASS/N.jpg
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Height and width of an image in pixels
    #[arg(long, value_name = "N", default_value_t = 64)]
    size: usize,
    /// Training images of each of the ten classes; a quarter as many come on top for the test
    #[arg(long, value_name = "N", default_value_t = 40)]
    count: usize,
    /// Seed of the colours
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    new_or_empty(&args.out)?;
    let out = args.out.display();
    let test = args.count.div_ceil(TRAIN_TO_TEST);
    vkd_train::write_image_folder(&args.out, args.size, args.count, test, args.seed)?;
    crate::print(&format!(
        "{out}: {} training and {} test images of 10 classes, {}x{} pixels: the embedded digits in colour\n\
         read them with --set data.kind=folder --set data.dir={out} --set data.size={}\n",
        10 * args.count,
        10 * test,
        args.size,
        args.size,
        args.size
    ))
}

/// Refuses a folder that holds something.
pub(crate) fn new_or_empty(path: &Path) -> Result<()> {
    let out = path.display();
    match std::fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
        Ok(true) => bail!("{out}: expected a new or empty folder, got one with files"),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => bail!("{out}: {e}"),
        _ => Ok(()),
    }
}
