//! The plots over the steps.

use super::Page;
use super::html::{Pen, escape};
use super::plot::{Level, Line, Plot};
use std::collections::BTreeSet;
use vkd_train::{EventKind, LossKind};

/// What `max|WᵀW − I|` may be in f32, at every size.
pub(super) const LAW: f64 = 1e-6;

pub(super) fn section(page: &Page) -> String {
    let mut figures = validation(page);
    for term in terms(page) {
        figures.push_str(&loss(page, &term));
    }
    figures.push_str(&learning_rate(page));
    figures.push_str(&residual(page));
    for name in geometries(page) {
        figures.push_str(&geometry(page, &name));
    }
    format!("<section>\n<h2>Curves</h2>\n<div class=\"figures\">\n{figures}</div>\n</section>\n")
}

fn validation(page: &Page) -> String {
    let main = page.metric();
    let teacher = page.report.teacher.metrics.get(&main.validation()).copied();
    let levels = teacher.filter(|v| v.is_finite()).map(|v| Level {
        name: format!("teacher, finished ({:.1} %)", main.in_unit(v)),
        value: main.in_unit(v),
    });
    let unit = if main.is_share() { " (%)" } else { "" };
    Plot {
        title: &format!("Validation {}", main.what),
        unit: &format!("{} on {} validation images{unit}", main.what, page.counts[1]),
        log: false,
        lines: lines(page, |kind| match kind {
            EventKind::Validation(score) => Some(main.in_unit(score.value)),
            EventKind::Step { .. } | EventKind::Geometry { .. } => None,
        }),
        levels: levels.into_iter().collect(),
        note: "",
    }
    .figure()
}

fn loss(page: &Page, term: &str) -> String {
    let (title, unit, note) = describe(page, term);
    let lines = lines(page, |kind| match kind {
        EventKind::Step { terms, .. } => terms.get(term).copied(),
        EventKind::Validation(_) | EventKind::Geometry { .. } => None,
    });
    let positive = || lines.iter().flat_map(|l| &l.points).map(|p| p.1).filter(|v| *v > 0.);
    let (low, high) = (positive().fold(f64::MAX, f64::min), positive().fold(0., f64::max));
    let negative = lines.iter().flat_map(|l| &l.points).any(|p| p.1 < 0.);
    let log = !negative && high > 20. * low;
    Plot { title: &title, unit: &unit, log, lines, levels: vec![], note: &note }.figure()
}

/// Title, unit and note of a loss term.
fn describe(page: &Page, term: &str) -> (String, String, String) {
    let distill = page.distill;
    let batch = "One training batch a point, before weighting.";
    let detector = match term {
        "class" => Some(("Loss on the classes", "focal loss an object (nats)")),
        "giou" => Some(("Loss on the boxes: overlap", "1 − generalised IoU")),
        "l1" => Some(("Loss on the boxes: distance", "L1 an object, of the image's size")),
        "centerness" => Some(("Loss on the centerness", "cross entropy (nats)")),
        "feature" => {
            Some(("Loss on the teacher's features", "token matching, root of mean distances"))
        }
        "discriminator.hinge.real" => Some(("Discriminator on real images", "hinge loss")),
        "discriminator.hinge.generated" => {
            Some(("Discriminator on generated images", "hinge loss"))
        }
        "discriminator.lecam" => Some(("LeCam's regulariser", "squared distance of scores")),
        "generator.hinge" => Some(("Generator", "minus the mean score")),
        _ => match term.strip_prefix("discriminator.").and_then(|t| t.split_once('.')) {
            Some(("real", _)) => Some((
                "Discriminator's features and the teacher's: real images",
                "distance (no unit)",
            )),
            Some(("generated", _)) => Some((
                "Discriminator's features and the teacher's: generated images",
                "distance (no unit)",
            )),
            _ => None,
        },
    };
    if let Some((title, unit)) = detector {
        (title.to_owned(), unit.to_owned(), batch.to_owned())
    } else if term == "label" {
        (
            "Loss on the labels".to_owned(),
            "cross-entropy (nats)".to_owned(),
            format!("{batch} Over the labelled images of the batch only."),
        )
    } else if term == "logits" {
        (
            "Loss on the teacher's logits".to_owned(),
            match page.arms.values().any(|arm| arm.logit_loss.is_some()) {
                true => format!("the arm's loss on logits, T = {}", distill.temperature),
                false => format!("KL divergence × T² (nats), T = {}", distill.temperature),
            },
            batch.to_owned(),
        )
    } else if let Some(tap) = term.strip_prefix("feature.") {
        let unit = match distill.loss {
            LossKind::SmoothL1 => format!("smooth-L1, β = {} (no unit)", distill.beta),
            LossKind::Mse => "mean squared difference (no unit)".to_owned(),
            LossKind::Spkd | LossKind::Pkt | LossKind::RkdDistance | LossKind::RkdAngle => {
                "loss on relations (no unit)".to_owned()
            }
            LossKind::TokenMatching => "token matching (no unit)".to_owned(),
            LossKind::KdDlgan => "KD-DLGAN's distances (no unit)".to_owned(),
        };
        (format!("Loss on the teacher's features ({tap})"), unit, batch.to_owned())
    } else {
        (format!("Loss term {term}"), term.to_owned(), batch.to_owned())
    }
}

fn learning_rate(page: &Page) -> String {
    let mut lines = lines(page, |kind| match kind {
        EventKind::Step { learning_rate, .. } => Some(*learning_rate),
        EventKind::Validation(_) | EventKind::Geometry { .. } => None,
    });
    lines.retain(|l| !l.points.is_empty());
    let same = lines.len() > 1 && lines.iter().all(|l| l.points == lines[0].points);
    let note = if same { "The same for every arm." } else { "" };
    if same {
        lines.truncate(1);
        lines.iter_mut().for_each(|l| (l.name, l.pen) = ("", Pen::PLAIN));
    }
    let unit = "learning rate (per update)";
    Plot { title: "Learning rate", unit, log: false, lines, levels: vec![], note }.figure()
}

fn residual(page: &Page) -> String {
    let title = "Distance of the projector from orthogonality";
    let mut lines = lines(page, |kind| match kind {
        EventKind::Step { residual, .. } => *residual,
        EventKind::Validation(_) | EventKind::Geometry { .. } => None,
    });
    lines.retain(|l| !l.points.is_empty());
    if lines.is_empty() {
        let known = page.report.arms.iter().any(|a| a.projector_residual_max.is_some());
        let why = match known {
            true => "No step recorded it; the table has the largest value.",
            false => "No arm of this run has an orthogonal projector.",
        };
        return format!(
            "<figure>\n<figcaption>{}</figcaption>\n<p class=\"nothing\">{why}</p>\n</figure>\n",
            escape(title)
        );
    }
    let zero = lines.iter().flat_map(|l| &l.points).any(|p| p.1 == 0.);
    Plot {
        title,
        unit: "max|WᵀW − I| (no unit), measured in f64",
        log: true,
        lines,
        levels: vec![Level { name: "law for f32: 10⁻⁶".to_owned(), value: LAW }],
        note: if zero { "An exact 0 lies on the lower edge." } else { "" },
    }
    .figure()
}

/// Names of the recorded geometry, of any arm.
fn geometries(page: &Page) -> BTreeSet<String> {
    let names = page.events.iter().flat_map(|e| match &e.kind {
        EventKind::Geometry { geometry } => geometry.keys().cloned().collect(),
        EventKind::Step { .. } | EventKind::Validation(_) => vec![],
    });
    // The teacher stands still, so its rank is one number and no curve.
    names.filter(|name| !name.starts_with("teacher_rank.")).collect()
}

fn geometry(page: &Page, name: &str) -> String {
    let (kind, of) = name.split_once('.').unwrap_or((name, ""));
    let (title, unit) = match kind {
        "rank" => ("Effective rank of the student's features", "dimensions"),
        "cka" => {
            ("Alignment of student and teacher", "linear CKA (1: equal up to rotation and scale)")
        }
        "gradient" => ("Gradient of the weighted term", "Euclidean length over all variables"),
        _ => (kind, ""),
    };
    let lines = lines(page, |event| match event {
        EventKind::Geometry { geometry } => geometry.get(name).copied(),
        EventKind::Step { .. } | EventKind::Validation(_) => None,
    });
    let title = format!("{title} ({of})");
    Plot { title: &title, unit, log: false, lines, levels: vec![], note: "" }.figure()
}

/// One line an arm of what `value` finds in its events.
fn lines<'a>(page: &'a Page, value: impl Fn(&EventKind) -> Option<f64>) -> Vec<Line<'a>> {
    let arms = page.report.arms.iter().enumerate();
    arms.map(|(i, arm)| {
        let points = page
            .events
            .iter()
            .filter(|e| e.arm == arm.name)
            .filter_map(|e| Some((e.step as f64, value(&e.kind)?)))
            .filter(|(_, v)| v.is_finite())
            .collect();
        Line { name: &arm.name, pen: Pen::arm(i), points, band: Vec::new() }
    })
    .collect()
}

/// The terms that any arm has, the label's first.
fn terms(page: &Page) -> Vec<String> {
    let weighted = page.report.arms.iter().flat_map(|arm| arm.terms.keys());
    let recorded = page.events.iter().filter(|e| page.report.arms.iter().any(|a| a.name == e.arm));
    let recorded = recorded.flat_map(|e| match &e.kind {
        EventKind::Step { terms, .. } => terms.keys().collect(),
        EventKind::Validation(_) | EventKind::Geometry { .. } => vec![],
    });
    let all: BTreeSet<&String> = weighted.chain(recorded).collect();
    let mut all: Vec<String> = all.into_iter().cloned().collect();
    all.sort_by_key(|term| (term != "label", term != "logits"));
    all
}
