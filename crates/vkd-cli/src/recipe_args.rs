//! The arguments that choose a recipe.

use candle_core::{Result, bail};
use std::path::PathBuf;
use vkd_train::Recipe;

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
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl RecipeArgs {
    pub(crate) fn load(&self) -> Result<Recipe> {
        let overrides: Vec<String> =
            self.set.iter().cloned().chain(self.seed.map(|s| format!("seed={s}"))).collect();
        match &self.recipe {
            None => Recipe::parse(DEFAULT, "the built-in recipe digits.toml", &overrides),
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => Recipe::parse(&text, &path.display().to_string(), &overrides),
                Err(e) => bail!("{}: expected a recipe: {e}", path.display()),
            },
        }
    }

    /// Whether the user named a recipe or changed anything.
    pub(crate) fn given(&self) -> bool {
        self.recipe.is_some() || !self.set.is_empty() || self.seed.is_some()
    }
}
