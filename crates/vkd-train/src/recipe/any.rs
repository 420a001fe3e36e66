//! A recipe whose task shows when it is read.

use super::overrides::{blame, located, set};
use super::{DetectionRecipe, GenerationRecipe, Recipe, TaskKind};
use crate::folder::named;
use candle_core::{Result, bail};
use serde::Deserialize;
use std::path::Path;

/// A recipe of any task.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyRecipe {
    /// `task = "classification"`, or none.
    Classification(Recipe),
    /// `task = "detection"`.
    Detection(DetectionRecipe),
    /// `task = "generation"`.
    Generation(GenerationRecipe),
}

/// What decides how the rest is read.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    task: TaskKind,
}

impl AnyRecipe {
    /// Reads a recipe and applies `KEY=VALUE` overrides, in order; `source` names the text in messages.
    ///
    /// # Errors
    /// An unknown task, and those of [`RecipeOf::parse`](super::RecipeOf::parse).
    pub fn parse(text: &str, source: &str, overrides: &[String]) -> Result<Self> {
        let mut table: toml::Table = match toml::from_str(text) {
            Ok(table) => table,
            Err(e) => bail!("{}", located(text, source, &e)),
        };
        for change in overrides {
            set(&mut table, change)?;
        }
        let head: Head = match table.try_into() {
            Ok(head) => head,
            Err(e) => bail!("{}", blame::<Head>(text, source, overrides, &e)?),
        };
        match head.task {
            TaskKind::Classification => {
                Recipe::parse(text, source, overrides).map(Self::Classification)
            }
            TaskKind::Detection => {
                DetectionRecipe::parse(text, source, overrides).map(Self::Detection)
            }
            TaskKind::Generation => {
                GenerationRecipe::parse(text, source, overrides).map(Self::Generation)
            }
        }
    }

    /// The recipe of a run's folder.
    ///
    /// # Errors
    /// No readable `recipe.toml`.
    pub fn of_run(dir: &Path) -> Result<Self> {
        let path = dir.join("recipe.toml");
        let text = std::fs::read_to_string(&path).map_err(|e| named(&path, &e))?;
        Self::parse(&text, &path.display().to_string(), &[])
    }

    pub(crate) fn table(&self) -> Result<toml::Table> {
        match self {
            Self::Classification(recipe) => recipe.table(),
            Self::Detection(recipe) => recipe.table(),
            Self::Generation(recipe) => recipe.table(),
        }
    }
}

impl From<Recipe> for AnyRecipe {
    fn from(recipe: Recipe) -> Self {
        Self::Classification(recipe)
    }
}

impl From<DetectionRecipe> for AnyRecipe {
    fn from(recipe: DetectionRecipe) -> Self {
        Self::Detection(recipe)
    }
}

impl From<GenerationRecipe> for AnyRecipe {
    fn from(recipe: GenerationRecipe) -> Self {
        Self::Generation(recipe)
    }
}
