//! `vkd eval`: the scores of a saved student.

use crate::detections;
use crate::recipe_args::{DeviceArgs, RecipeArgs};
use candle_core::{Error, Result, bail};
use std::path::{Path, PathBuf};
use vkd_models::{GeneratorStudent, Student, StudentKind, student_kind};
use vkd_train::metrics::Evaluation;
use vkd_train::{
    AnyRecipe, Dataset, Generation, Recipe, RunFolderOf, Workload, evaluate_generator,
    evaluate_student,
};

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Split {
    Train,
    Validation,
    Test,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The student's weights, with its card (.json) beside them
    pub(crate) student: PathBuf,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Which images
    #[arg(long, value_enum, default_value = "test")]
    pub(crate) split: Split,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// Of a detector: write all that it found as COCO's results, which pycocotools reads
    #[arg(long, value_name = "FILE.json")]
    pub(crate) results: Option<PathBuf>,
    /// Of a detector: draw the first images with what is there and what was found
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) pictures: Option<PathBuf>,
}

impl Split {
    /// Indices and name of the images among those for training, validation and test.
    pub(crate) fn of(self, parts: [&[usize]; 3]) -> (&[usize], &'static str) {
        match self {
            Self::Train => (parts[0], "training"),
            Self::Validation => (parts[1], "validation"),
            Self::Test => (parts[2], "test"),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (kind, run) = (student_kind(&args.student)?, run_of(&args.student));
    if kind == StudentKind::Generator {
        return generator(args, run.as_deref());
    }
    // Inside a run folder its own recipe says which images the student knows and which are for the test.
    match (args.recipe.load_for(run.as_deref())?, kind) {
        (AnyRecipe::Classification(recipe), StudentKind::Classifier) => classifier(args, &recipe),
        (AnyRecipe::Detection(recipe), StudentKind::Detector) => detections::eval(args, &recipe),
        _ => {
            bail!(
                "eval: expected a recipe of the {}'s task, got another: name the recipe that it was made with",
                kind.name()
            )
        }
    }
}

/// A generator is scored by the judge of the run that it lies in.
fn generator(args: &Args, run: Option<&Path>) -> Result<()> {
    not_of_detectors(args, "generator")?;
    if args.recipe.is_given() {
        bail!(
            "eval: expected no RECIPE, --set or --seed for a generator, which is scored as its run's own recipe says"
        )
    }
    let Some(run) = run else {
        bail!(
            "eval: {}: expected a generator in the folder of its run, whose judge scores it, got one elsewhere",
            args.student.display()
        )
    };
    let run = RunFolderOf::<Generation>::open(run)?;
    let data = Generation::open(&run.recipe().data)?;
    let (indices, name) = args.split.of([&data.train, &data.validation, &data.test]);
    let device = args.device.open(run.recipe().training.device)?;
    let student = GeneratorStudent::load(&args.student, &device)?;
    let scores = evaluate_generator(student, &run, &data, indices)?;
    let extractor = run.recipe().criterion.extractor()?;
    if args.json {
        let mut json = serde_json::to_value(&scores).map_err(Error::wrap)?;
        json["student"] = args.student.display().to_string().into();
        json["data"] = data.name.as_str().into();
        json["split"] = name.into();
        if let Some(extractor) = extractor {
            json["extractor"] = extractor.into();
        }
        return crate::print(&format!("{json}\n"));
    }
    let lines = scores.iter().map(|(name, value)| format!("{name:<16} {value:.4}\n"));
    crate::print(&format!(
        "{}: {} samples against {} {name} images of {}, by the features of {}\n{}",
        args.student.display(),
        run.recipe().criterion.samples,
        indices.len(),
        data.name,
        extractor.as_deref().unwrap_or("the judge"),
        lines.collect::<String>()
    ))
}

fn not_of_detectors(args: &Args, kind: &str) -> Result<()> {
    for (option, given) in
        [("--results", args.results.is_some()), ("--pictures", args.pictures.is_some())]
    {
        if given {
            bail!("eval: {option}: expected a detector, got a {kind}")
        }
    }
    Ok(())
}

fn classifier(args: &Args, recipe: &Recipe) -> Result<()> {
    not_of_detectors(args, "classifier")?;
    let student = Student::load(&args.student, &args.device.open(recipe.training.device)?)?;
    let data = Dataset::open(&recipe.data)?;
    let (indices, name) = args.split.of([&data.train, &data.validation, &data.test]);
    if indices.is_empty() {
        bail!("eval: expected {name} images, got none in {}", data.name)
    }
    let found = evaluate_student(&student, &data, indices)?;
    if args.json {
        return crate::print(&json(args, &found, &data, name)?);
    }
    crate::print(&format!(
        "{}: accuracy {:.4} on {} {name} images of {} (recipe {})\n\
         top 5 {:.4}, negative log likelihood {:.4}, expected calibration error {:.4} (15 bins)\n\n{}",
        args.student.display(),
        found.accuracy,
        found.images,
        data.name,
        recipe.name,
        found.top5_accuracy,
        found.negative_log_likelihood,
        found.calibration_error,
        confusion(&found, &data.class_names)
    ))
}

fn json(args: &Args, found: &Evaluation, data: &Dataset, split: &str) -> Result<String> {
    let mut value = serde_json::to_value(found).map_err(Error::wrap)?;
    value["student"] = args.student.display().to_string().into();
    value["data"] = data.name.as_str().into();
    value["split"] = split.into();
    value["classes"] = data.class_names.clone().into();
    Ok(format!("{value}\n"))
}

/// Most classes that a terminal shows as a matrix.
const SHOWN: usize = 20;

/// The confusion matrix, a row a label; of many classes only the pairs that are taken for each other most often.
fn confusion(found: &Evaluation, names: &[String]) -> String {
    let counts = &found.confusion;
    if names.len() <= SHOWN {
        let longest =
            |least: usize| names.iter().map(|n| n.chars().count()).fold(least, usize::max);
        let digits = counts.iter().flatten().max().map_or(1, |n| n.to_string().len());
        let (first, width) = (longest(5), longest(digits));
        let mut text = format!("{:>first$} ", "label");
        names.iter().for_each(|name| text.push_str(&format!(" {name:>width$}")));
        text.push_str("   recall\n");
        for ((class, row), name) in counts.iter().enumerate().zip(names) {
            text.push_str(&format!("{name:>first$} "));
            row.iter().for_each(|n| text.push_str(&format!(" {n:>width$}")));
            let all: u64 = row.iter().sum();
            text.push_str(&match all {
                0 => "        -\n".to_owned(),
                all => format!("   {:.4}\n", row[class] as f64 / all as f64),
            });
        }
        return text;
    }
    let pairs = counts.iter().enumerate().flat_map(|(label, row)| {
        row.iter().enumerate().map(move |(prediction, n)| (*n, label, prediction))
    });
    let mut wrong: Vec<_> = pairs.filter(|(n, l, p)| *n > 0 && l != p).collect();
    // The sort keeps classes in order where counts are equal.
    wrong.sort_by_key(|(n, ..)| std::cmp::Reverse(*n));
    let mut text = "most frequent confusions (label, prediction, images):\n".to_owned();
    for (n, label, prediction) in wrong.iter().take(SHOWN) {
        text.push_str(&format!("  {} -> {}: {n}\n", names[*label], names[*prediction]));
    }
    text
}

/// The folder of the run that a student lies in: `RUN/student.safetensors` or `RUN/arms/NAME/student.safetensors`.
fn run_of(student: &Path) -> Option<PathBuf> {
    // Made whole: the folders above a bare file name are found as well.
    let student = student.canonicalize().ok()?;
    let folder = student.parent()?;
    let candidates = [Some(folder), folder.parent().and_then(Path::parent)];
    candidates.into_iter().flatten().find(|f| f.join("recipe.toml").exists()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(confusion: Vec<Vec<u64>>) -> Evaluation {
        Evaluation {
            images: 1,
            accuracy: 0.,
            top5_accuracy: 0.,
            negative_log_likelihood: 0.,
            calibration_error: 0.,
            confusion,
        }
    }

    #[test]
    fn the_run_of_a_student_is_found_from_within() {
        let dir = tempfile::tempdir().unwrap();
        let (run, arm) = (dir.path().canonicalize().unwrap(), dir.path().join("arms/vkd"));
        std::fs::create_dir_all(&arm).unwrap();
        std::fs::write(run.join("recipe.toml"), "").unwrap();
        for student in [run.join("s"), arm.join("s")] {
            std::fs::write(&student, "").unwrap();
            assert_eq!(run_of(&student), Some(run.clone()));
        }
        // As it is named where the shell stands in its folder.
        let bare = arm.join("../vkd/../../arms/vkd/s");
        assert_eq!(run_of(&bare), Some(run));
        assert_eq!(run_of(&dir.path().join("absent")), None);
    }

    #[test]
    fn few_classes_are_a_matrix_and_many_a_list() {
        let names = ["cat".to_owned(), "dog".to_owned()];
        let text = confusion(&evaluation(vec![vec![12, 4], vec![0, 0]]), &names);
        assert_eq!(
            text,
            "label  cat dog   recall\n  cat   12   4   0.7500\n  dog    0   0        -\n"
        );
        let names: Vec<String> = (0..30).map(|i| format!("c{i}")).collect();
        let mut counts = vec![vec![0; 30]; 30];
        (counts[3][4], counts[7][1], counts[5][5]) = (2, 9, 50);
        let text = confusion(&evaluation(counts), &names);
        assert!(text.ends_with("  c7 -> c1: 9\n  c3 -> c4: 2\n"), "{text}");
    }
}
