//! The Markdown of a grid: for a page, a pull request or a terminal.

use crate::grid::{Grid, Pair};
use crate::summary::Summary;
use std::collections::{BTreeMap, BTreeSet};
use vkd_train::ArmReport;

/// How a metric is written.
#[derive(Clone, Copy)]
pub(crate) struct Metric {
    /// Its key.
    pub(crate) key: &'static str,
    /// Its heading, with the unit.
    pub(crate) name: &'static str,
    /// What it measures, of which images apart.
    pub(crate) what: &'static str,
    /// Whether less is better.
    pub(crate) less: bool,
    factor: f64,
    digits: usize,
}

const fn percent(key: &'static str, name: &'static str, what: &'static str) -> Metric {
    Metric { key, name, what, less: false, factor: 100., digits: 2 }
}

/// A number without a unit, called by its name.
const fn number(key: &'static str, name: &'static str, less: bool, digits: usize) -> Metric {
    Metric { key, name, what: name, less, factor: 1., digits }
}

/// What is shown of the metrics that results have, the main one first.
const METRICS: [Metric; 19] = [
    percent("accuracy", "test accuracy (%)", "accuracy"),
    percent("ap", "test AP (%)", "AP"),
    Metric { name: "test Fréchet distance", ..number("frechet", "Fréchet distance", true, 2) },
    percent("validation_accuracy", "validation (%)", "accuracy"),
    percent("validation_ap", "validation (%)", "AP"),
    Metric { name: "validation", ..number("validation_frechet", "Fréchet distance", true, 2) },
    number("nll", "negative log likelihood", true, 3),
    Metric {
        less: true,
        ..percent("calibration_error", "calibration error (%)", "calibration error")
    },
    percent("ap50", "AP50 (%)", "AP50"),
    percent("ap75", "AP75 (%)", "AP75"),
    percent("ap_small", "AP small (%)", "AP small"),
    percent("ar100", "AR100 (%)", "AR100"),
    number("kernel", "kernel distance", true, 4),
    percent("coverage", "coverage (%)", "coverage"),
    percent("recall", "recall (%)", "recall"),
    percent("precision", "precision (%)", "precision"),
    number("density", "density", false, 3),
    percent("recognised", "recognised (%)", "share recognised"),
    number("inception_score", "inception score", false, 2),
];

impl Metric {
    /// The main one of some scores: accuracy, where there is none of the known ones.
    pub(crate) fn main(scores: &BTreeMap<String, f64>) -> Self {
        let of_test = METRICS.into_iter().filter(|m| !m.key.starts_with("validation_"));
        of_test.into_iter().find(|m| scores.contains_key(m.key)).unwrap_or(METRICS[0])
    }

    /// The key of the same metric on the validation images.
    pub(crate) fn validation(self) -> String {
        format!("validation_{}", self.key)
    }

    /// Whether it is a share, written in percent.
    pub(crate) fn is_share(self) -> bool {
        self.factor == 100.
    }

    /// `%` for a share.
    pub(crate) fn unit(self) -> &'static str {
        if self.is_share() { "%" } else { "" }
    }

    /// A value in the metric's unit.
    pub(crate) fn in_unit(self, value: f64) -> f64 {
        value * self.factor
    }

    /// A value without its unit; a dash for none.
    pub(crate) fn plain(self, value: f64) -> String {
        match value.is_finite() {
            true => format!("{:.*}", self.digits, self.in_unit(value)),
            false => "–".to_owned(),
        }
    }

    /// A value with its unit.
    pub(crate) fn whole(self, value: f64) -> String {
        match self.unit() {
            "" => self.plain(value),
            unit => format!("{} {unit}", self.plain(value)),
        }
    }

    /// A difference of two values with its sign and without a unit; a dash for none.
    pub(crate) fn gap(self, difference: f64) -> String {
        match difference.is_finite() {
            true => self.signed(self.in_unit(difference)),
            false => "–".to_owned(),
        }
    }

    /// The unit of a difference, in brackets behind a heading.
    pub(crate) fn gap_unit(self) -> &'static str {
        if self.is_share() { " (pp)" } else { "" }
    }

    /// The better of two values.
    pub(crate) fn better(self, a: f64, b: f64) -> f64 {
        if self.less { a.min(b) } else { a.max(b) }
    }

    /// The value of some scores; NaN where it is not among them.
    pub(crate) fn value(self, scores: &BTreeMap<String, f64>) -> f64 {
        scores.get(self.key).copied().unwrap_or(f64::NAN)
    }

    /// The values summed up in the metric's unit.
    pub(crate) fn summary(self, values: impl IntoIterator<Item = f64>) -> Option<Summary> {
        let values: Vec<f64> = values.into_iter().map(|v| v * self.factor).collect();
        Summary::of(&values)
    }

    /// `12.34 ± 0.56`; without the deviation where there is one value.
    pub(crate) fn show(self, summary: Option<Summary>) -> String {
        let Some(s) = summary else { return "–".to_owned() };
        let digits = self.digits;
        let spread = s.deviation.map(|d| format!(" ± {d:.digits$}")).unwrap_or_default();
        format!("{:.digits$}{spread}", s.mean)
    }

    /// A difference with its sign.
    pub(crate) fn signed(self, value: f64) -> String {
        let digits = self.digits;
        let text = format!("{:.digits$}", value.abs());
        match value {
            _ if text.bytes().all(|b| b == b'0' || b == b'.') => text,
            v if v < 0. => format!("−{text}"),
            _ => format!("+{text}"),
        }
    }

    /// The pairs of a grid in the metric's unit.
    pub(crate) fn pairs(self, grid: &Grid) -> Vec<Pair> {
        let scaled = |mut p: Pair| {
            // For the left one speaks a smaller distance.
            if self.less {
                p.counts.reverse();
            }
            Pair { difference: p.difference.times(self.factor), ..p }
        };
        grid.pairs(self.key).into_iter().map(scaled).collect()
    }

    /// The metrics that any result of the grid has.
    pub(crate) fn of(grid: &Grid) -> Vec<Self> {
        let has = |m: &Self| grid.arms.iter().any(|arm| !grid.values(arm, m.key).is_empty());
        METRICS.into_iter().filter(has).collect()
    }
}

/// The whole: facts, the arms, the pairs.
pub(crate) fn markdown(grid: &Grid) -> String {
    let metrics = Metric::of(grid);
    let mut text = format!("{}\n", facts(grid).join(" "));
    text += &format!("\n{}", arms(grid, &metrics));
    if let Some(main) = metrics.first() {
        let pairs = main.pairs(grid);
        if !pairs.is_empty() {
            text += &format!("\n{}", pairs_table(*main, &pairs));
        }
    }
    let residuals = grid.results().filter(|r| r.arm.name != "vkd-as-published");
    if let Some(r) = residuals.filter_map(|r| r.arm.projector_residual_max).reduce(f64::max) {
        let but = if grid.arms.iter().any(|a| a == "vkd-as-published") {
            " but `vkd-as-published`"
        } else {
            ""
        };
        text += &format!("\nLargest projector residual over all runs{but}: {r:.1e}.\n");
    }
    text
}

/// What was run, in sentences.
pub(crate) fn facts(grid: &Grid) -> Vec<String> {
    let Some(first) = grid.first() else { return Vec::new() };
    let seeds: Vec<String> = grid.seeds().iter().map(u64::to_string).collect();
    let mut facts = vec![format!(
        "Task {}, data set {}; n = {} (seed {}).",
        first.task,
        first.dataset,
        seeds.len(),
        seeds.join(", ")
    )];
    let ran = |show: &dyn Fn(&vkd_train::RunFacts) -> String| {
        let all: BTreeSet<String> =
            grid.results().filter_map(|r| r.run.as_ref()).map(show).collect();
        all.into_iter().collect::<Vec<_>>().join(" or ")
    };
    if grid.results().any(|r| r.run.is_some()) {
        facts.push(format!(
            "{} steps of {} images (effective batch), {} images seen; {} a run.",
            ran(&|f| f.steps.to_string()),
            ran(&|f| f.batch.to_string()),
            ran(&|f| f.images.to_string()),
            ran(&|f| {
                let own = match f.loader_threads {
                    0 => format!("{} thread", f.threads),
                    loader => format!("{} thread and {loader} to load images", f.threads),
                };
                match f.ranks {
                    1 => own,
                    ranks => format!("{ranks} ranks of {own}"),
                }
            })
        ));
        let commits =
            ran(&|f| f.commit.clone().unwrap_or_else(|| format!("of version {}", f.version)));
        let place = |f: &vkd_train::RunFacts| match f.device.as_str() {
            "cpu" => f.machine.clone(),
            device => format!("{} with {device}", f.machine),
        };
        facts.push(format!("Commit {commits}; {}.", ran(&place)));
    }
    if first.task == "generation" {
        facts.push(measured(&first.arm));
    }
    facts
}

/// What the scores of generators are of, which all arms of a comparison have alike.
pub(crate) fn measured(arm: &ArmReport) -> String {
    match &arm.extractor {
        None => JUDGED.to_owned(),
        Some(extractor) => format!(
            "Distances, coverage, recall, precision and density are of the pooled features of {extractor}, and the inception score is of its \
             classes; recognised is the share of samples that the judge, a classifier of all training images that no generator and no \
             discriminator sees, gives the class that they were made for. They compare with scores of the same weights, as many samples and \
             the same real images. Less is better of distances."
        ),
    }
}

const JUDGED: &str = "Distances, coverage, recall, precision and density are of the pooled features of the judge, a classifier of all \
     training images that no generator and no discriminator sees, and recognised is the share of samples that it gives their class: they \
     compare within this table, and with no published FID. Less is better of distances.";

fn arms(grid: &Grid, metrics: &[Metric]) -> String {
    let spread = if grid.seeds().len() > 1 { ", mean ± sd" } else { "" };
    let mut header = vec!["arm".to_owned(), "loss terms".to_owned(), "labels".to_owned()];
    header.extend(metrics.iter().map(|m| format!("{}{spread}", m.name)));
    header.extend(["residual".to_owned(), "s a run".to_owned()]);
    let mut teacher = vec!["teacher".to_owned(), "–".to_owned(), "–".to_owned()];
    teacher.extend(metrics.iter().map(|m| m.show(m.summary(grid.teacher(m.key).into_values()))));
    teacher.extend(["–".to_owned(), "–".to_owned()]);
    let mut rows = vec![header, teacher];
    for arm in &grid.arms {
        let Some(any) = grid.of(arm).next() else { continue };
        let mut row = vec![grid.label(arm), terms(&any.arm.terms), any.arm.labels.to_string()];
        row.extend(
            metrics.iter().map(|m| m.show(m.summary(grid.values(arm, m.key).into_values()))),
        );
        row.push(grid.residual(arm).map_or("–".to_owned(), |r| format!("{r:.1e}")));
        let seconds: Vec<f64> = grid.of(arm).map(|r| r.arm.seconds).collect();
        row.push(Summary::of(&seconds).map_or("–".to_owned(), |s| format!("{:.0}", s.mean)));
        rows.push(row);
    }
    table(&rows, 2)
}

/// The weighted terms as a sum, the label first.
pub(crate) fn terms(weights: &BTreeMap<String, f64>) -> String {
    let mut terms: Vec<(&String, &f64)> = weights.iter().collect();
    terms.sort_by_key(|(name, _)| (*name != "label", *name != "logits"));
    let term = |(name, weight): (&String, &f64)| match weight {
        1. => name.clone(),
        w => format!("{w}·{name}"),
    };
    terms.into_iter().map(term).collect::<Vec<_>>().join(" + ")
}

fn pairs_table(metric: Metric, pairs: &[Pair]) -> String {
    let heading = format!("mean difference, {}", metric.name);
    let header = ["pair", &heading, "sd", "95 % interval", "n", "seeds for / equal / against"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for pair in pairs {
        let d = pair.difference;
        rows.push(vec![
            format!("{} − {}", pair.left, pair.right),
            metric.signed(d.mean),
            d.deviation.map_or("–".to_owned(), |sd| format!("{sd:.*}", metric.digits)),
            interval(metric, d),
            d.n.to_string(),
            pair.counts.map(|count| count.to_string()).join(" / "),
        ]);
    }
    table(&rows, 1)
}

/// The 95 % interval, low to high.
pub(crate) fn interval(metric: Metric, summary: Summary) -> String {
    summary.interval.map_or("–".to_owned(), |(low, high)| {
        format!("{} to {}", metric.signed(low), metric.signed(high))
    })
}

/// A Markdown table of aligned columns; those from `first_number` on are set to the right.
fn table(cells: &[Vec<String>], first_number: usize) -> String {
    let columns = cells.first().map_or(0, Vec::len);
    let length = |cell: &String| cell.chars().count();
    let widths: Vec<usize> = (0..columns)
        .map(|column| cells.iter().map(|row| length(&row[column])).max().unwrap_or(0).max(3))
        .collect();
    let mut text = String::new();
    for (index, row) in cells.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += &match column >= first_number {
                true => format!("| {cell:>width$} "),
                false => format!("| {cell:<width$} "),
            };
        }
        text += "|\n";
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let number = column >= first_number;
                let dashes = "-".repeat(width - usize::from(number));
                text += &format!("| {dashes}{} ", if number { ":" } else { "" });
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::tests::result;
    use vkd_train::ArmResult;

    fn text(results: Vec<ArmResult>) -> String {
        markdown(&Grid::new(results, None, None).unwrap())
    }

    #[test]
    fn three_seeds_give_known_numbers() {
        // Differences 2, 1 and 3 points: mean 2, sd 1, half width 4.3027 / sqrt(3).
        let scores = [(2, 0.93, 0.90), (0, 0.90, 0.88), (1, 0.89, 0.88)];
        let all = scores
            .iter()
            .flat_map(|&(seed, vkd, none)| [result("vkd", seed, vkd), result("none", seed, none)]);
        let text = text(all.collect());
        for part in [
            "n = 3 (seed 0, 1, 2)",
            "20 steps of 100 images (effective batch), 2000 images seen; 1 thread a run.",
            "Commit abc; A 1 GHz, 2 cores.",
            "95.00 ± 0.00",
            "90.67 ± 2.08",
            "label + 2.5·feature.tokens",
            "| vkd − none |",
            "+2.00 | 1.00 | −0.48 to +4.48 |   3 |",
            "3 / 0 / 0 |",
            "over all runs: 3.0e-8.",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn one_seed_claims_no_spread() {
        let text = text(vec![result("vkd", 0, 0.5), result("none", 0, 0.5)]);
        assert!(text.contains("n = 1") && !text.contains('±'), "{text}");
        assert!(text.contains(" 0.00 |   – |") && text.contains("0 / 1 / 0"), "{text}");
    }

    #[test]
    fn tables_align() {
        let cells =
            [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "±1".to_owned()]];
        assert_eq!(table(&cells, 1), "| a    |   b |\n| ---- | --: |\n| long |  ±1 |\n");
    }
}
