//! `cargo xtask docs`: every table in the pages is made from a committed run file.
//!
//! A page is written by hand; between two marker lines stands what this command makes:
//! `<!-- begin generated: KEY -->` and `<!-- end generated -->`. Keys: `runs/*` (every grid
//! under docs/results/runs), `runs/NAME` (one of them), `benchmarks/*`, `benchmarks/NAME`, and `device` (the works of
//! benches/device.toml, measured or not).
//! A run file that no page shows is an error, so is a key that no file answers.
//! Where `docs/images/NAME-curves.svg` exists, it is the learning curves of `docs/results/runs/NAME`.

mod fit;
mod markers;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::args::{Command, Flag};
use crate::{rows, shell};

pub(crate) const COMMAND: Command = Command {
    name: "docs",
    summary: "Fill the result and benchmark tables of the pages, and the curves, from committed run files",
    details: "Pages: README.md and docs/**/*.md. Sources: docs/results/runs/<grid>/*.json, through `vkd compare`,\n\
              and benches/results/*.json. Only text between markers changes. Pictures: docs/images/<grid>-curves.svg,\n\
              those that are there.",
    flags: &[Flag { name: "--check", value: None, help: "write nothing; fail if a page differs" }],
    run: |args| {
        let root = shell::root()?;
        if args.has("--check") { check(&root, None) } else { write(&root) }
    },
};

const RUNS: &str = "docs/results/runs";
const BENCHMARKS: &str = "benches/results";
const DEVICE: &str = "benches/device.toml";
const PICTURES: &str = "docs/images";

/// Fails where a page is not what [`write()`] would make of it, by a `vkd` that is built already or by one that cargo runs.
pub(crate) fn check(root: &Path, vkd: Option<&Path>) -> Result<()> {
    let pages = pages(root, vkd)?;
    let tables: usize = pages.iter().map(|page| page.tables).sum();
    println!("docs: {} pages with {tables} generated parts", pages.len());
    let stale: Vec<String> =
        pages.into_iter().filter(|page| page.before != page.after).map(|page| page.name).collect();
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!("run `cargo xtask docs`, these pages differ: {}", stale.join(", ")))
}

fn write(root: &Path) -> Result<()> {
    for page in pages(root, None)? {
        let state = if page.before == page.after { "unchanged" } else { "rewritten" };
        println!("{}: {} parts, {state}", page.name, page.tables);
        if page.before != page.after {
            std::fs::write(root.join(&page.name), &page.after)
                .map_err(|error| format!("{}: {error}", page.name))?;
        }
    }
    Ok(())
}

struct Page {
    name: String,
    before: String,
    after: String,
    tables: usize,
}

/// Every page with a marker and every picture of learning curves, before and after.
fn pages(root: &Path, vkd: Option<&Path>) -> Result<Vec<Page>> {
    let blocks = blocks(root, vkd)?;
    let mut shown = BTreeSet::new();
    let mut pages = Vec::new();
    let mut names = vec![root.join("README.md")];
    names.extend(files(&root.join("docs"), "md")?);
    for path in names.into_iter().filter(|path| path.is_file()) {
        let name = relative(root, &path);
        let before = read(&path)?;
        let (after, keys) =
            markers::fill(&before, &blocks).map_err(|message| format!("{name}: {message}"))?;
        if !keys.is_empty() {
            pages.push(Page { name, before, after, tables: keys.len() });
        }
        shown.extend(keys);
    }
    pages.extend(pictures(root, vkd)?);
    let unseen: Vec<&str> = blocks
        .keys()
        .filter(|key| !shown.contains(*key) && !shown.contains(&markers::star(key)))
        .map(String::as_str)
        .collect();
    if unseen.is_empty() { Ok(pages) } else { Err(format!("no page shows {}", unseen.join(", "))) }
}

/// The generated text of each source, by key.
fn blocks(root: &Path, vkd: Option<&Path>) -> Result<BTreeMap<String, String>> {
    let mut blocks = BTreeMap::new();
    for folder in folders(&root.join(RUNS))? {
        let name = file_name(&folder);
        let text =
            comparison(root, vkd, &folder, &[]).map_err(|e| format!("{RUNS}/{name}: {e}"))?;
        blocks.insert(format!("runs/{name}"), text);
    }
    let mut all = Vec::new();
    for path in files(&root.join(BENCHMARKS), "json")? {
        let rows = rows::read(&path).map_err(|message| message.replace(&prefix(root), ""))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        blocks.insert(format!("benchmarks/{name}"), benchmark(&rows)?);
        all.extend(rows);
    }
    let works = crate::bench::names(&read(&root.join(DEVICE))?);
    blocks.insert("device".to_owned(), rows::device_table(&works, &all));
    Ok(blocks)
}

/// The learning curves of each grid that has a picture, before and after.
fn pictures(root: &Path, vkd: Option<&Path>) -> Result<Vec<Page>> {
    let mut pictures = Vec::new();
    for path in files(&root.join(PICTURES), "svg")? {
        let name = relative(root, &path);
        let Some(grid) = grid_of(&name) else { continue };
        let folder = root.join(RUNS).join(grid);
        if !folder.is_dir() {
            return Err(format!("{name}: no folder {RUNS}/{grid} that it could be made of"));
        }
        let made = shell::target_directory(&shell::metadata(root)?)?.join("curves.svg");
        comparison(root, vkd, &folder, &[OsStr::new("--plot"), made.as_os_str()])
            .map_err(|e| format!("{name}: {e}"))?;
        pictures.push(Page { before: read(&path)?, after: read(&made)?, name, tables: 1 });
    }
    Ok(pictures)
}

/// The grid whose learning curves a picture shows.
fn grid_of(name: &str) -> Option<&str> {
    name.strip_prefix(PICTURES)?.strip_prefix('/')?.strip_suffix("-curves.svg")
}

/// What `vkd compare` says of the result files in a folder: the program that makes the reports makes the pages.
fn comparison(root: &Path, vkd: Option<&Path>, folder: &Path, more: &[&OsStr]) -> Result<String> {
    let mut command = match vkd {
        Some(program) => std::process::Command::new(program),
        None => {
            let mut command = shell::cargo(root);
            command.args(["run", "--quiet", "--release", "--package", "vkd-cli", "--"]);
            command
        }
    };
    shell::capture(command.current_dir(root).args(["compare", "--from"]).arg(folder).args(more))
}

fn benchmark(rows: &[serde_json::Value]) -> Result<String> {
    let values =
        |key: &str| -> BTreeSet<&str> { rows.iter().filter_map(|row| row[key].as_str()).collect() };
    let join = |set: BTreeSet<&str>| set.into_iter().collect::<Vec<_>>().join(", ");
    if rows.is_empty() {
        return Err("a benchmark file without rows".to_owned());
    }
    let (machine, commit) = (join(values("machine")), join(values("commit")));
    let table = if rows.iter().all(|row| row["residual"].is_number()) {
        format!("{}{}", rows::orthogonal_table(rows), fit::render(rows))
    } else {
        rows::table(rows)
    };
    Ok(format!("Machine: {machine}. Commit: {commit}.\n\n{table}"))
}

/// A Markdown table of aligned columns; those from `first_number` on are set to the right.
pub(crate) fn markdown_table(cells: &[Vec<String>], first_number: usize) -> String {
    let columns = cells.first().map_or(0, Vec::len);
    let length = |cell: &String| cell.chars().count();
    let widths: Vec<usize> = (0..columns)
        .map(|column| cells.iter().map(|row| length(&row[column])).max().unwrap_or(0).max(3))
        .collect();
    let mut text = String::new();
    for (index, row) in cells.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            text += &match column >= first_number {
                true => format!("| {cell:>width$} "),
                false => format!("| {cell:<width$} "),
            };
        }
        text += "|\n";
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let number = column >= first_number;
                let dashes = "-".repeat(width - usize::from(number));
                text += &format!("| {dashes}{} ", if number { ":" } else { "" });
            }
            text += "|\n";
        }
    }
    text
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", file_name(path)))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn prefix(root: &Path) -> String {
    format!("{}/", root.display())
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let wrong = |error| format!("{}: {error}", file_name(folder));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(wrong)? {
        paths.push(entry.map_err(wrong)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}

/// Files below a folder by extension, sorted.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(folder)? {
        if path.is_dir() {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|given| given == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{grid_of, markdown_table, pictures};

    #[test]
    fn a_picture_names_its_grid() {
        assert_eq!(grid_of("docs/images/digits-few-curves.svg"), Some("digits-few"));
        for other in ["docs/images/residual-vs-scale.svg", "docs/a-curves.svg"] {
            assert_eq!(grid_of(other), None);
        }
        // One of a grid that is not there fails.
        let root = std::env::temp_dir().join(format!("xtask-docs-{}", std::process::id()));
        std::fs::create_dir_all(root.join("docs/images")).unwrap();
        std::fs::write(root.join("docs/images/gone-curves.svg"), "").unwrap();
        let message = pictures(&root, None).err().unwrap_or_default();
        std::fs::remove_dir_all(&root).unwrap();
        assert!(message.contains("no folder docs/results/runs/gone"), "{message}");
    }

    #[test]
    fn tables_align() {
        let cells =
            [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "±1".to_owned()]];
        assert_eq!(markdown_table(&cells, 1), "| a    |   b |\n| ---- | --: |\n| long |  ±1 |\n");
    }
}
