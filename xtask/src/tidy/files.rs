//! Rules on any file: no path of one machine, no mention of a recipe that is not there.

use std::path::Path;
use std::process::Command;

use super::Finding;
use super::scan::line_of;
use crate::Result;
use crate::shell;

/// Files git tracks or would add, relative to the root. A file that was deleted is left out.
pub(super) fn tracked(root: &Path) -> Result<Vec<String>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let text = shell::capture(Command::new("git").args(arguments).current_dir(root))?;
    let mut paths: Vec<String> = text
        .split('\0')
        .filter(|path| !path.is_empty() && root.join(path).is_file())
        .map(str::to_owned)
        .collect();
    paths.sort();
    paths.dedup();
    if paths.is_empty() { Err("git lists no file here".to_owned()) } else { Ok(paths) }
}

/// Folders that exist on one machine only. Joined here, so that this file keeps its own rule.
const FOLDERS: [&str; 4] = ["home", "root", "work", "Users"];

pub(super) fn machine_paths(text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for folder in FOLDERS {
        let path = format!("/{folder}/");
        for (at, _) in text.match_indices(&path) {
            // `crate/work/shape` is a relative path, and `https://a.b/home/` an address.
            let before = text[..at].chars().next_back().unwrap_or(' ');
            if !(before.is_alphanumeric() || "._-}>)/~".contains(before)) {
                let message = format!("a path of one machine: {path}");
                findings.push(Finding::new("paths", line_of(text, at), message));
            }
        }
    }
    findings
}

/// Recipes that a text names must be there, or its reader types a command that fails.
pub(super) fn recipes(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    if ![".md", ".rs", ".toml", ".yml"].iter().any(|end| path.ends_with(end)) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (at, start) in text.match_indices("recipes/") {
        let rest = &text[at + start.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
        let name = &rest[..end.unwrap_or(rest.len())];
        let Some(stem) = name.trim_end_matches('.').strip_suffix(".toml") else { continue };
        let recipe = format!("{start}{stem}.toml");
        if !stem.is_empty() && !exists(&recipe) {
            let message = format!("`{recipe}` is mentioned and not there");
            findings.push(Finding::new("recipes", line_of(text, at), message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{machine_paths, recipes};

    #[test]
    fn machine_paths_are_found() {
        for folder in super::FOLDERS {
            let text = format!("a\nsee /{folder}/me/x");
            assert_eq!(machine_paths(&text)[0].line, 2);
            assert_eq!(machine_paths(&format!("\"/{folder}/\"")).len(), 1);
        }
    }

    #[test]
    fn relative_paths_and_addresses_pass() {
        assert_eq!(machine_paths("ortho/work/shape https://a.org/home/x ~/work/x $HOME/x"), vec![]);
    }

    #[test]
    fn a_recipe_that_is_mentioned_must_exist() {
        // Put together, so that this test does not mention a recipe itself.
        let name = |stem: &str| format!("recipes/{stem}.{}", "toml");
        let there = |recipe: &str| recipe == name("there");
        let text = format!("Run vkd distill {}.\nOr recipes/*.toml, or recipes/.", name("there"));
        assert_eq!(recipes("README.md", &text, there), vec![]);
        let text = format!("\n{}", name("gone"));
        assert_eq!(recipes("README.md", &text, there)[0].line, 2);
        assert_eq!(recipes("a.bin", &text, there), vec![]);
    }
}
