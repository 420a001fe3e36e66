//! The arguments that choose a recipe, and where a saved student computes.

use candle_core::{Device, Result, bail};
use std::path::{Path, PathBuf};
use vkd_train::{AnyRecipe, ComputeDevice};

/// The recipe that runs when none is named.
const DEFAULT: &str = include_str!("../recipes/digits.toml");

#[derive(clap::Args)]
pub(crate) struct RecipeArgs {
    /// Recipe file; without one, the embedded handwritten digits
    #[arg(value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// Override any value of the recipe, for example `--set training.steps=100`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed; the same as `--set seed=N`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: Option<u64>,
}

/// Where a saved student computes.
#[derive(clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where to compute: cpu, cuda or cuda:N [default: training.device of the recipe where there is one, else cpu]
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    device: Option<ComputeDevice>,
}

impl DeviceArgs {
    /// The device that was named, else the recipe's.
    pub(crate) fn open(&self, of_recipe: ComputeDevice) -> Result<Device> {
        self.device.unwrap_or(of_recipe).open()
    }
}

fn device(name: &str) -> std::result::Result<ComputeDevice, String> {
    name.parse().map_err(|e| vkd_train::plain(&e))
}

impl RecipeArgs {
    pub(crate) fn load(&self) -> Result<AnyRecipe> {
        self.load_with(&[])
    }

    /// Whether any of them was given.
    pub(crate) fn is_given(&self) -> bool {
        self.recipe.is_some() || !self.set.is_empty() || self.seed.is_some()
    }

    /// With further overrides.
    pub(crate) fn load_with(&self, more: &[String]) -> Result<AnyRecipe> {
        let overrides = [self.overrides().as_slice(), more].concat();
        match &self.recipe {
            None => AnyRecipe::parse(DEFAULT, "the built-in recipe digits.toml", &overrides),
            Some(path) => Self::read(path, &overrides),
        }
    }

    /// The arguments again, as a shell takes them.
    pub(crate) fn words(&self) -> Vec<String> {
        let quoted = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
        let path = |path: &PathBuf| match path.display().to_string() {
            odd if odd.contains(|c: char| !c.is_alphanumeric() && !"/._-".contains(c)) => {
                quoted(&odd)
            }
            plain => plain,
        };
        let recipe = self.recipe.iter().map(path);
        let set = self.set.iter().flat_map(|set| ["--set".to_owned(), quoted(set)]);
        let seed = self.seed.iter().map(|seed| format!("--seed {seed}"));
        recipe.chain(set).chain(seed).collect()
    }

    /// The named recipe, else the one of the run that `run` is the folder of, else the built-in one.
    pub(crate) fn load_for(&self, run: Option<&Path>) -> Result<AnyRecipe> {
        match (&self.recipe, run) {
            (None, Some(run)) => Self::read(&run.join("recipe.toml"), &self.overrides()),
            _ => self.load(),
        }
    }

    fn overrides(&self) -> Vec<String> {
        self.set.iter().cloned().chain(self.seed.map(|s| format!("seed={s}"))).collect()
    }

    fn read(path: &Path, overrides: &[String]) -> Result<AnyRecipe> {
        match std::fs::read_to_string(path) {
            Ok(text) => AnyRecipe::parse(&text, &path.display().to_string(), overrides),
            Err(e) => bail!("{}: expected a recipe: {e}", path.display()),
        }
    }
}
