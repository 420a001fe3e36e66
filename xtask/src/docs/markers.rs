//! The markers in a page, and what is put between them.

use std::collections::BTreeMap;

use crate::Result;

const BEGIN: &str = "<!-- begin generated: ";
const END: &str = "<!-- end generated -->";

/// Puts the blocks between the markers of one page; returns the keys it met.
pub(super) fn fill(page: &str, blocks: &BTreeMap<String, String>) -> Result<(String, Vec<String>)> {
    let mut out = String::new();
    let mut keys = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        out += line;
        out.push('\n');
        let Some(rest) = line.strip_prefix(BEGIN) else {
            if line == END {
                return Err("an end marker without a begin marker".to_owned());
            }
            continue;
        };
        let key = rest.strip_suffix(" -->").ok_or("a begin marker does not end in ` -->`")?;
        out += &format!("\n{}\n\n{END}\n", text_of(key, blocks)?.trim_end());
        keys.push(key.to_owned());
        loop {
            match lines.next() {
                Some(line) if line == END => break,
                Some(line) if !line.starts_with(BEGIN) => {}
                _ => return Err(format!("`{key}` has no end marker")),
            }
        }
    }
    Ok((out, keys))
}

fn text_of(key: &str, blocks: &BTreeMap<String, String>) -> Result<String> {
    if let Some(text) = blocks.get(key) {
        return Ok(text.clone());
    }
    if !matches!(key, "runs/*" | "benchmarks/*") {
        let known: Vec<&str> = blocks.keys().map(String::as_str).collect();
        return Err(format!("nothing is known as `{key}`; known: {}", known.join(", ")));
    }
    let mut text = String::new();
    for (name, block) in blocks.iter().filter(|(name, _)| star(name) == key) {
        let title = name.split_once('/').map_or("", |(_, title)| title);
        text += &format!("### {title}\n\n{}\n\n", block.trim_end());
    }
    Ok(if text.is_empty() { "Nothing is measured yet.".to_owned() } else { text })
}

/// `runs/digits` is shown by `runs/*` too.
pub(super) fn star(key: &str) -> String {
    format!("{}/*", key.split('/').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{fill, star};

    fn blocks() -> BTreeMap<String, String> {
        let block = |key: &str, text: &str| (key.to_owned(), text.to_owned());
        [block("runs/a", "A"), block("runs/b", "B"), block("benchmarks/c", "C")].into()
    }

    const PAGE: &str =
        "# T\n<!-- begin generated: runs/a -->\nold\n<!-- end generated -->\nprose\n";

    #[test]
    fn only_text_between_markers_changes() {
        let (page, keys) = fill(PAGE, &blocks()).unwrap();
        let wanted =
            "# T\n<!-- begin generated: runs/a -->\n\nA\n\n<!-- end generated -->\nprose\n";
        assert_eq!((page.as_str(), keys), (wanted, vec!["runs/a".to_owned()]));
        // Filling twice changes nothing: the check after a write passes.
        assert_eq!(fill(&page, &blocks()).unwrap().0, page);
    }

    #[test]
    fn a_star_shows_all_of_its_kind() {
        let page = PAGE.replace("runs/a", "runs/*");
        let (page, _) = fill(&page, &blocks()).unwrap();
        assert!(page.contains("### a\n\nA\n\n### b\n\nB") && !page.contains('C'), "{page}");
        assert!(fill(&PAGE.replace("runs/a", "runs/*"), &BTreeMap::new()).is_ok());
        assert_eq!(star("runs/digits"), "runs/*");
    }

    #[test]
    fn broken_markers_and_unknown_keys_fail() {
        let cut = PAGE.replace("<!-- end generated -->\n", "");
        assert!(fill(&cut, &blocks()).unwrap_err().contains("no end marker"));
        assert!(fill("<!-- end generated -->", &blocks()).is_err());
        let unknown = fill(&PAGE.replace("runs/a", "runs/z"), &blocks()).unwrap_err();
        assert!(unknown.contains("known: benchmarks/c, runs/a"), "{unknown}");
    }
}
