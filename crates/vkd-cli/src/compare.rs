//! `vkd compare`: a grid of arms and seeds, trained as far as it is missing, and a report about it.
//!
//! Every finished arm of a seed is one small file in the results folder, written as soon as it is finished and found by the
//! hash of what decided it. So a grid can be stopped at any moment, gain arms and seeds later, and be kept in a repository.

use crate::grid::Grid;
use crate::progress::Progress;
use crate::recipe_args::RecipeArgs;
use crate::report::{grid::html, markdown::markdown};
use crate::{distill, machine, pool};
use candle_core::{Error, Result, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use vkd_models::write_atomically;
use vkd_train::{ArmResult, Dataset, Recipe, RunFacts, RunFolder, fingerprint};

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
    /// How many runs train side by side, one thread each [default: the number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    jobs: Option<u64>,
    /// Folder of report.html, report.md and the runs [default: runs/NAME-compare]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder of the result files, one a finished arm and seed [default: OUT/results]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// Train nothing: print the Markdown of all results in this folder, and with --out write both reports
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "set", "seed", "seeds", "jobs", "results"])]
    from: Option<PathBuf>,
}

/// A part of the grid that is missing.
struct Missing {
    run: RunFolder,
    arms: Vec<String>,
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
    let recipe = args.recipe.load_with(&set)?;
    let data = Dataset::open(&recipe.data)?;
    vkd_train::check(&recipe, &data)?;
    let named = || PathBuf::from("runs").join(format!("{}-compare", recipe.name));
    let out = args.out.clone().unwrap_or_else(named);
    let results = args.results.clone().unwrap_or_else(|| out.join("results"));
    let seeds: Vec<u64> = (0..args.seeds).map(|i| recipe.seed.saturating_add(i)).collect();
    let hash = |arm: &String| Ok((arm.clone(), fingerprint(&recipe, arm, &data)?.1));
    let fingerprints = recipe.arms.iter().map(hash).collect::<Result<Vec<_>>>()?;
    train(args, &recipe, &data, &seeds, &fingerprints, &out, &results)?;
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
    write(&grid, &out, &recipe.name, &recipe.to_toml()?, &command)?;
    crate::print(&format!(
        "\n{}\nthe report is {}, the results are in {}\n",
        markdown(&grid),
        out.join("report.html").display(),
        results.display()
    ))
}

/// Trains what is missing of the grid; `fingerprints` has the hash of each arm.
fn train(
    args: &Args,
    recipe: &Recipe,
    data: &Dataset,
    seeds: &[u64],
    fingerprints: &[(String, String)],
    out: &Path,
    results: &Path,
) -> Result<()> {
    let (mut missing, mut skipped) = (Vec::new(), 0);
    for seed in seeds {
        let mut arms = Vec::new();
        for (arm, hash) in fingerprints {
            match ArmResult::find(results, arm, *seed, hash)? {
                Some(_) => skipped += 1,
                None => arms.push(arm.clone()),
            }
        }
        if !arms.is_empty() {
            let recipe = Recipe { seed: *seed, arms: arms.clone(), ..recipe.clone() };
            let folder = out.join(format!("seed{seed}"));
            RunFolder::fits(&folder, &recipe).map_err(|e| {
                let (e, results) = (vkd_train::plain(&e), results.display());
                Error::Msg(format!(
                    "{e}; choose another --out: with --results {results} no finished run is lost"
                ))
            })?;
            missing.push(Missing { run: RunFolder::create(&folder, recipe, false)?, arms });
        }
    }
    let progress = Progress::new();
    let all = recipe.arms.len() * seeds.len();
    progress.line(&format!(
        "{}: {} arms, {} seeds; {skipped} of {all} runs found in {}, {} to train",
        recipe.name,
        recipe.arms.len(),
        seeds.len(),
        results.display(),
        all - skipped
    ));
    if missing.is_empty() {
        return Ok(());
    }
    let jobs = args.jobs.map_or(machine::processors(), |jobs| jobs as usize);
    // All teachers first: every arm of a seed needs its own.
    pool::for_each(&missing, jobs, |m| {
        let label = format!("seed {} teacher", m.run.recipe().seed);
        distill::teacher(&m.run, data, &label, &progress).map(|_| ())
    })?;
    let facts = RunFacts {
        // Of the recipe; filled in where the result is gathered.
        batch: 0,
        steps: 0,
        images: 0,
        // What a worker process is given.
        threads: 1,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: machine::commit(),
        machine: machine::description(),
    };
    let places: Vec<(&Missing, &String)> =
        missing.iter().flat_map(|m| m.arms.iter().map(move |arm| (m, arm))).collect();
    pool::for_each(&places, jobs, |(m, arm)| {
        let label = format!("seed {} {arm}", m.run.recipe().seed);
        distill::arm(&m.run, arm, &label, &progress)?;
        ArmResult::gather(&m.run, data, arm, facts.clone())?.write(results)
    })
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
        std::fs::create_dir_all(out)?;
        let name = grid.first().map_or_else(String::new, |r| r.recipe.clone());
        write(&grid, out, &name, "", "")?;
    }
    crate::print(&markdown(&grid))
}

fn write(grid: &Grid, out: &Path, title: &str, recipe: &str, command: &str) -> Result<()> {
    let page = html(grid, title, recipe, command);
    write_atomically(&out.join("report.html"), page.as_bytes())?;
    let text = format!("# Comparison: {title}\n\n{}", markdown(grid));
    Ok(write_atomically(&out.join("report.md"), text.as_bytes())?)
}
