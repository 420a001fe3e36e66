//! CIFAR-10 and CIFAR-100 in their binary form.

use super::{Content, Dataset, Source};
use crate::recipe::DataConfig;
use candle_core::{Result, bail};
use std::path::Path;

const SIZE: usize = 32;
const PLANE: usize = SIZE * SIZE;

/// Which of the two.
pub(super) struct Kind {
    name: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    names: &'static str,
    classes: usize,
    /// Bytes before the pixels; the last is the class.
    labels: usize,
}

/// Ten classes, one label a record.
pub(super) const CIFAR10: Kind = Kind {
    name: "CIFAR-10",
    train: &[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
    ],
    test: "test_batch.bin",
    names: "batches.meta.txt",
    classes: 10,
    labels: 1,
};

/// A hundred classes: a record has the coarse label first, then the fine one, which is used.
pub(super) const CIFAR100: Kind = Kind {
    name: "CIFAR-100",
    train: &["train.bin"],
    test: "test.bin",
    names: "fine_label_names.txt",
    classes: 100,
    labels: 2,
};

pub(super) fn read(config: &DataConfig, dir: &Path, kind: &Kind) -> Result<Dataset> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for file in kind.train {
        records(&dir.join(file), kind, &mut pixels, &mut labels)?;
    }
    let count = labels.len();
    records(&dir.join(kind.test), kind, &mut pixels, &mut labels)?;
    let (train, validation, _) = super::cut(config, (0..count).collect(), "training images")?;
    let test = (count..labels.len()).collect();
    Dataset::assemble(
        config,
        Content {
            name: kind.name.to_owned(),
            size: SIZE,
            channels: 3,
            class_names: class_names(&dir.join(kind.names), kind.classes)?,
            divisor: 255.,
            source: Source::Raw { size: SIZE, channels: 3, pixels },
            labels,
            parts: (train, validation, test),
        },
    )
}

/// Appends a file's records, the three planes of a record turned into pixels.
fn records(path: &Path, kind: &Kind, pixels: &mut Vec<u8>, labels: &mut Vec<u32>) -> Result<()> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) => bail!("{}: expected the records of {}: {e}", path.display(), kind.name),
    };
    let length = kind.labels + 3 * PLANE;
    if bytes.is_empty() || bytes.len() % length != 0 {
        bail!(
            "{}: expected records of {length} bytes each, got {} bytes",
            path.display(),
            bytes.len()
        )
    }
    for (i, record) in bytes.chunks_exact(length).enumerate() {
        let (head, planes) = record.split_at(kind.labels);
        let label = usize::from(head[kind.labels - 1]);
        if label >= kind.classes {
            bail!(
                "{}: offset {}: expected a label of 0 to {}, got {label}",
                path.display(),
                i * length + kind.labels - 1,
                kind.classes - 1
            )
        }
        labels.push(label as u32);
        pixels.extend(
            (0..PLANE).flat_map(|at| [planes[at], planes[PLANE + at], planes[2 * PLANE + at]]),
        );
    }
    Ok(())
}

/// The names beside the records; numbers where there is no such file.
fn class_names(path: &Path, classes: usize) -> Result<Vec<String>> {
    let Ok(text) = std::fs::read_to_string(path) else {
        return Ok((0..classes).map(|c| c.to_string()).collect());
    };
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect();
    if names.len() != classes {
        bail!("{}: expected {classes} names, got {}", path.display(), names.len())
    }
    Ok(names)
}
