//! `cargo xtask standalone`: each of the four small crates can be picked alone.
//!
//! For each: a scratch crate outside the workspace depends on it by path and runs a few lines;
//! its dependency list is printed and searched for what does not belong there. Then all four are
//! packaged together, because two of them need a sibling that no registry has yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::args::Command;
use crate::shell::{self, cargo};

pub(crate) const COMMAND: Command = Command {
    name: "standalone",
    summary: "Prove that vkd-ortho, vkd-norm, vkd-loss and vkd-tasks can be picked alone",
    details: "Builds and runs a scratch crate on each outside the workspace, prints what it pulls\n\
              in, fails on image, command-line or data-set crates, and packages the four.\n\
              Needs no network when the workspace has been built before.",
    flags: &[],
    run: |_| check(&shell::root()?),
};

/// A crate and a few lines that a reader of its page would write.
struct Pick {
    name: &'static str,
    main: &'static str,
}

const PICKS: [Pick; 4] = [
    Pick { name: "vkd-ortho", main: include_str!("standalone/ortho.rs.in") },
    Pick { name: "vkd-norm", main: include_str!("standalone/norm.rs.in") },
    Pick { name: "vkd-loss", main: include_str!("standalone/loss.rs.in") },
    Pick { name: "vkd-tasks", main: include_str!("standalone/tasks.rs.in") },
];

/// Image decoders, command lines, progress bars, plots, data sets, downloads, benches.
const FORBIDDEN: [&str; 21] = [
    "image",
    "png",
    "zune-jpeg",
    "clap",
    "indicatif",
    "plotters",
    "flate2",
    "tar",
    "csv",
    "parquet",
    "polars",
    "reqwest",
    "ureq",
    "hf-hub",
    "criterion",
    "proptest",
    "vkd-nn",
    "vkd-models",
    "vkd-train",
    "vkd-cli",
    "vkd-testkit",
];

pub(crate) fn check(root: &Path) -> Result<()> {
    // One target folder for all, the workspace's own: candle is compiled once.
    let target = shell::target_directory(&shell::metadata(root)?)?;
    let scratch = Scratch::new()?;
    for pick in &PICKS {
        println!("\n{}", pick.name);
        let folder = scratch.0.join(pick.name);
        write(root, &folder, pick)?;
        let list = shell::capture(cargo(&folder).args([
            "tree",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ]))?;
        let names = names(&list, pick.name);
        println!("{} dependencies: {}", names.len(), join(&names));
        let forbidden = forbidden(&names);
        if !forbidden.is_empty() {
            return Err(format!("{} pulls in {}", pick.name, forbidden.join(", ")));
        }
        shell::run(
            cargo(&folder)
                .args(["run", "--release", "--quiet"])
                .env("CARGO_TARGET_DIR", &target)
                // The workspace may have been built with warnings denied; a scratch crate differs.
                .env_remove("RUSTFLAGS"),
        )?;
    }
    package(root)
}

/// Lists what each package holds, then makes the four archives.
fn package(root: &Path) -> Result<()> {
    println!("\npackages");
    let mut all = cargo(root);
    all.args(["package", "--no-verify", "--allow-dirty"]);
    for Pick { name, .. } in &PICKS {
        let list = shell::capture(cargo(root).args([
            "package",
            "--list",
            "--allow-dirty",
            "--package",
            name,
        ]))?;
        println!("{name}: {} files: {}", list.lines().count(), join(&list.lines().collect()));
        if !list.lines().any(|file| file == "src/lib.rs") {
            return Err(format!("the package of {name} has no src/lib.rs"));
        }
        all.args(["--package", name]);
    }
    shell::run(&mut all)
}

fn join(names: &BTreeSet<&str>) -> String {
    names.iter().copied().collect::<Vec<_>>().join(" ")
}

/// The distinct packages of a `cargo tree`, without the scratch crate and the picked one.
fn names<'a>(tree: &'a str, picked: &str) -> BTreeSet<&'a str> {
    tree.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "scratch" && *name != picked)
        .collect()
}

fn forbidden<'a>(names: &BTreeSet<&'a str>) -> Vec<&'a str> {
    names.iter().copied().filter(|name| FORBIDDEN.contains(name)).collect()
}

/// The scratch crate: a manifest, a main, and the workspace's lock file so that versions agree.
fn write(root: &Path, folder: &Path, Pick { name, main }: &Pick) -> Result<()> {
    let wrong = |error: std::io::Error| format!("scratch crate: {error}");
    let path = root.join("crates").join(name);
    let workspace = std::fs::read_to_string(root.join("Cargo.toml")).map_err(wrong)?;
    let candle = workspace
        .lines()
        .find(|line| line.starts_with("candle-core = "))
        .ok_or("the workspace names no candle-core")?;
    let nn = workspace.lines().find(|line| line.starts_with("candle-nn = ")).unwrap_or_default();
    // Literal strings, so that a backslash in a path stays one.
    let manifest = format!(
        "[package]\nname = \"scratch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\n{candle}\n{}\n{name} = {{ path = '{}' }}\n\n[workspace]\n",
        if main.contains("candle_nn") { nn } else { "" },
        path.display()
    );
    std::fs::create_dir_all(folder.join("src")).map_err(wrong)?;
    std::fs::write(folder.join("Cargo.toml"), manifest).map_err(wrong)?;
    std::fs::write(folder.join("src/main.rs"), main).map_err(wrong)?;
    std::fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).map_err(wrong)?;
    std::fs::copy(root.join("rust-toolchain.toml"), folder.join("rust-toolchain.toml"))
        .map(drop)
        .map_err(wrong)
}

/// A temporary folder that goes away with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("vkd-standalone-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|error| format!("temporary folder: {error}"))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("warning: the temporary folder stays: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{forbidden, names};

    const TREE: &str = "scratch v0.0.0 (/tmp/x)\nvkd-ortho v0.1.0 (/tmp/y)\nfaer v0.24.4\nrand v0.9.1\nfaer v0.24.4 (*)\n";

    #[test]
    fn a_tree_is_counted_once_a_package() {
        let names = names(TREE, "vkd-ortho");
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["faer", "rand"]);
    }

    #[test]
    fn forbidden_packages_are_seen() {
        assert!(forbidden(&names(TREE, "vkd-ortho")).is_empty());
        let tree = format!("{TREE}flate2 v1.1.0\nvkd-nn v0.1.0 (/tmp/z)\n");
        assert_eq!(forbidden(&names(&tree, "vkd-ortho")), ["flate2", "vkd-nn"]);
    }
}
