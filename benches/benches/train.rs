//! The loader: from JPEG files to batches, with the augmentation of the paper's recipe.

use std::process::ExitCode;

use candle_core::{Result, bail};
use vkd_benches::{Suite, Work, run};
use vkd_tasks::Batch;
use vkd_train::{Batches, Dataset, Recipe, write_image_folder};

const RECIPE: &str = include_str!("../../recipes/imagenet-deit-ti-paper.toml");
/// Height and width of the files.
const STORED: usize = 256;
/// Training images of each of ten classes.
const COUNT: usize = 8;

/// One batch from the loader: its threads, one a processor, work ahead, so the median is what they take, not what one waits.
fn loader(work: &Work) -> Result<impl FnMut() -> Result<Batch> + use<>> {
    let [batch, size] = work.shape[..] else {
        bail!("{}: expected batch and size of the image", work.name)
    };
    let folder = tempfile::tempdir()?;
    write_image_folder(folder.path(), STORED, COUNT, 1, 7)?;
    let set = [
        format!("data.dir={}", folder.path().display()),
        format!("data.size={size}"),
        "data.validation=1".to_owned(),
    ];
    let recipe = Recipe::parse(RECIPE, "imagenet-deit-ti-paper.toml", &set)?;
    let data = Dataset::open(&recipe.data)?;
    let mut batches = Batches::new(&data, data.train.clone(), batch, 0, &recipe.data, recipe.seed)?;
    let mut next = 0..;
    Ok(move || {
        // Read while the folder lives.
        let _files = &folder;
        batches.get(next.next().unwrap_or_default())
    })
}

fn main() -> ExitCode {
    run(|suite: &mut Suite| suite.works("train/loader", loader))
}
