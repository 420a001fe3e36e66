//! `vkd compare`: a grid of arms and seeds, trained as far as it is missing, and a report about it.
//!
//! Every finished arm of a seed is one small file in the results folder, written as soon as it is finished and found by the
//! hash of what decided it. So a grid can be stopped at any moment, gain arms and seeds later, and be kept in a repository.

use crate::grid::Grid;
use crate::machine;
use crate::missing::Missing;
use crate::recipe_args::RecipeArgs;
use crate::report::grid::{html, picture};
use crate::report::markdown::markdown;
use crate::shown::{Shown, for_task};
use candle_core::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use vkd_models::write_atomically;
use vkd_train::{ArmResult, RecipeOf, fingerprint};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Arms to compare, in the report's order [default: the recipe's]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    arms: Vec<String>,
    /// How many seeds, from the recipe's on
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// The arm that others are compared with [default: none, else the first]
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,
    /// How many runs train side by side, one thread each [default: the number of processors, on a GPU 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    jobs: Option<u64>,
    /// Folder of report.html, report.md, teachers and runs, which other comparisons may share [default: runs/NAME-compare]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder of the result files, one a finished arm and seed [default: OUT/results]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// Write the learning curves, means and spread over the seeds, as one SVG file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Train nothing: print the Markdown of all results in this folder, and with --out write both reports
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "set", "seed", "seeds", "jobs", "results"])]
    from: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(folder) = &args.from {
        return report_only(args, folder);
    }
    let mut set = Vec::new();
    if !args.arms.is_empty() {
        let names: Vec<String> = args.arms.iter().map(|name| format!("{name:?}")).collect();
        set.push(format!("arms=[{}]", names.join(", ")));
    }
    for_task!(args.recipe.load_with(&set)?, recipe => of_task(args, recipe))
}

fn of_task<W: Shown>(args: &Args, recipe: RecipeOf<W>) -> Result<()> {
    let data = W::open(&recipe.data)?;
    vkd_train::check(&recipe, &data)?;
    let named = || PathBuf::from("runs").join(format!("{}-compare", recipe.name));
    let out = args.out.clone().unwrap_or_else(named);
    let results = args.results.clone().unwrap_or_else(|| out.join("results"));
    let seeds: Vec<u64> = (0..args.seeds).map(|i| recipe.seed.saturating_add(i)).collect();
    let hash = |arm: &String| Ok((arm.clone(), fingerprint(&recipe, arm, &data)?.1));
    let fingerprints = recipe.arms.iter().map(hash).collect::<Result<Vec<_>>>()?;
    let missing = Missing {
        recipe: &recipe,
        data: &data,
        fingerprints: &fingerprints,
        out: &out,
        results: &results,
    };
    missing.train(&seeds, machine::jobs(args.jobs, recipe.training.device))?;
    let mut found = Vec::new();
    for (arm, hash) in &fingerprints {
        for seed in &seeds {
            found.extend(ArmResult::find(&results, arm, *seed, hash)?);
        }
    }
    let grid = Grid::new(found, Some(recipe.arms.clone()), args.reference.as_deref())?;
    let mut command = vec!["vkd compare".to_owned()];
    command.extend(args.recipe.words());
    command.push(format!("--arms {} --seeds {}", recipe.arms.join(","), args.seeds));
    command.extend(args.reference.iter().map(|name| format!("--reference {name}")));
    let command = command.join(" ");
    let pictures = W::pictures(&recipe, &missing.students(&seeds)?, &data)?;
    let page = html(&grid, &recipe.name, &recipe.to_toml()?, &command, &pictures);
    write(&grid, &out, &recipe.name, &page)?;
    plot(args, &grid)?;
    crate::print(&format!(
        "\n{}\nthe report is {}, the results are in {}\n{}",
        markdown(&grid),
        out.join("report.html").display(),
        results.display(),
        left_out(&results, &fingerprints, &seeds)?
    ))
}

/// What the results folder holds beside this grid, in a line an arm.
fn left_out(results: &Path, fingerprints: &[(String, String)], seeds: &[u64]) -> Result<String> {
    let mut others: BTreeMap<(&str, String), BTreeSet<u64>> = BTreeMap::new();
    for entry in std::fs::read_dir(results)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some((arm, seed, hash)) = named(&name) else { continue };
        let why = match fingerprints.iter().find(|(known, _)| known == arm) {
            None => "not asked for",
            Some((_, known)) if known != hash => "of other settings",
            Some(_) if !seeds.contains(&seed) => "of other seeds",
            Some(_) => continue,
        };
        others.entry((why, arm.to_owned())).or_default().insert(seed);
    }
    let line = |((why, arm), seeds): ((&str, String), BTreeSet<u64>)| {
        let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
        let word = if seeds.len() == 1 { "seed" } else { "seeds" };
        format!("left out: {arm} {why}, {word} {}\n", seeds.join(", "))
    };
    Ok(others.into_iter().map(line).collect())
}

/// Arm, seed and fingerprint of a result file's name.
fn named(file: &str) -> Option<(&str, u64, &str)> {
    let (rest, hash) = file.strip_suffix(".json")?.rsplit_once('-')?;
    let (arm, seed) = rest.rsplit_once("-seed")?;
    Some((arm, seed.parse().ok()?, hash))
}

/// The reports of a folder of result files.
fn report_only(args: &Args, folder: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries.collect::<std::io::Result<Vec<_>>>()?,
        Err(e) => bail!("{}: {e}", folder.display()),
    };
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|e| e.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
    // The order of a folder is not fixed, and messages name the first.
    paths.sort();
    let mut results = Vec::new();
    for path in &paths {
        results.extend(ArmResult::read(path)?);
    }
    if !args.arms.is_empty() {
        let known: BTreeSet<&str> = results.iter().map(|r| r.arm.name.as_str()).collect();
        if let Some(arm) = args.arms.iter().find(|arm| !known.contains(arm.as_str())) {
            let known: Vec<&str> = known.into_iter().collect();
            bail!("{}: expected arms among {}, got {arm}", folder.display(), known.join(", "))
        }
        results.retain(|r| args.arms.contains(&r.arm.name));
    }
    let arms = (!args.arms.is_empty()).then(|| args.arms.clone());
    let grid = match Grid::new(results, arms, args.reference.as_deref()) {
        Ok(grid) => grid,
        Err(e) => bail!("{}: {}", folder.display(), vkd_train::plain(&e)),
    };
    if let Some(out) = &args.out {
        let name = grid.first().map_or_else(String::new, |r| r.recipe.clone());
        write(&grid, out, &name, &html(&grid, &name, "", "", ""))?;
    }
    plot(args, &grid)?;
    crate::print(&markdown(&grid))
}

/// Writes the learning curves where `--plot` says.
fn plot(args: &Args, grid: &Grid) -> Result<()> {
    let Some(path) = &args.plot else { return Ok(()) };
    let Some(picture) = picture(grid) else {
        bail!(
            "{}: expected results with learning curves to plot, got none: a report.json has no curve",
            path.display()
        )
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(write_atomically(path, picture.as_bytes())?)
}

fn write(grid: &Grid, out: &Path, title: &str, page: &str) -> Result<()> {
    std::fs::create_dir_all(out)?;
    write_atomically(&out.join("report.html"), page.as_bytes())?;
    let text = format!("# Comparison: {title}\n\n{}", markdown(grid));
    Ok(write_atomically(&out.join("report.md"), text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_told_by_its_reason() {
        assert_eq!(named("vkd-no-norm-seed12-00ff.json"), Some(("vkd-no-norm", 12, "00ff")));
        assert_eq!(named("odd-seed-seed1-ab.json"), Some(("odd-seed", 1, "ab")));
        for other in ["seed-0.json", "vkd-seed1-ab.txt", "report.json"] {
            assert_eq!(named(other), None, "{other}");
        }
        let dir = tempfile::tempdir().unwrap();
        for file in
            ["a-seed0-1", "a-seed1-1", "a-seed0-2", "a-seed2-2", "a-seed7-1", "b-seed3-1", "x"]
        {
            std::fs::write(dir.path().join(format!("{file}.json")), "").unwrap();
        }
        let known = [("a".to_owned(), "1".to_owned())];
        assert_eq!(
            left_out(dir.path(), &known, &[0, 1]).unwrap(),
            "left out: b not asked for, seed 3\nleft out: a of other seeds, seed 7\n\
             left out: a of other settings, seeds 0, 2\n"
        );
    }
}
