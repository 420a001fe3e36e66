//! What the command line shows of a task beyond what all tasks have alike.

use crate::detections;
use crate::doctor::{self, Findings};
use crate::report::escape;
use crate::report::scenes::{SURE, row, samples};
use candle_core::{Device, Result};
use std::path::PathBuf;
use vkd_models::{DetectorStudent, GeneratorStudent};
use vkd_train::{
    Classification, Detection, DetectionRecipe, Generation, GenerationRecipe, Recipe, RecipeOf,
    Workload, generator_grid,
};

/// Test images of a report.
const PICTURES: usize = 5;

/// Runs `$body` with the recipe of whichever task it is.
macro_rules! for_task {
    ($any:expr, $recipe:ident => $body:expr) => {
        match $any {
            vkd_train::AnyRecipe::Classification($recipe) => $body,
            vkd_train::AnyRecipe::Detection($recipe) => $body,
            vkd_train::AnyRecipe::Generation($recipe) => $body,
        }
    };
}
pub(crate) use for_task;

/// A task with a face.
pub(crate) trait Shown: Workload {
    /// How many labels a run is about, in brackets behind the number of training images; empty where it goes without saying.
    fn labels(_recipe: &RecipeOf<Self>) -> String {
        String::new()
    }

    /// Looks at the data set for the doctor; `None` where it can't be opened.
    fn look_at(recipe: &RecipeOf<Self>, decode: bool, found: &mut Findings) -> Option<Self::Data>;

    /// A section of a report about saved students, each with what it is called there; empty for none.
    ///
    /// # Errors
    /// A student that can't be loaded.
    fn pictures(
        _recipe: &RecipeOf<Self>,
        _students: &[(String, PathBuf)],
        _data: &Self::Data,
    ) -> Result<String> {
        Ok(String::new())
    }
}

impl Shown for Classification {
    fn labels(recipe: &Recipe) -> String {
        format!(" ({} with a label)", recipe.data.labels)
    }

    fn look_at(recipe: &Recipe, decode: bool, found: &mut Findings) -> Option<Self::Data> {
        doctor::classes(&recipe.data, decode, found)
    }
}

impl Shown for Generation {
    fn labels(recipe: &GenerationRecipe) -> String {
        format!(" ({} of them for an arm with few)", recipe.data.labels)
    }

    fn look_at(
        recipe: &GenerationRecipe,
        decode: bool,
        found: &mut Findings,
    ) -> Option<Self::Data> {
        doctor::classes(&recipe.data, decode, found)?;
        // With the values that a GAN sees.
        Self::open(&recipe.data).ok()
    }

    /// Samples of each generator.
    fn pictures(
        recipe: &GenerationRecipe,
        students: &[(String, PathBuf)],
        _data: &Self::Data,
    ) -> Result<String> {
        if students.is_empty() {
            return Ok(String::new());
        }
        let mut figures = String::new();
        for (name, path) in students {
            let student = GeneratorStudent::load(path, &Device::Cpu)?;
            let grid = generator_grid(student, recipe.seed)?;
            figures += &format!(
                "<figure>\n<figcaption>{}</figcaption>\n{}</figure>\n",
                escape(name),
                samples(&grid)
            );
        }
        Ok(format!(
            "<section>\n<h2>Samples</h2>\n<div class=\"figures\">\n{figures}</div>\n<ul class=\"notes\">\n<li>The first samples of \
             each generator, unchosen: a column for each of the first ten classes. The same noise for all. Grids of every validation lie \
             in the arms' folders.</li>\n</ul>\n</section>\n"
        ))
    }
}

impl Shown for Detection {
    fn look_at(recipe: &DetectionRecipe, decode: bool, found: &mut Findings) -> Option<Self::Data> {
        doctor::objects(recipe, decode, found)
    }

    /// The first test images, with what each student finds.
    fn pictures(
        recipe: &DetectionRecipe,
        students: &[(String, PathBuf)],
        data: &Self::Data,
    ) -> Result<String> {
        if students.is_empty() {
            return Ok(String::new());
        }
        let first = &data.test[..data.test.len().min(PICTURES)];
        let mut rows = String::new();
        for (name, path) in students {
            let student = DetectorStudent::load(path, &Device::Cpu)?;
            let scenes = detections::of_student(&student, data, &recipe.data, first)?;
            rows += &format!(
                "<h3>{}</h3>\n<div class=\"scroll\">{}</div>\n",
                escape(name),
                row(&scenes)
            );
        }
        Ok(format!(
            "<section>\n<h2>Test images</h2>\n{rows}<ul class=\"notes\">\n<li>The first test images, unchosen. Green and dashed: \
             what is there. Orange: what the student finds with a score of at least {SURE}, with class and score.</li>\n</ul>\n</section>\n"
        ))
    }
}
