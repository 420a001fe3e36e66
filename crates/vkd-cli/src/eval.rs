//! `vkd eval`: the accuracy of a saved student.

use crate::recipe_args::RecipeArgs;
use candle_core::{Device, Result, bail};
use std::path::{Path, PathBuf};
use vkd_models::Student;
use vkd_train::{Dataset, evaluate_student};

#[derive(Clone, Copy, clap::ValueEnum)]
enum Split {
    Train,
    Validation,
    Test,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The student's weights, with its card (.json) beside them
    student: PathBuf,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Which images
    #[arg(long, value_enum, default_value = "test")]
    split: Split,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let student = Student::load(&args.student, &Device::Cpu)?;
    // Inside a run folder its own recipe says which images the student knows and which are for the test.
    let recipe = args.recipe.load_for(run_of(&args.student).as_deref())?;
    let data = Dataset::open(&recipe.data)?;
    let (indices, name) = match args.split {
        Split::Train => (&data.train, "training"),
        Split::Validation => (&data.validation, "validation"),
        Split::Test => (&data.test, "test"),
    };
    if indices.is_empty() {
        bail!("eval: expected {name} images, got none in {}", data.name)
    }
    let accuracy = evaluate_student(&student, &data, indices)?;
    crate::print(&format!(
        "{}: accuracy {accuracy:.4} on {} {name} images of {} (recipe {})\n",
        args.student.display(),
        indices.len(),
        data.name,
        recipe.name
    ))
}

/// The folder of the run that a student lies in: `RUN/student.safetensors` or `RUN/arms/NAME/student.safetensors`.
fn run_of(student: &Path) -> Option<PathBuf> {
    let folder = student.parent()?;
    let candidates = [Some(folder), folder.parent().and_then(Path::parent)];
    candidates.into_iter().flatten().find(|f| f.join("recipe.toml").exists()).map(Path::to_owned)
}
