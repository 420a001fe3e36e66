//! `vkd eval`: the accuracy of a saved student.

use crate::recipe_args::RecipeArgs;
use candle_core::{Device, Result, bail};
use std::path::{Path, PathBuf};
use vkd_models::Student;
use vkd_train::{Dataset, RunFolder, evaluate_student};

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
    // Inside a run folder its own recipe says which data the student knows, unless the user says otherwise.
    let recipe = match run_of(&args.student) {
        Some(run) if !args.recipe.given() => run.recipe().clone(),
        _ => args.recipe.load()?,
    };
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
    println!(
        "{}: accuracy {accuracy:.4} on {} {name} images of {}",
        args.student.display(),
        indices.len(),
        data.name
    );
    Ok(())
}

/// The run that a student lies in: `RUN/student.safetensors` or `RUN/arms/NAME/student.safetensors`.
fn run_of(student: &Path) -> Option<RunFolder> {
    let folder = student.parent()?;
    [Some(folder), folder.parent().and_then(Path::parent)]
        .into_iter()
        .flatten()
        .find_map(|f| RunFolder::open(f).ok())
}
