//! The summary of one data set: every seed's report, every arm, and paired differences.

use super::report::Report;
use super::{markdown_table, stats};
use crate::Result;

/// Arms that answer a question together: the first minus the second, on the same seed.
const PAIRS: [(&str, &str); 6] = [
    ("vkd", "linear"),
    ("vkd", "logits"),
    ("linear", "logits"),
    ("logits", "none"),
    ("vkd", "none"),
    ("vkd", "none-all-labels"),
];

/// The Markdown of one data set.
pub(super) fn render(mut reports: Vec<Report>) -> Result<String> {
    reports.sort_by_key(|report| report.seed);
    let first = reports.first().ok_or("no report")?;
    for pair in reports.windows(2) {
        if pair[0].seed == pair[1].seed {
            return Err(format!("seed {} is there twice", pair[0].seed));
        }
    }
    if let Some(other) = reports.iter().find(|report| report.design() != first.design()) {
        let (a, b) = (first.seed, other.seed);
        return Err(format!("seeds {a} and {b} differ in task, data set, arms, terms or metrics"));
    }
    let seeds: Vec<String> = reports.iter().map(|report| report.seed.to_string()).collect();
    let seconds: Vec<f64> = reports.iter().map(|report| report.seconds).collect();
    let mut text = format!(
        "Task {}, data set {}; n = {} (seed {}); {:.0} s a run, all arms.\n",
        first.task,
        first.dataset,
        reports.len(),
        seeds.join(", "),
        stats::mean(&seconds),
    );
    for metric in first.arms[0].metrics.keys() {
        let scale = Scale::of(metric);
        text += &format!("\n{}", arms_table(&reports, metric, scale));
        if let Some(pairs) = pairs_table(&reports, metric, scale) {
            text += &format!("\n{pairs}");
        }
    }
    let residuals = reports.iter().flat_map(|report| &report.arms).filter_map(|arm| arm.residual);
    if let Some(largest) = residuals.reduce(f64::max) {
        text += &format!("\nLargest projector residual over all runs: {largest:.1e}.\n");
    }
    Ok(text)
}

/// How a metric is written: accuracies as per cent, the rest as they are.
#[derive(Clone, Copy)]
struct Scale {
    factor: f64,
    unit: &'static str,
    step: &'static str,
    digits: usize,
}

impl Scale {
    fn of(metric: &str) -> Self {
        match metric {
            "accuracy" => Self { factor: 100.0, unit: ", %", step: ", points", digits: 2 },
            _ => Self { factor: 1.0, unit: "", step: "", digits: 4 },
        }
    }

    /// `12.34 ± 0.56`; without the deviation where there is one value.
    fn summary(self, values: &[f64]) -> String {
        let mean = format!("{:.*}", self.digits, stats::mean(values));
        match stats::deviation(values) {
            Some(deviation) => format!("{mean} ± {deviation:.*}", self.digits),
            None => mean,
        }
    }
}

/// One arm's metric, a value a report.
fn values(reports: &[Report], arm: &str, metric: &str, scale: Scale) -> Option<Vec<f64>> {
    let of = |report: &Report| {
        let arm = report.arms.iter().find(|candidate| candidate.name == arm)?;
        Some(arm.metrics.get(metric)? * scale.factor)
    };
    reports.iter().map(of).collect()
}

fn arms_table(reports: &[Report], metric: &str, scale: Scale) -> String {
    let spread = if reports.len() > 1 { "mean ± sd" } else { "n = 1" };
    let header = ["arm", "loss terms", &format!("{metric}{} ({spread})", scale.unit), "residual"];
    let mut cells = vec![header.map(str::to_owned).to_vec()];
    let teacher: Option<Vec<f64>> = reports
        .iter()
        .map(|report| report.teacher.get(metric).map(|value| value * scale.factor))
        .collect();
    if let Some(teacher) = teacher {
        let row = ["teacher", "-", &scale.summary(&teacher), "-"];
        cells.push(row.map(str::to_owned).to_vec());
    }
    for (index, arm) in reports[0].arms.iter().enumerate() {
        let Some(values) = values(reports, &arm.name, metric, scale) else { continue };
        let terms: Vec<String> =
            arm.terms.iter().map(|(term, weight)| format!("{term} × {weight}")).collect();
        let residual = reports.iter().filter_map(|r| r.arms[index].residual).reduce(f64::max);
        cells.push(vec![
            arm.name.clone(),
            if terms.is_empty() { "-".to_owned() } else { terms.join(", ") },
            scale.summary(&values),
            residual.map_or("-".to_owned(), |residual| format!("{residual:.1e}")),
        ]);
    }
    markdown_table(&cells, 2)
}

/// Differences on the same seed; `None` where no pair was run.
fn pairs_table(reports: &[Report], metric: &str, scale: Scale) -> Option<String> {
    let difference = format!("mean difference{}", scale.step);
    let header = ["pair", &difference, "sd", "95 % interval", "n", "seeds for / equal / against"];
    let mut cells = vec![header.map(str::to_owned).to_vec()];
    for (left, right) in PAIRS {
        let both = values(reports, left, metric, scale).zip(values(reports, right, metric, scale));
        let Some((left_values, right_values)) = both else { continue };
        let differences: Vec<f64> =
            left_values.iter().zip(&right_values).map(|(left, right)| left - right).collect();
        // Counts come from the numbers as they are, so an equal pair is equal to the last bit.
        let count = |sign: fn(&f64, &f64) -> bool| {
            left_values.iter().zip(&right_values).filter(|(left, right)| sign(left, right)).count()
        };
        let counts = [count(|l, r| l > r), count(|l, r| l == r), count(|l, r| l < r)];
        let digits = scale.digits;
        let interval = stats::interval(&differences);
        cells.push(vec![
            format!("{left} − {right}"),
            format!("{:+.digits$}", stats::mean(&differences)),
            stats::deviation(&differences).map_or("-".to_owned(), |sd| format!("{sd:.digits$}")),
            interval.map_or("-".to_owned(), |(low, high)| {
                format!("{low:+.digits$} to {high:+.digits$}")
            }),
            differences.len().to_string(),
            counts.map(|count| count.to_string()).join(" / "),
        ]);
    }
    (cells.len() > 1).then(|| markdown_table(&cells, 1))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::render;
    use crate::docs::report::{Report, tests::report};

    fn summary(values: &[Value]) -> crate::Result<String> {
        render(values.iter().map(|value| Report::new(value).unwrap()).collect())
    }

    #[test]
    fn three_seeds_give_known_numbers() {
        // Differences 2, 1 and 3 points: mean 2, sd 1, half width 4.3027 / sqrt(3).
        let text = summary(&[report(2, 0.93, 0.90), report(0, 0.90, 0.88), report(1, 0.89, 0.88)])
            .unwrap();
        for part in [
            "n = 3 (seed 0, 1, 2)",
            "10 s a run",
            "95.00 ± 0.00",
            "90.67 ± 2.08",
            "feature × 2.5, task × 1",
            "vkd − none",
            "+2.00",
            "| 1.00 |",
            "-0.48 to +4.48",
            "3 / 0 / 0",
            "all runs: 3.0e-7.",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("linear"), "{text}");
    }

    #[test]
    fn one_seed_claims_no_spread() {
        let text = summary(&[report(0, 0.5, 0.5)]).unwrap();
        assert!(text.contains("n = 1") && !text.contains('±'), "{text}");
        assert!(text.contains("+0.00") && text.contains("0 / 1 / 0"), "{text}");
    }

    #[test]
    fn reports_that_can_not_be_averaged_fail() {
        let again = [report(0, 0.5, 0.5), report(0, 0.5, 0.5)];
        assert!(summary(&again).unwrap_err().contains("twice"));
        let mut other = report(1, 0.5, 0.5);
        other["arms"][1]["terms"]["feature"] = json!(1.0);
        assert!(summary(&[report(0, 0.5, 0.5), other]).unwrap_err().contains("differ"));
    }
}
