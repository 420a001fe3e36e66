//! `cargo xtask tidy`: the house rules that a compiler does not check.
//!
//! Each rule is a pure function from text to findings, with one sample that passes and one that
//! fails beside it. A rule that can't fail is deleted.

mod edges;
mod files;
mod names;
mod scan;
mod source;

use std::path::Path;

use crate::Result;
use crate::args::Command;
use crate::shell;

pub(crate) const COMMAND: Command = Command {
    name: "tidy",
    summary: "Check the house rules: crate edges, file sizes, headers, banned names",
    details: "Reads `cargo metadata` and the files git knows or would add. Rules:\n  \
              edges      a crate imports only what its floor allows\n  \
              metadata   description, license, keywords, categories\n  \
              size       500 lines a .rs file, tests/ apart; over 250 is a note\n  \
              header     each .rs file under src/ starts with //!\n  \
              no_bwd     `.._no_bwd` only in `fn bwd` or a function named `.._no_grad`\n  \
              unsafe     only in ops/*/cuda.rs and the files tidy lists with a reason\n  \
              names      no candle function that cuts the gradient or draws unseeded numbers\n  \
              path_attr  no `#[path]`: a module's file stands where its name says\n  \
              recipes    each recipes/*.toml that a text mentions exists\n  \
              paths      no path of one machine in any file",
    flags: &[],
    run: |_| check(&shell::root()?),
};

/// One broken rule in one place.
#[derive(Debug, PartialEq)]
pub(crate) struct Finding {
    rule: &'static str,
    /// 1-based; 0 where the whole file or crate is meant.
    line: usize,
    message: String,
}

impl Finding {
    fn new(rule: &'static str, line: usize, message: impl Into<String>) -> Self {
        Self { rule, line, message: message.into() }
    }
}

/// Checks the workspace and prints what it found.
pub(crate) fn check(root: &Path) -> Result<()> {
    let metadata = shell::metadata(root)?;
    let mut findings: Vec<(String, Finding)> = Vec::new();
    for (package, finding) in edges::check(&metadata) {
        findings.push((format!("{package}/Cargo.toml"), finding));
    }
    let paths = files::tracked(root)?;
    if !paths.iter().any(|path| path.starts_with("recipes/") && path.ends_with(".toml")) {
        let finding = Finding::new("recipes", 0, "there is no recipes/*.toml");
        findings.push(("recipes".to_owned(), finding));
    }
    let mut notes = Vec::new();
    for path in &paths {
        let bytes = std::fs::read(root.join(path)).map_err(|error| format!("{path}: {error}"))?;
        // Lossy, because a path may hide in the header of a binary file too.
        let text = String::from_utf8_lossy(&bytes);
        let mut found = files::machine_paths(&text);
        found.extend(files::recipes(path, &text, |recipe| root.join(recipe).is_file()));
        if path.ends_with(".rs") {
            found.extend(source::check(path, &text));
            notes.extend(source::size_note(path, &text));
        }
        findings.extend(found.into_iter().map(|finding| (path.clone(), finding)));
    }
    for note in notes {
        println!("note: {note}");
    }
    for (path, Finding { rule, line, message }) in &findings {
        println!("{path}:{line}: [{rule}] {message}");
    }
    println!("tidy: {} files, {} findings", paths.len(), findings.len());
    if findings.is_empty() { Ok(()) } else { Err("the rules above are broken".to_owned()) }
}
