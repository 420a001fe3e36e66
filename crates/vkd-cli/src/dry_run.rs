//! `vkd distill --dry-run`: what would be trained, checked by building it; nothing is written.

use crate::machine::kibibytes;
use crate::report::markdown::terms;
use candle_core::Result;
use std::path::Path;
use vkd_train::{Plan, RecipeOf, Samples, Workload, plan};

/// Checks a recipe and says what it costs; `reused` where its run lies in `out` already.
pub(crate) fn run<W: Workload>(
    recipe: &RecipeOf<W>,
    data: &W::Data,
    out: &Path,
    reused: bool,
) -> Result<()> {
    let peak = || kibibytes("/proc/self/status", "VmHWM");
    let before = peak();
    let plan = plan(recipe, data)?;
    let (training, after) = (&recipe.training, peak());
    let (batch, images) =
        (training.effective_batch(), training.images().saturating_mul(plan.rounds));
    let [train, validation, test] = data.counts();
    let mut text = format!(
        "{}: {train} training, {validation} validation, {test} test images, {} classes\n\
         teacher: {} parameters, {} multiply-adds an image, {}\n\
         student: {} multiply-adds an image; {} steps of {} images, {images} in all, {:.1} times the training images\n",
        data.name(),
        data.class_names().len(),
        plan.teacher_parameters,
        count(plan.teacher_multiply_adds as f64),
        match &recipe.teacher.checkpoint {
            Some(path) => format!("from {}, which fits", path.display()),
            None => format!("{} steps of {} images", recipe.teacher.steps, recipe.teacher.batch),
        },
        count(plan.student_multiply_adds as f64),
        training.steps,
        batch,
        images as f64 / train as f64,
    );
    let scale = training.batch as f64 / plan.trial_images as f64;
    text.push_str(&format!(
        "\n{:<18} {:>6} {:>10} {:>10} {:>10} {:>9}  {}\n",
        "arm", "labels", "student", "projector", "state", "s a run", "loss at first"
    ));
    for arm in &plan.arms {
        let micro_batches = (training.steps * training.accumulate) as f64;
        let seconds = arm.trial_seconds * scale * micro_batches;
        text.push_str(&format!(
            "{:<18} {:>6} {:>10} {:>10} {:>10} {:>9}  {:.3} = {}\n",
            arm.name,
            arm.labels,
            arm.student_parameters,
            arm.projector_parameters,
            bytes(arm.state_bytes as f64),
            format!("~{seconds:.0}"),
            arm.loss,
            terms(&arm.terms)
        ));
    }
    text.push_str(&format!(
        "\nstudent, projector: trainable values; state: variables, gradients and the optimiser's moments. Seconds are those of \
         one step of {} images here, scaled to {images}, and rough.\n",
        plan.trial_images
    ));
    text.push_str(&compute(recipe, &plan));
    if let Some(cache) = &plan.cache {
        text.push_str(&format!(
            "teacher cache: {} images in {} looks, {} bytes each: {} of at most {} MiB, on disk and in each process\n",
            cache.images,
            cache.looks,
            cache.row_bytes,
            bytes(cache.bytes() as f64),
            cache.limit_mib
        ));
    }
    if let (Some(before), Some(after)) = (before, after) {
        let step = after.saturating_sub(before) as f64;
        text.push_str(&format!(
            "memory: about {} a process: {} before, {} for a step of {} images (state and one arm's activations), taken to grow \
             with the batch of {}\n",
            bytes(before as f64 + step * scale.max(1.)),
            bytes(before as f64),
            bytes(step),
            plan.trial_images,
            training.batch
        ));
    }
    text.push_str(&format!("{}\nnothing was written\n", place(out, reused)));
    crate::print(&text)
}

/// What the passes are computed in, and the memory that it takes.
fn compute<W: Workload>(recipe: &RecipeOf<W>, plan: &Plan) -> String {
    let (student, teacher) = (recipe.training.compute, recipe.teacher.compute);
    let copies = plan.arms.iter().map(|arm| arm.compute_bytes).max().unwrap_or(0);
    let beside = match copies {
        0 => String::new(),
        copies => {
            format!(" (weights and gradients of {} beside the f32 ones)", bytes(copies as f64))
        }
    };
    format!(
        "compute: on {}, the student trains in {}{beside}, the teacher answers in {} (weights of {})\n",
        recipe.training.device,
        student.name(),
        teacher.name(),
        bytes(plan.teacher_bytes as f64)
    )
}

/// What would become of the folder.
fn place(out: &Path, reused: bool) -> String {
    let name = out.display();
    let filled = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    match (reused, filled) {
        (true, _) => {
            format!("output: {name}, a run of this recipe: finished parts would be reused")
        }
        (false, true) => format!("output: {name}, whose run would be started anew"),
        (false, false) => format!("output: {name}, a new folder"),
    }
}

/// A large number for people.
fn count(n: f64) -> String {
    match n {
        n if n < 1e6 => format!("{:.1} k", n / 1e3),
        n if n < 1e9 => format!("{:.1} M", n / 1e6),
        n => format!("{:.2} G", n / 1e9),
    }
}

/// A number of bytes for people.
pub(crate) fn bytes(n: f64) -> String {
    match n {
        n if n < 1e6 => format!("{:.1} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.1} GB", n / 1e9),
    }
}
