//! Progress: bars on a terminal, plain lines elsewhere.

use crate::report::count;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Instant;
use vkd_train::{Event, EventKind, Validation};

/// Shows the parts of a run side by side.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
}

/// One part: the teacher or an arm.
pub(crate) struct Part {
    bar: Option<ProgressBar>,
    name: String,
    total: u64,
    /// Images a step.
    batch: usize,
    /// When the first event came, and its step: a part that goes on does not begin at zero.
    begun: Option<(Instant, u64)>,
    validation: Option<f64>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// A part of `total` steps of `batch` images.
    pub(crate) fn part(&self, name: &str, total: u64, batch: usize) -> Part {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(total));
            // The template is a constant of ours; the default is a bar as well.
            if let Ok(style) =
                ProgressStyle::with_template("{prefix:>16} {bar:24} {pos:>5}/{len} {eta:>4}  {msg}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar.tick();
            bar
        });
        Part { bar, name: name.to_owned(), total, batch, begun: None, validation: None }
    }

    /// A line of its own, above the bars.
    pub(crate) fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(text)),
            None => crate::note(text),
        }
    }
}

impl Part {
    /// Shows an event.
    pub(crate) fn show(&mut self, event: &Event) {
        let rate = self.rate(event.step);
        match &event.kind {
            EventKind::Step { loss, terms, .. } => {
                if let Some(bar) = &self.bar {
                    let terms: Vec<String> =
                        terms.iter().map(|(name, v)| format!("{name} {v:.3}")).collect();
                    let validation =
                        self.validation.map(|v| format!("  validation {v:.3}")).unwrap_or_default();
                    bar.set_position(event.step + 1);
                    bar.set_message(format!(
                        "{rate}loss {loss:.3} ({}){validation}",
                        terms.join(", ")
                    ));
                }
            }
            // For the log and the report.
            EventKind::Geometry { .. } => {}
            EventKind::Validation(Validation { value, .. }) => {
                self.validation = Some(*value);
                match &self.bar {
                    Some(bar) => bar.set_position(event.step),
                    None => crate::note(&format!(
                        "{:>16} {:>5}/{}  {rate}validation {value:.3}",
                        self.name, event.step, self.total
                    )),
                }
            }
        }
    }

    /// `1,234 images/s  `, nothing at first.
    fn rate(&mut self, step: u64) -> String {
        let bar = self.bar.as_ref();
        let (start, first) = *self.begun.get_or_insert_with(|| {
            // The time left counts from here, not from the steps that an earlier start has done.
            bar.inspect(|bar| bar.set_position(step)).inspect(|bar| bar.reset_eta());
            (Instant::now(), step)
        });
        let images = step.saturating_sub(first) as f64 * self.batch as f64;
        let seconds = start.elapsed().as_secs_f64();
        match images > 0. && seconds > 0. {
            true => format!("{} images/s  ", count((images / seconds).round() as u64)),
            false => String::new(),
        }
    }

    /// Ends the part with a closing remark.
    pub(crate) fn finish(self, remark: &str) {
        match self.bar {
            Some(bar) => bar.abandon_with_message(remark.to_owned()),
            None => crate::note(&format!("{:>16} {remark}", self.name)),
        }
    }
}
