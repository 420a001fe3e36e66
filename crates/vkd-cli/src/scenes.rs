//! `vkd scenes`: scenes of handwritten digits as a COCO data set, for any tool that reads one.

use candle_core::Result;
use std::path::PathBuf;
use vkd_train::ScenesConfig;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder to write, new or empty: annotations/instances_PART.json and PART/N.png for train, val and test
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Training scenes
    #[arg(long, value_name = "N", default_value_t = ScenesConfig::default().train)]
    count: usize,
    /// Validation scenes
    #[arg(long, value_name = "N", default_value_t = ScenesConfig::default().validation)]
    validation: usize,
    /// Test scenes, of digits that no other part shows
    #[arg(long, value_name = "N", default_value_t = ScenesConfig::default().test)]
    test: usize,
    /// Height and width of a scene in pixels
    #[arg(long, value_name = "N", default_value_t = ScenesConfig::default().size)]
    size: usize,
    /// Three channels with drawn colours instead of grey
    #[arg(long)]
    color: bool,
    /// Fewest and most digits in a scene
    #[arg(long, num_args = 2, value_names = ["MIN", "MAX"])]
    objects: Option<Vec<usize>>,
    /// Least and largest height of a digit's square in pixels
    #[arg(long, num_args = 2, value_names = ["MIN", "MAX"])]
    scales: Option<Vec<f64>>,
    /// Largest share of the smaller of two boxes that the other may cover
    #[arg(long, value_name = "SHARE", default_value_t = ScenesConfig::default().overlap)]
    overlap: f64,
    /// Most pieces of digits in a scene that are not to be found
    #[arg(long, value_name = "N", default_value_t = ScenesConfig::default().clutter)]
    clutter: usize,
    /// Standard deviation of the noise, as a share of the whole range
    #[arg(long, value_name = "SHARE", default_value_t = ScenesConfig::default().noise)]
    noise: f64,
    /// Seed of the scenes
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    crate::images::new_or_empty(&args.out)?;
    let default = ScenesConfig::default();
    // clap sees to it that there are two.
    let pair = |values: &Option<Vec<usize>>| values.as_deref().and_then(|v| v.try_into().ok());
    let range = |values: &Option<Vec<f64>>| values.as_deref().and_then(|v| v.try_into().ok());
    let config = ScenesConfig {
        train: args.count,
        validation: args.validation,
        test: args.test,
        size: args.size,
        channels: if args.color { 3 } else { 1 },
        objects: pair(&args.objects).unwrap_or(default.objects),
        scales: range(&args.scales).unwrap_or(default.scales),
        overlap: args.overlap,
        clutter: args.clutter,
        noise: args.noise,
        seed: args.seed,
    };
    let out = args.out.display();
    let mut text = format!("{out}: scenes of 10 digits, {0}x{0} pixels\n", args.size);
    for (part, images, boxes) in vkd_train::write_scenes(&args.out, &config)? {
        text += &format!("{part}: {images} images, {boxes} boxes\n");
    }
    crate::print(&text)
}
