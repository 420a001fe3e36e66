//! `mpirun -n N vkd distill`: the ranks train one part after the other, each part together.

use crate::distill::{Args, close, say_where_from, summary, test_score};
use crate::machine::commit;
use crate::progress::Progress;
use crate::shown::Shown;
use crate::worker::{TEACHER, this_process};
use candle_core::{Result, bail};
use std::path::Path;
use std::time::Instant;
use vkd_train::{
    Event, Ranks, RecipeOf, RunFolderOf, Samples, TensorBoard, Workload, check_ranks, train_arm,
    train_teacher,
};

/// One rank's side of a run. The first one alone writes and talks.
pub(crate) fn distill<W: Shown>(
    args: &Args,
    recipe: RecipeOf<W>,
    ranks: &Ranks,
    started: Instant,
) -> Result<()> {
    let data = ranks.all_well(checked(args, &recipe, ranks))?;
    check_ranks(&recipe, &data, ranks, commit().as_deref())?;
    let out = args.folder(&recipe);
    let progress = ranks.leads().then(Progress::new);
    let run = folder(args, recipe, &out, ranks)?;
    if let Some(progress) = &progress {
        let batch = run.recipe().training.effective_batch();
        progress.line(&format!(
            "{}; {} ranks, each with its part of the {batch} images of a step",
            summary(run.recipe(), &data, &out),
            ranks.size()
        ));
    }
    let training = &run.recipe().training;
    let whole = (run.recipe().teacher.steps, run.recipe().teacher.batch);
    let train = |observer: &mut dyn FnMut(&Event) -> Result<()>| {
        let report = train_teacher(&run, &data, observer)?;
        Ok((test_score(&report.metrics), report))
    };
    let teacher = part(&run, TEACHER, whole, progress.as_ref(), train)?;
    for arm in &run.recipe().arms {
        let whole = (training.steps, training.effective_batch());
        let train = |observer: &mut dyn FnMut(&Event) -> Result<()>| {
            let report = train_arm(&run, &data, arm, observer)?;
            Ok((test_score(&report.metrics), report))
        };
        part(&run, arm, whole, progress.as_ref(), train)?;
    }
    ranks.from_first(|| {
        let report = run.finish(data.name(), started.elapsed().as_secs_f64())?;
        crate::report::write(&run, &report, &data)?;
        close(&run, &report, &teacher)
    })
}

/// The data set, if everything can be built.
fn checked<W: Workload>(args: &Args, recipe: &RecipeOf<W>, ranks: &Ranks) -> Result<W::Data> {
    if args.dry_run {
        bail!("--dry-run: expected one process, got {}", ranks.size())
    }
    let data = W::open(&recipe.data)?;
    vkd_train::check(recipe, &data)?;
    Ok(data)
}

/// The folder: made by the first rank, then opened by the others.
fn folder<W: Workload>(
    args: &Args,
    recipe: RecipeOf<W>,
    out: &Path,
    ranks: &Ranks,
) -> Result<RunFolderOf<W>> {
    let mut made = None;
    ranks.from_first(|| {
        args.reuses(out, &recipe)?;
        made = Some(RunFolderOf::create(out, recipe, args.overwrite)?);
        Ok(())
    })?;
    let run = match made {
        Some(run) => run,
        None => RunFolderOf::open(out)?,
    };
    let worker = this_process(|who| crate::note(&format!("waits: {who}")));
    Ok(run.with_worker(worker).with_ranks(ranks.clone()))
}

/// Trains one part of `(steps, images a step)`; the first rank shows it.
fn part<W: Workload, T>(
    run: &RunFolderOf<W>,
    name: &str,
    (steps, batch): (u64, usize),
    progress: Option<&Progress>,
    train: impl FnOnce(&mut dyn FnMut(&Event) -> Result<()>) -> Result<(String, T)>,
) -> Result<T> {
    let Some(progress) = progress else { return Ok(train(&mut |_| Ok(()))?.1) };
    say_where_from(run, name, name, progress)?;
    let mut shown = progress.part(name, steps, batch);
    let mut board = TensorBoard::create(&run.path("tensorboard").join(name))?;
    let (score, result) = train(&mut |event| {
        shown.show(event);
        board.write(event)
    })?;
    shown.finish(&score);
    Ok(result)
}
