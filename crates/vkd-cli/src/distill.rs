//! `vkd distill`: a teacher, its arms, a table and a report.

use crate::machine;
use crate::progress::{Part, Progress};
use crate::recipe_args::RecipeArgs;
use crate::report::markdown::Metric;
use crate::shown::{Shown, for_task};
use crate::worker::{TEACHER, train_in_process};
use crate::{dry_run, launch, pool, together};
use candle_core::{Error, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Instant;
use vkd_train::{
    RecipeOf, Report, RunFolderOf, Samples, Scores, TeacherReport, TensorBoard, Workload,
    train_teacher,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Run folder [default: runs/NAME-seedN]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Start anew in a folder that holds another run
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Go on with the run in DIR, by its own recipe where none is named. Without this a run that was stopped goes on as
    /// well, when it is started again as before
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "overwrite"])]
    resume: Option<PathBuf>,
    /// How many arms train side by side, one thread each [default: the number of processors, on a GPU 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    jobs: Option<u64>,
    /// Build everything, take one small step in memory, say what a run costs, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    if let Some(dir) = &args.resume
        && !dir.join("recipe.toml").exists()
    {
        bail!("{}: expected a run to resume, got no recipe.toml there", dir.display())
    }
    if launch::size() > 1 {
        return launch::together(|ranks, worker| {
            let recipe = ranks.all_well(args.recipe.load_for(args.resume.as_deref()))?;
            for_task!(recipe, recipe => together::distill(args, recipe, (&ranks, worker), started))
        });
    }
    let recipe = args.recipe.load_for(args.resume.as_deref())?;
    for_task!(recipe, recipe => of_task(args, recipe, started))
}

fn of_task<W: Shown>(args: &Args, recipe: RecipeOf<W>, started: Instant) -> Result<()> {
    let data = W::open(&recipe.data)?;
    vkd_train::check(&recipe, &data)?;
    let out = args.folder(&recipe);
    let reused = args.reuses(&out, &recipe)?;
    if args.dry_run {
        return dry_run::run(&recipe, &data, &out, reused);
    }
    let run = RunFolderOf::create(&out, recipe, args.overwrite)?;
    let progress = Progress::new();
    progress.line(&summary(run.recipe(), &data, &out));
    let teacher = teacher(&run, &data, TEACHER, &progress)?;
    let jobs = machine::jobs(args.jobs, run.recipe().training.device);
    pool::for_each(&run.recipe().arms, jobs, |name| arm(&run, name, name, &progress))?;
    let report = run.finish(data.name(), started.elapsed().as_secs_f64())?;
    crate::report::write(&run, &report, &data)?;
    close(&run, &report, &teacher)
}

impl Args {
    /// Where the run goes.
    pub(crate) fn folder<W: Workload>(&self, recipe: &RecipeOf<W>) -> PathBuf {
        match self.resume.as_ref().or(self.out.as_ref()) {
            Some(out) => out.clone(),
            None => PathBuf::from("runs").join(format!("{}-seed{}", recipe.name, recipe.seed)),
        }
    }

    /// Whether a run of this recipe lies there already, and may be gone on with.
    pub(crate) fn reuses<W: Workload>(&self, out: &Path, recipe: &RecipeOf<W>) -> Result<bool> {
        if self.overwrite {
            return Ok(false);
        }
        RunFolderOf::fits(out, recipe).map_err(|e| {
            let e = vkd_train::plain(&e);
            Error::Msg(format!("{e}; choose another --out or pass --overwrite"))
        })
    }
}

/// The table at the end of a run, and where its files are.
pub(crate) fn close<W: Workload>(
    run: &RunFolderOf<W>,
    report: &Report,
    teacher: &TeacherReport,
) -> Result<()> {
    crate::print(&format!(
        "{}\n{} s; the student is {}, the report {}\n",
        table(report, teacher),
        report.seconds.round(),
        run.path("student.safetensors").display(),
        run.path("report.html").display()
    ))
}

pub(crate) fn summary<W: Shown>(recipe: &RecipeOf<W>, data: &W::Data, out: &Path) -> String {
    let [train, validation, test] = data.counts();
    format!(
        "{}: {train} training images{}, {validation} validation, {test} test; seed {}; writing to {}",
        data.name(),
        W::labels(recipe),
        recipe.seed,
        out.display()
    )
}

/// Trains or reuses the teacher, which progress shows as `label`.
pub(crate) fn teacher<W: Workload>(
    run: &RunFolderOf<W>,
    data: &W::Data,
    label: &str,
    progress: &Progress,
) -> Result<TeacherReport> {
    let finished = run.teacher_report()?.is_some();
    let mut part = progress.part(label, run.recipe().teacher.steps, run.recipe().teacher.batch);
    if !finished {
        say_where_from(run, TEACHER, label, progress)?;
        watched(run, TEACHER, label, &mut part, progress)?;
    }
    // Checks the floor of a reused one too; trains nothing any more.
    let report = train_teacher(run, data, &mut |_| Ok(()))?;
    let source = if finished {
        ", finished earlier and reused"
    } else if run.recipe().teacher.checkpoint.is_some() {
        ", loaded"
    } else {
        ""
    };
    part.finish(&format!("{}{source}", test_score(&report.metrics)));
    Ok(report)
}

/// Says from which checkpoint a part goes on, and which ones can't be read.
pub(crate) fn say_where_from<W: Workload>(
    run: &RunFolderOf<W>,
    name: &str,
    label: &str,
    progress: &Progress,
) -> Result<()> {
    let (newest, passed_over) = run.checkpoints(name).newest()?;
    for why in passed_over {
        progress.line(&format!("{label:>16} warning: checkpoint passed over: {why}"));
    }
    if let Some(saved) = newest {
        progress.line(&format!("{label:>16} goes on after step {}", saved.note.step));
    }
    Ok(())
}

/// Trains one part in a process of its own; progress and TensorBoard see its events as they come.
fn watched<W: Workload>(
    run: &RunFolderOf<W>,
    name: &str,
    label: &str,
    part: &mut Part,
    progress: &Progress,
) -> Result<()> {
    let mut board = TensorBoard::create(&run.path("tensorboard").join(name))?;
    let mut fault = None;
    let observe = |event: &_| {
        part.show(event);
        // The first failed write is told at the end; training goes on.
        if fault.is_none() {
            fault = board.write(event).err();
        }
    };
    let waiting = |who: &str| progress.line(&format!("{label:>16} waits: {who}"));
    let skipped = train_in_process(run.dir(), name, observe, waiting)?;
    if let Some(first) = skipped.first() {
        let n = skipped.len();
        progress.line(&format!(
            "{label:>16} warning: {n} unreadable images passed over, the first is {first}"
        ));
    }
    fault.map_or(Ok(()), Err)
}

/// Trains or reuses one arm, which progress shows as `label`.
pub(crate) fn arm<W: Workload>(
    run: &RunFolderOf<W>,
    name: &str,
    label: &str,
    progress: &Progress,
) -> Result<()> {
    let training = &run.recipe().training;
    let mut part = progress.part(label, training.steps, training.effective_batch());
    let finished = run.arm_report(name)?.is_some();
    if !finished {
        say_where_from(run, name, label, progress)?;
        watched(run, name, label, &mut part, progress)?;
    }
    let Some(report) = run.arm_report(name)? else {
        bail!("arm {name}: expected a result from its process, got none")
    };
    let source = if finished { ", finished earlier and reused" } else { "" };
    part.finish(&format!("{}{source}", test_score(&report.metrics)));
    Ok(())
}

/// `test accuracy 0.9830`.
pub(crate) fn test_score(metrics: &Scores) -> String {
    let main = Metric::main(metrics);
    format!("test {} {:.4}", main.what, main.value(metrics))
}

/// The table at the end of a run.
fn table(report: &Report, teacher: &TeacherReport) -> String {
    let mut text = format!(
        "\n{:<17} {:>6} {:>10}  {:>8} {:>10}  {}\n",
        "", "labels", "parameters", "test", "validation", "loss"
    );
    let mut row = |name: &str, labels: String, parameters, metrics: &Scores, loss: String| {
        // A GAN's teacher has a score of another kind.
        let main = Metric::main(metrics);
        let validation = metrics.get(&main.validation()).copied().unwrap_or(f64::NAN);
        text.push_str(&format!(
            "{name:<17} {labels:>6} {parameters:>10}  {:>8.4} {validation:>10.4}  {loss}\n",
            main.value(metrics)
        ));
    };
    row("teacher", "all".to_owned(), teacher.parameters, &teacher.metrics, "label".to_owned());
    for arm in &report.arms {
        let weight = |(name, w): (&String, &f64)| {
            if *w == 1. { name.clone() } else { format!("{w}·{name}") }
        };
        let mut loss: Vec<String> = arm.terms.iter().map(weight).collect();
        if let Some(residual) = arm.projector_residual_max {
            loss.push(format!("[max|WᵀW−I| {residual:.1e}]"));
        }
        row(&arm.name, arm.labels.to_string(), arm.parameters, &arm.metrics, loss.join(" + "));
    }
    text
}
