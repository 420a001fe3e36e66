//! The embedded UCI handwritten digits.

use super::{Content, Dataset, Source};
use crate::recipe::DataConfig;
use candle_core::{Result, bail};
use flate2::read::GzDecoder;
use std::io::Read;

/// See `assets/README.md` for source and licence.
static DIGITS: &[u8] = include_bytes!("../../assets/digits.csv.gz");

const SIZE: usize = 8;
const COUNT: usize = 1797;

pub(super) fn read(config: &DataConfig) -> Result<Dataset> {
    let mut text = String::new();
    GzDecoder::new(DIGITS).read_to_string(&mut text)?;
    let (images, labels) = parse(&text)?;
    if labels.len() != COUNT {
        bail!("digits.csv: expected {COUNT} lines, got {}", labels.len())
    }
    let (train, validation, test) = super::cut(config, (0..COUNT).collect(), "images")?;
    if test.is_empty() {
        bail!("data: expected images left for the test, got train + validation = {COUNT}")
    }
    Dataset::assemble(
        config,
        Content {
            name: "UCI handwritten digits".to_owned(),
            size: SIZE,
            channels: 1,
            class_names: (0..10).map(|d| d.to_string()).collect(),
            divisor: 16.,
            source: Source::Raw { size: SIZE, channels: 1, pixels: images },
            labels: labels.into_iter().map(u32::from).collect(),
            parts: (train, validation, test),
        },
    )
}

fn parse(text: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for (i, line) in text.lines().enumerate() {
        let values = line
            .split(',')
            .map(|v| v.trim().parse::<u8>())
            .collect::<std::result::Result<Vec<_>, _>>();
        match values.as_deref() {
            Ok([pixels @ .., label])
                if pixels.len() == SIZE * SIZE
                    && *label < 10
                    && pixels.iter().all(|p| *p <= 16) =>
            {
                images.extend_from_slice(pixels);
                labels.push(*label);
            }
            _ => bail!(
                "digits.csv line {}: expected 64 values of 0 to 16 and a label of 0 to 9, got {line:?}",
                i + 1
            ),
        }
    }
    Ok((images, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_are_named() {
        let good = format!("{}7", "3,".repeat(64));
        assert!(parse(&good).is_ok());
        for bad in [
            format!("{}7", "3,".repeat(63)),
            format!("{}10", "3,".repeat(64)),
            good.replacen('3', "17", 1),
            "x".into(),
        ] {
            let message = parse(&format!("{good}\n{bad}")).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains("line 2"), "{message}");
        }
    }
}
