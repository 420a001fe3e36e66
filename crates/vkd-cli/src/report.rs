//! `report.html`: one page about a run, complete in itself; [`grid`] is the one about a comparison.
//!
//! Invariants: no script, no font and no picture from elsewhere; every string that comes from outside passes
//! [`html::escape`]; a value that is not finite is left out of the plots and shown as a dash in the table.

mod arms;
mod axis;
mod curves;
pub(crate) mod grid;
mod html;
pub(crate) mod markdown;
mod picture;
mod plot;
pub(crate) mod scenes;
#[cfg(test)]
mod tests;

use crate::shown::Shown;
use candle_core::Result;
pub(crate) use html::count;
pub(crate) use html::escape;
use html::seconds;
use markdown::Metric;
use std::collections::BTreeMap;
use vkd_models::write_atomically;
use vkd_train::{
    ArmConfig, DistillConfig, Event, RecipeOf, Report, RunFolderOf, Samples, TrainingConfig,
    Workload, csv,
};

const STYLE: &str = include_str!("report/report.css");

/// Writes `report.html` and `metrics.csv` into the run folder.
pub(crate) fn write<W: Shown>(run: &RunFolderOf<W>, report: &Report, data: &W::Data) -> Result<()> {
    let events = run.events()?;
    write_atomically(&run.path("metrics.csv"), csv(&events).as_bytes())?;
    let mut page = Page::new(run.recipe(), report, &events, data.counts())?;
    let students = run.recipe().arms.iter().map(|arm| {
        let path = run.arm_path(arm, "student.safetensors");
        (arm.clone(), path)
    });
    page.pictures = W::pictures(run.recipe(), &students.collect::<Vec<_>>(), data)?;
    Ok(write_atomically(&run.path("report.html"), page.html().as_bytes())?)
}

/// What the page is made of.
struct Page<'a> {
    report: &'a Report,
    training: &'a TrainingConfig,
    distill: &'a DistillConfig,
    arms: &'a BTreeMap<String, ArmConfig>,
    /// Whether the teacher was taken from a file.
    loaded: bool,
    /// The resolved recipe.
    toml: String,
    events: &'a [Event],
    /// Numbers of training, validation and test images.
    counts: [usize; 3],
    /// A section of what the task has to show; empty for none.
    pictures: String,
}

impl<'a> Page<'a> {
    fn new<W: Workload>(
        recipe: &'a RecipeOf<W>,
        report: &'a Report,
        events: &'a [Event],
        counts: [usize; 3],
    ) -> Result<Self> {
        Ok(Self {
            report,
            training: &recipe.training,
            distill: &recipe.distill,
            arms: &recipe.arm,
            loaded: recipe.teacher.checkpoint.is_some(),
            toml: recipe.to_toml()?,
            events,
            counts,
            pictures: String::new(),
        })
    }

    /// The main score.
    fn metric(&self) -> Metric {
        let arms = self.report.arms.first();
        Metric::main(arms.map_or(&self.report.teacher.metrics, |arm| &arm.metrics))
    }

    fn html(&self) -> String {
        let title = format!("{}, seed {}", self.report.recipe, self.report.seed);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>vkd: {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
             {}{}{}{}{}{}</main>\n</body>\n</html>\n",
            escape(&title),
            self.header(),
            arms::section(self),
            self.pictures,
            curves::section(self),
            self.reproduction(),
            footer(),
        )
    }

    fn header(&self) -> String {
        let report = self.report;
        let chips = [
            ("recipe", report.recipe.clone()),
            ("data", report.dataset.clone()),
            ("seed", report.seed.to_string()),
            ("vkd", report.version.clone()),
            ("last call took", format!("{} s", seconds(report.seconds))),
        ];
        let chips: String = chips
            .iter()
            .map(|(key, value)| {
                format!("<li><span>{}</span> {}</li>\n", escape(key), escape(value))
            })
            .collect();
        format!(
            "<header>\n<h1>Distillation report: {}</h1>\n<ul class=\"chips\">\n{chips}</ul>\n\
             <p class=\"lead\">{}</p>\n</header>\n",
            escape(&report.recipe),
            self.sentence()
        )
    }

    /// What was compared, in one sentence.
    fn sentence(&self) -> String {
        let steps = count(self.training.steps);
        let score = match self.counts[2] {
            0 => "there are no test images".to_owned(),
            n => format!("the scores are of {} test images that nothing else looked at", count(n)),
        };
        match self.report.arms.len() {
            1 => format!(
                "One way of training the student was run, {steps} steps of {} images, beside its teacher; {score}.",
                self.training.effective_batch()
            ),
            n => format!(
                "{} ways of training the same student were compared, each with {steps} steps of {} images, which differ \
                 in {}what they take from the teacher; {score}.",
                in_words(n),
                self.training.effective_batch(),
                if arms::one_budget(self) { "" } else { "how many labels they know and in " }
            ),
        }
    }

    fn reproduction(&self) -> String {
        let seed = self.report.seed;
        format!(
            "<section>\n<h2>Reproduce</h2>\n\
             <p>The file <code>recipe.toml</code> beside this page holds the recipe below. A recipe and a seed give the same \
             student on the same machine; in a folder that already holds the run, finished parts are reused instead of \
             trained again, so choose a new one:</p>\n\
             <pre>vkd distill recipe.toml --seed {seed} --out again</pre>\n\
             <h2>Recipe</h2>\n<pre>{}</pre>\n</section>\n",
            escape(&self.toml)
        )
    }
}

/// A small number at the start of a sentence.
fn in_words(n: usize) -> String {
    let words = ["No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"];
    words.get(n).map_or_else(|| n.to_string(), |w| (*w).to_owned())
}

fn footer() -> &'static str {
    "<footer>\n<p>Method: Miles, Elezi and Deng, <a href=\"https://arxiv.org/abs/2403.06213\">V<sub>k</sub>D: Improving \
     Knowledge Distillation using Orthogonal Projections</a>, CVPR 2024. Numbers: <code>report.json</code> and \
     <code>metrics.jsonl</code> beside this page.</p>\n</footer>\n"
}
