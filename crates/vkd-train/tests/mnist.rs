//! MNIST's own files, where they are: in the folder that `VKD_MNIST` names, else in `shared/data/mnist` beside the repository.

use candle_core::Result;
use std::io::Read;
use std::path::PathBuf;
use vkd_train::{Dataset, Recipe};

const RECIPE: &str = include_str!("../../../recipes/mnist.toml");

fn folder() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/mnist");
    let folder = std::env::var_os("VKD_MNIST").map_or(PathBuf::from(beside), PathBuf::from);
    folder.join("train-images-idx3-ubyte.gz").exists().then_some(folder)
}

#[test]
fn reads_the_published_files_gzipped_and_plain() -> Result<()> {
    let Some(folder) = folder() else {
        println!("SKIPPED: no MNIST files; set VKD_MNIST to their folder");
        return Ok(());
    };
    let open = |dir: &std::path::Path| {
        let set = format!("data.dir={}", dir.display());
        Dataset::open(&Recipe::parse(RECIPE, "mnist.toml", &[set])?.data)
    };
    let data = open(&folder)?;
    assert_eq!(
        (data.len(), data.size, data.train.len(), data.test.len()),
        (70_000, 28, 8_000, 10_000)
    );
    // The first training digit is a five, the first of the test a seven; the pixel sum is of the file itself.
    assert_eq!((data.label(0), data.label(60_000)), (5, 7));
    assert_eq!(data.image(0)?.pixels().iter().map(|p| u32::from(*p)).sum::<u32>(), 27_525);
    let plain = tempfile::tempdir()?;
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(std::fs::File::open(&path)?).read_to_end(&mut bytes)?;
        let name = path.file_stem().unwrap_or_default();
        std::fs::write(plain.path().join(name), bytes)?;
    }
    let other = open(plain.path())?;
    for i in (0..70_000).step_by(997) {
        assert!(other.image(i)? == data.image(i)? && other.label(i) == data.label(i));
    }
    // A byte too many is found in the gzipped form as well.
    let name = "t10k-labels-idx1-ubyte.gz";
    let mut bytes = std::fs::read(folder.join(name))?;
    bytes.push(0);
    for file in std::fs::read_dir(plain.path())? {
        let file = file?.path();
        if file.file_name().is_some_and(|n| n == "t10k-labels-idx1-ubyte") {
            std::fs::remove_file(file)?;
        }
    }
    std::fs::write(plain.path().join(name), bytes)?;
    let message = open(plain.path()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(message.contains(name), "{message}");
    Ok(())
}
