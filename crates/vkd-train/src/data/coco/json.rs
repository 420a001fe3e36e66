//! COCO's instances JSON: what of it is read and written.

use candle_core::{Result, bail};
use serde::{Deserialize, Deserializer, Serialize};
use std::path::Path;

/// Characters of the line that a message shows.
const SHOWN: usize = 32;

/// An instances file. What else such files hold (`info`, `licenses`, segmentations) is passed over, whatever it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CocoFile {
    #[serde(skip_deserializing)]
    info: Info,
    pub(crate) images: Vec<CocoImage>,
    #[serde(default, deserialize_with = "list_or_null")]
    pub(crate) annotations: Vec<CocoAnnotation>,
    pub(crate) categories: Vec<CocoCategory>,
}

/// Who made the file.
#[derive(Clone, Debug, Default, Serialize)]
struct Info {
    description: String,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CocoImage {
    pub(crate) id: u64,
    pub(crate) file_name: String,
    pub(crate) width: u64,
    pub(crate) height: u64,
}

/// An object in an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CocoAnnotation {
    pub(crate) id: u64,
    pub(crate) image_id: u64,
    pub(crate) category_id: u64,
    /// Left, top, width and height in pixels.
    pub(crate) bbox: [f64; 4],
    #[serde(default)]
    pub(crate) area: Option<f64>,
    /// 1 for a group of objects under one box.
    #[serde(default)]
    pub(crate) iscrowd: u8,
}

/// A kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CocoCategory {
    pub(crate) id: u64,
    pub(crate) name: String,
}

fn list_or_null<'de, D: Deserializer<'de>>(
    input: D,
) -> std::result::Result<Vec<CocoAnnotation>, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

impl CocoFile {
    /// A file without content.
    pub(crate) fn new(description: &str) -> Self {
        Self {
            info: Info { description: description.to_owned() },
            images: Vec::new(),
            annotations: Vec::new(),
            categories: Vec::new(),
        }
    }

    /// Reads `path`.
    ///
    /// # Errors
    /// A file that can't be read, or other JSON: file, line, column, what was expected and the text there.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&bytes, &path.display().to_string()),
            Err(e) => bail!("{}: expected an instances file of COCO: {e}", path.display()),
        }
    }

    fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        let e = match serde_json::from_slice(bytes) {
            Ok(file) => return Ok(file),
            Err(e) => e,
        };
        let (line, column) = (e.line(), e.column());
        let message = e.to_string();
        let message = message.trim_end_matches(&format!(" at line {line} column {column}"));
        let text = bytes.split(|b| *b == b'\n').nth(line.saturating_sub(1)).unwrap_or_default();
        // The fault lies at the column or ends there.
        let from = column.saturating_sub(SHOWN / 2).min(text.len());
        let text = String::from_utf8_lossy(&text[from..text.len().min(from + SHOWN)]);
        bail!("{name} line {line} column {column}: {message}, near {text:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"info": null, "licenses": [null], "extra": {"a": [1]},
"images": [{"id": 7, "file_name": "a.png", "width": 4, "height": 3, "license": null}],
"annotations": [{"id": 1, "image_id": 7, "category_id": 90, "bbox": [0, 0.5, 2, 2], "segmentation": {"counts": "x"}}],
"categories": [{"id": 90, "name": "brush", "supercategory": null}]}"#;

    #[test]
    fn what_is_not_used_may_be_anything() -> Result<()> {
        let file = CocoFile::parse(GOOD.as_bytes(), "a.json")?;
        assert_eq!(file.annotations[0].bbox, [0., 0.5, 2., 2.]);
        assert_eq!((file.annotations[0].area, file.annotations[0].iscrowd), (None, 0));
        let none = GOOD.split("\"annotations\"").next().unwrap_or_default();
        let none = format!("{none}\"annotations\": null, \"categories\": []}}");
        assert!(CocoFile::parse(none.as_bytes(), "a.json")?.annotations.is_empty());
        Ok(())
    }

    #[test]
    fn faults_carry_line_column_and_text() {
        let says = |from: &str, to: &str| {
            let text = GOOD.replacen(from, to, 1);
            CocoFile::parse(text.as_bytes(), "a.json")
                .err()
                .map(|e| e.to_string())
                .unwrap_or_default()
        };
        let nan = says("[0, 0.5", "[NaN, 0.5");
        assert!(nan.starts_with("a.json line 3 column ") && nan.contains("NaN"), "{nan}");
        let null = says("[0, 0.5", "[null, 0.5");
        assert!(null.contains("line 3") && null.contains("null"), "{null}");
        let few = says("0.5, 2, 2]", "0.5]");
        assert!(few.contains("line 3") && few.contains("length"), "{few}");
        let missing = says("\"width\": 4, ", "");
        assert!(missing.contains("line 2") && missing.contains("width"), "{missing}");
        let cut = CocoFile::parse(&GOOD.as_bytes()[..100], "a.json").err().map(|e| e.to_string());
        assert!(cut.is_some_and(|c| c.contains("line 2 column") && c.contains("EOF")));
        assert!(CocoFile::parse(b"", "a.json").is_err());
    }
}
