//! `mpirun -n N vkd distill`: the ranks train one part after the other, each part together.

use crate::distill::{Args, close, say_where_from, summary, test_score};
use crate::progress::Progress;
use crate::shown::Shown;
use crate::worker::TEACHER;
use candle_core::{Error, Result, bail};
use std::path::Path;
use std::time::Instant;
use vkd_train::{
    Event, Ranks, RecipeOf, RunFolderOf, Samples, TensorBoard, Worker, Workload, check_ranks,
    train_arm, train_teacher,
};

/// One rank's side of a run. The first one alone writes and talks.
pub(crate) fn distill<W: Shown>(
    args: &Args,
    recipe: RecipeOf<W>,
    (ranks, worker): (&Ranks, Worker),
    started: Instant,
) -> Result<()> {
    let data = ranks.all_well(checked(args, &recipe, ranks))?;
    check_ranks(&recipe, &data, ranks, worker.commit.as_deref())?;
    // Once it is known that all have the same device in mind.
    let ranks = &recipe.training.device.joins(ranks.clone())?;
    let out = args.folder(&recipe);
    let run = folder(args, recipe, &out, ranks)?.with_worker(worker).with_ranks(ranks.clone());
    let training = &run.recipe().training;
    let progress = ranks.leads().then(Progress::new);
    if let Some(progress) = &progress {
        progress.line(&format!(
            "{}\n{} ranks, each with its part of the {} images of a step; the learning rate is the recipe's, {}",
            summary(run.recipe(), &data, &out),
            ranks.size(),
            training.effective_batch(),
            training.learning_rate
        ));
    }
    let part = Part { run: &run, data: &data, ranks, progress: progress.as_ref() };
    let teacher = &run.recipe().teacher;
    let teacher = part.train(TEACHER, (teacher.steps, teacher.batch), |observer| {
        let report = train_teacher(&run, &data, observer)?;
        Ok((test_score(&report.metrics), report))
    })?;
    for arm in &run.recipe().arms {
        part.train(arm, (training.steps, training.effective_batch()), |observer| {
            let report = train_arm(&run, &data, arm, observer)?;
            Ok((test_score(&report.metrics), ()))
        })?;
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
    match made {
        Some(run) => Ok(run),
        None => RunFolderOf::open(out),
    }
}

/// What parts are trained with.
struct Part<'a, W: Workload> {
    run: &'a RunFolderOf<W>,
    data: &'a W::Data,
    ranks: &'a Ranks,
    progress: Option<&'a Progress>,
}

impl<W: Workload> Part<'_, W> {
    /// Trains one part of `(steps, images a step)`; the first rank shows it.
    fn train<T>(
        &self,
        name: &str,
        (steps, batch): (u64, usize),
        train: impl FnOnce(&mut dyn FnMut(&Event) -> Result<()>) -> Result<(String, T)>,
    ) -> Result<T> {
        let Some(progress) = self.progress else {
            let (_, result) = train(&mut |_| Ok(()))?;
            self.skipped()?;
            return Ok(result);
        };
        say_where_from(self.run, name, name, progress)?;
        let mut shown = progress.part(name, steps, batch);
        let mut board = TensorBoard::create(&self.run.path("tensorboard").join(name))?;
        let mut fault = None;
        let (score, result) = train(&mut |event| {
            shown.show(event);
            // The first failed write is told at the end; training goes on.
            if fault.is_none() {
                fault = board.write(event).err();
            }
            Ok(())
        })?;
        let skipped = self.skipped()?;
        if let Some(first) = skipped.first() {
            let n = skipped.len();
            progress.line(&format!(
                "{name:>16} warning: {n} unreadable images passed over, the first is {first}"
            ));
        }
        shown.finish(&score);
        fault.map_or(Ok(result), Err)
    }

    /// Images that any rank has passed over.
    fn skipped(&self) -> Result<Vec<String>> {
        let own = serde_json::to_vec(&self.data.skipped()).map_err(Error::wrap)?;
        let mut all = Vec::new();
        for names in self.ranks.gather(&own)? {
            all.extend(serde_json::from_slice::<Vec<String>>(&names).map_err(Error::wrap)?);
        }
        all.sort();
        all.dedup();
        Ok(all)
    }
}
