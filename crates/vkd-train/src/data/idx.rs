//! MNIST's own format (IDX), gzipped or not.

use super::{Content, Dataset, Source};
use crate::recipe::DataConfig;
use candle_core::{Result, bail};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Without `data.classes`: MNIST's.
const CLASSES: usize = 10;

/// Reads `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the two `t10k` files, each plain or with `.gz`.
pub(super) fn read(config: &DataConfig, dir: &Path) -> Result<Dataset> {
    let classes = config.classes.unwrap_or(CLASSES);
    if classes > 256 {
        bail!("data.classes: expected at most 256, which a label's byte can tell, got {classes}")
    }
    let (size, mut images, mut labels) = pair(dir, "train", classes)?;
    let (test_size, test_images, test_labels) = pair(dir, "t10k", classes)?;
    if size != test_size {
        bail!(
            "{}: expected test images of {size}x{size} as in training, got {test_size}x{test_size}",
            dir.display()
        )
    }
    let count = labels.len();
    let (train, validation, _) = super::cut(config, (0..count).collect(), "training images")?;
    images.extend(test_images);
    labels.extend(test_labels);
    let test = (count..labels.len()).collect();
    Dataset::assemble(
        config,
        Content {
            name: format!("IDX files of {}", super::last_part(dir)),
            size,
            channels: 1,
            class_names: (0..classes).map(|d| d.to_string()).collect(),
            divisor: 255.,
            source: Source::Raw { size, channels: 1, pixels: images },
            labels: labels.into_iter().map(u32::from).collect(),
            parts: (train, validation, test),
        },
    )
}

fn pair(dir: &Path, part: &str, classes: usize) -> Result<(usize, Vec<u8>, Vec<u8>)> {
    let (image_file, images) = file(dir, &format!("{part}-images-idx3-ubyte"), 3)?;
    let (label_file, labels) = file(dir, &format!("{part}-labels-idx1-ubyte"), 1)?;
    let [count, height, width] = images.dims[..] else {
        bail!("{}: expected three dimensions, got {:?}", image_file.display(), images.dims)
    };
    if height != width || count == 0 || height == 0 {
        bail!("{}: expected square images, got {count} of {height}x{width}", image_file.display())
    }
    if labels.dims != [count] {
        bail!(
            "{}: expected {count} labels, one for each image of {}, got {}",
            label_file.display(),
            image_file.display(),
            labels.values.len()
        )
    }
    if let Some(at) = labels.values.iter().position(|l| usize::from(*l) >= classes) {
        bail!(
            "{}: label {at} (offset {}): expected 0 to {}, got {}; data.classes is {classes}",
            label_file.display(),
            labels.start + at,
            classes.saturating_sub(1),
            labels.values[at]
        )
    }
    Ok((height, images.values, labels.values))
}

struct Idx {
    dims: Vec<usize>,
    values: Vec<u8>,
    /// Offset of the first value, for messages.
    start: usize,
}

fn file(dir: &Path, name: &str, rank: usize) -> Result<(PathBuf, Idx)> {
    let (plain, zipped) = (dir.join(name), dir.join(format!("{name}.gz")));
    let path = if plain.exists() { plain } else { zipped };
    let open = File::open(&path).map_err(|e| {
        candle_core::Error::Msg(format!("{}: expected {name} or {name}.gz: {e}", path.display()))
    })?;
    let mut reader = BufReader::new(open);
    let gzipped = reader.fill_buf().is_ok_and(|bytes| bytes.starts_with(&[0x1f, 0x8b]));
    // The multi-member decoder also reads, and so finds, what follows the first gzip member.
    let idx = if gzipped { parse(MultiGzDecoder::new(reader), rank) } else { parse(reader, rank) };
    match idx {
        Ok(idx) => Ok((path, idx)),
        Err(e) => bail!("{}: {}", path.display(), crate::plain(&e)),
    }
}

/// Reads exactly what the header announces and checks that nothing follows.
fn parse(mut reader: impl Read, rank: usize) -> Result<Idx> {
    let mut word = |offset: usize| -> Result<u32> {
        let mut bytes = [0u8; 4];
        match reader.read_exact(&mut bytes) {
            Ok(()) => Ok(u32::from_be_bytes(bytes)),
            Err(e) => bail!("offset {offset}: expected four bytes of header: {e}"),
        }
    };
    let magic = word(0)?;
    // Two zero bytes, the type (8 is unsigned byte), the number of dimensions.
    let expected = 0x0800 + rank as u32;
    if magic != expected {
        bail!("offset 0: expected the IDX magic {expected:#010x}, got {magic:#010x}")
    }
    let dims = (0..rank).map(|i| Ok(word(4 + 4 * i)? as usize)).collect::<Result<Vec<_>>>()?;
    let start = 4 + 4 * rank;
    let Some(count) = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) else {
        bail!("offset 4: expected sizes that fit in memory, got {dims:?}")
    };
    // Grows with what is really there: a false header can't make it reserve gigabytes.
    let mut values = Vec::new();
    let read = (&mut reader).take(count as u64).read_to_end(&mut values);
    if let Err(e) = read {
        bail!("offset {}: expected {count} values for {dims:?}: {e}", start + values.len())
    }
    if values.len() < count {
        bail!(
            "offset {}: expected {count} values for {dims:?}, got {}",
            start + values.len(),
            values.len()
        )
    }
    let mut more = [0u8; 1];
    match reader.read(&mut more) {
        Ok(0) => Ok(Idx { dims, values, start }),
        Ok(_) => bail!(
            "offset {}: expected the end of the file after {dims:?}, got more bytes",
            start + count
        ),
        Err(e) => bail!("offset {}: expected the end of the file: {e}", start + count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(dims: &[u32], values: usize) -> Vec<u8> {
        let mut all = (0x0800 + dims.len() as u32).to_be_bytes().to_vec();
        all.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
        all.extend((0..values).map(|i| (i % 10) as u8));
        all
    }

    #[test]
    fn labels_are_those_of_as_many_classes_as_the_recipe_says() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let images = bytes(&[12, 2, 2], 48);
        for part in ["train", "t10k"] {
            std::fs::write(folder.path().join(format!("{part}-images-idx3-ubyte")), &images)?;
            let mut labels = bytes(&[12], 12);
            *labels.last_mut().unwrap_or(&mut 0) = 26;
            std::fs::write(folder.path().join(format!("{part}-labels-idx1-ubyte")), labels)?;
        }
        let mut config = DataConfig::digits(8, 2);
        let mut open = |classes| {
            config.classes = classes;
            read(&config, folder.path())
        };
        let data = open(Some(27))?;
        assert_eq!((data.class_names.len(), data.label(11), data.label(23)), (27, 26, 26));
        for (classes, range) in [(None, "0 to 9"), (Some(26), "0 to 25")] {
            let message = open(classes).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(
                message.contains("train-labels-idx1-ubyte: label 11 (offset 19): "),
                "{message}"
            );
            assert!(message.contains(&format!("expected {range}, got 26")), "{message}");
        }
        assert!(open(Some(257)).is_err_and(|e| e.to_string().contains("at most 256")));
        Ok(())
    }

    #[test]
    fn reads_what_the_header_announces() -> Result<()> {
        let idx = parse(&bytes(&[2, 3, 3], 18)[..], 3)?;
        assert_eq!((idx.dims, idx.values.len(), idx.start), (vec![2, 3, 3], 18, 16));
        Ok(())
    }

    #[test]
    fn faults_carry_offset_expected_and_got() {
        let say = |bytes: &[u8], rank| parse(bytes, rank).map(|_| ()).unwrap_err().to_string();
        assert!(say(&bytes(&[2, 3, 3], 17), 3).contains("offset 33: expected 18 values"));
        assert!(say(&bytes(&[2, 3, 3], 19), 3).contains("offset 34: expected the end"));
        assert!(
            say(&bytes(&[5], 5), 3).contains("expected the IDX magic 0x00000803, got 0x00000801")
        );
        assert!(say(&bytes(&[2, 3, 3], 18)[..9], 3).contains("offset 8"));
        assert!(say(&[], 1).contains("offset 0"));
        let huge = bytes(&[u32::MAX, u32::MAX, u32::MAX], 4);
        assert!(say(&huge, 3).contains("expected"));
    }
}
