//! The scores: the teacher, the best arm with few labels, and a table of all.

use super::Page;
use super::curves::LAW;
use super::html::{Pen, count, escape, percent, scientific, seconds};
use super::markdown::{Metric, measured};
use std::collections::BTreeMap;
use vkd_train::{ArmReport, LabelBudget, ProjectorKind};

type Metrics = BTreeMap<String, f64>;

pub(super) fn section(page: &Page) -> String {
    let compared = compared(page);
    let best = best(page, &compared);
    // One arm alone is no choice, so nothing is marked.
    let marked = if compared.len() > 1 { best.as_slice() } else { &[] };
    let rows: String =
        page.report.arms.iter().enumerate().map(|(i, a)| row(page, i, a, marked)).collect();
    let metric = page.metric();
    let (name, gap, validation) = (metric.name, metric.gap_unit(), validation_name(page));
    format!(
        "<section>\n<div class=\"tiles\">\n{}{}</div>\n<h2>Arms</h2>\n<div class=\"scroll\">\n<table>\n<thead>\n\
         <tr><th>arm</th><th>labels</th><th>loss</th><th>parameters</th><th>{name}</th><th>vs none{gap}</th><th>vs teacher{gap}</th>\
         <th>{validation}</th><th>seconds</th><th>largest max|WᵀW−I|</th></tr>\n</thead>\n<tbody>\n{}{rows}</tbody>\n\
         </table>\n</div>\n{}</section>\n",
        teacher_tile(page),
        best_tile(page, &best, compared.len() > 1),
        teacher_row(page),
        notes(page, !marked.is_empty())
    )
}

/// The main score.
fn score(page: &Page, metrics: &Metrics) -> f64 {
    page.metric().value(metrics)
}

fn validation(page: &Page, metrics: &Metrics) -> f64 {
    metrics.get(&page.metric().validation()).copied().unwrap_or(f64::NAN)
}

/// The heading of the validation's column.
fn validation_name(page: &Page) -> &'static str {
    if page.metric().is_share() { "validation (%)" } else { "validation" }
}

/// Binomial standard error of an accuracy; NaN without images, and of scores that are no share of the images.
fn error(page: &Page, accuracy: f64) -> f64 {
    match page.metric().key {
        "accuracy" => (accuracy * (1. - accuracy) / page.counts[2] as f64).sqrt(),
        _ => f64::NAN,
    }
}

fn with_error(page: &Page, score: f64) -> String {
    match error(page, score) {
        _ if page.metric().key != "accuracy" => page.metric().plain(score),
        error => format!("{} <small>± {}</small>", percent(score), percent(error)),
    }
}

fn none(page: &Page) -> Option<f64> {
    page.report.arms.iter().find(|a| a.name == "none").map(|a| score(page, &a.metrics))
}

/// The arms that a choice is made of: those with few labels, or all where every arm has all labels.
fn compared<'a>(page: &'a Page) -> Vec<&'a ArmReport> {
    let budget = |arm: &ArmReport| page.arms.get(&arm.name).map(|a| a.labels);
    let arms = &page.report.arms;
    let wanted = match arms.iter().all(|arm| budget(arm) == Some(LabelBudget::All)) {
        true => LabelBudget::All,
        false => LabelBudget::Few,
    };
    let finite = |arm: &&ArmReport| score(page, &arm.metrics).is_finite();
    arms.iter().filter(|arm| budget(arm) == Some(wanted)).filter(finite).collect()
}

/// Whether all arms know the same labels.
pub(super) fn one_budget(page: &Page) -> bool {
    let mut budgets = page.report.arms.iter().map(|arm| page.arms.get(&arm.name).map(|a| a.labels));
    let first = budgets.next();
    budgets.all(|budget| Some(budget) == first)
}

/// Whether a choice is among arms with few labels, beside others.
fn few(page: &Page) -> bool {
    let few =
        |arm: &ArmReport| page.arms.get(&arm.name).is_some_and(|a| a.labels == LabelBudget::Few);
    !one_budget(page) && page.report.arms.iter().any(few)
}

/// Those of `arms` with the best score: several where they tie.
fn best<'a>(page: &Page, arms: &[&'a ArmReport]) -> Vec<&'a ArmReport> {
    let scores = arms.iter().map(|a| score(page, &a.metrics));
    let Some(best) = scores.reduce(|a, b| page.metric().better(a, b)) else { return Vec::new() };
    arms.iter().copied().filter(|a| score(page, &a.metrics) == best).collect()
}

/// Whether the teacher was taken from a file, so that this run knows nothing of its training.
fn loaded(page: &Page) -> bool {
    page.loaded
}

fn teacher_tile(page: &Page) -> String {
    let teacher = &page.report.teacher;
    let source = match loaded(page) {
        true => "loaded, not trained here".to_owned(),
        false => format!("trained with all labels in {} s", seconds(teacher.seconds)),
    };
    // A GAN's teacher has a score of another kind.
    let own = Metric::main(&teacher.metrics);
    let (test, unit) = match own.key == page.metric().key {
        true => (with_error(page, score(page, &teacher.metrics)), own.unit()),
        false => (own.plain(own.value(&teacher.metrics)), own.unit()),
    };
    let known = own.value(&teacher.metrics).is_finite();
    let what = if own.key == page.metric().key { "" } else { own.what };
    let validation = teacher.metrics.get(&own.validation()).copied().unwrap_or(f64::NAN);
    if !known {
        return format!(
            "<div class=\"tile\"><h3>Teacher</h3><p class=\"big\">–</p><p>no classifier, so without a score; {} parameters</p></div>\n",
            count(teacher.parameters)
        );
    }
    format!(
        "<div class=\"tile\"><h3>Teacher</h3><p class=\"big\">{test} {unit}</p><p>{what} on the test images, {} on the validation \
         images; {} parameters, {source}</p></div>\n",
        own.whole(validation),
        count(teacher.parameters)
    )
}

fn best_tile(page: &Page, best: &[&ArmReport], choice: bool) -> String {
    let Some(first) = best.first() else { return String::new() };
    let best_score = score(page, &first.metrics);
    let names: Vec<String> =
        best.iter().map(|a| format!("<strong>{}</strong>", escape(&a.name))).collect();
    let (metric, teacher) = (page.metric(), score(page, &page.report.teacher.metrics));
    let gap = |other: f64, whom: &str| {
        let pp = if metric.is_share() { " pp" } else { "" };
        format!("{}{pp} against {whom}", metric.gap(best_score - other))
    };
    let mut gaps = Vec::new();
    if let Some(none) = none(page).filter(|_| first.name != "none") {
        gaps.push(gap(none, "none"));
    }
    if teacher.is_finite() {
        gaps.push(gap(teacher, "the teacher"));
    }
    let (class, what) = if choice { (" best", "Best arm") } else { ("", "Arm") };
    let tie = if best.len() > 1 { ", tied" } else { "" };
    format!(
        "<div class=\"tile{class}\"><h3>{what}{}</h3><p class=\"big\">{} {}</p><p>{}{tie}{} {}</p></div>\n",
        match few(page) {
            true => format!(" with {} labels", count(first.labels)),
            false => String::new(),
        },
        with_error(page, best_score),
        metric.unit(),
        names.join(" and "),
        if gaps.is_empty() { "" } else { ":" },
        gaps.join(", ")
    )
}

fn teacher_row(page: &Page) -> String {
    let teacher = &page.report.teacher;
    let value = score(page, &teacher.metrics);
    let (labels, loss, time) = match loaded(page) {
        true => ("–", "loaded", "–".to_owned()),
        false => ("all", "label", seconds(teacher.seconds)),
    };
    let [none_name, teacher_name] = gap_names(page);
    let cells = [
        ("labels", labels.to_owned()),
        ("loss", loss.to_owned()),
        ("parameters", count(teacher.parameters)),
        (page.metric().name, bar(page, value, Pen::PLAIN)),
        (&none_name, none(page).map_or("–".to_owned(), |n| page.metric().gap(value - n))),
        (&teacher_name, "–".to_owned()),
        (validation_name(page), page.metric().plain(validation(page, &teacher.metrics))),
        ("seconds", time),
        ("largest max|WᵀW−I|", "–".to_owned()),
    ];
    format!("<tr class=\"teacher\"><th>{}teacher</th>{}</tr>\n", Pen::LEVEL.key(), tds(&cells))
}

/// The headings of the columns of differences.
fn gap_names(page: &Page) -> [String; 2] {
    ["none", "teacher"].map(|whom| format!("vs {whom}{}", page.metric().gap_unit()))
}

fn row(page: &Page, index: usize, arm: &ArmReport, marked: &[&ArmReport]) -> String {
    let value = score(page, &arm.metrics);
    let to = |other: f64| page.metric().gap(value - other);
    let to_none = none(page).filter(|_| arm.name != "none").map_or("–".to_owned(), to);
    let residual = match arm.projector_residual_max {
        None => "–".to_owned(),
        Some(r) if r <= LAW => scientific(r, 1),
        Some(r) => format!("<span class=\"bad\">{} over the law of 10⁻⁶</span>", scientific(r, 1)),
    };
    let [none_name, teacher_name] = gap_names(page);
    let cells = [
        ("labels", count(arm.labels)),
        ("loss", loss(page, arm)),
        ("parameters", count(arm.parameters)),
        (page.metric().name, bar(page, value, Pen::arm(index))),
        (&none_name, to_none),
        (&teacher_name, to(score(page, &page.report.teacher.metrics))),
        (validation_name(page), page.metric().plain(validation(page, &arm.metrics))),
        ("seconds", seconds(arm.seconds)),
        ("largest max|WᵀW−I|", residual),
    ];
    let (class, badge) = match marked.iter().any(|b| b.name == arm.name) {
        true if few(page) => {
            (" class=\"best\"", " <span class=\"badge\">best with few labels</span>")
        }
        true => (" class=\"best\"", " <span class=\"badge\">best</span>"),
        false => ("", ""),
    };
    let key = Pen::arm(index).key();
    format!("<tr{class}><th>{key}{}{badge}</th>{}</tr>\n", escape(&arm.name), tds(&cells))
}

/// Cells of a row; on a narrow screen each shows its label.
fn tds(cells: &[(&str, String)]) -> String {
    cells
        .iter()
        .map(|(label, value)| {
            let class = if *label == "loss" { " class=\"loss\"" } else { "" };
            format!("<td{class} data-label=\"{}\"><div>{value}</div></td>", escape(label))
        })
        .collect()
}

/// A share with its error over a bar from 0 to 100 %, the teacher's score marked; another number alone.
fn bar(page: &Page, value: f64, pen: Pen) -> String {
    if !page.metric().is_share() {
        return page.metric().plain(value);
    }
    let at = |share: f64| if share.is_finite() { 100. * share.clamp(0., 1.) } else { 0. };
    let teacher = at(score(page, &page.report.teacher.metrics));
    let (score, error) = (at(value), at(error(page, value)));
    format!(
        "{}<svg class=\"bar\" viewBox=\"0 0 100 8\" preserveAspectRatio=\"none\" aria-hidden=\"true\">\
         <rect class=\"ground\" width=\"100\" height=\"8\"/><rect width=\"{score:.2}\" height=\"8\" fill=\"{}\"/>\
         <rect class=\"error\" x=\"{:.2}\" y=\"3\" width=\"{:.2}\" height=\"2\"/>\
         <rect class=\"mark\" x=\"{:.2}\" width=\"0.8\" height=\"8\"/></svg>",
        with_error(page, value),
        pen.color,
        score - error,
        2. * error,
        (teacher - 0.4).max(0.)
    )
}

fn loss(page: &Page, arm: &ArmReport) -> String {
    // Long names may break behind a dot.
    let term = |(name, weight): (&String, &f64)| {
        let name = escape(name).replace('.', ".<wbr>");
        match weight {
            1. => name,
            w => format!("{w}·{name}"),
        }
    };
    // The label first, as in the plots.
    let mut terms: Vec<(&String, &f64)> = arm.terms.iter().collect();
    terms.sort_by_key(|(name, _)| (*name != "label", *name != "logits"));
    let terms: Vec<String> = terms.into_iter().map(term).collect();
    let projector = match page.arms.get(&arm.name) {
        Some(config) if config.features > 0. => {
            let kind = match config.projector {
                ProjectorKind::Linear => "linear projector".to_owned(),
                ProjectorKind::Mlp => "projector of two layers".to_owned(),
                ProjectorKind::AsPublished => "projector of the published code".to_owned(),
                ProjectorKind::None => "no projector".to_owned(),
                ProjectorKind::Orthogonal => {
                    format!("orthogonal projector, {}", config.method(page.distill).map)
                }
                ProjectorKind::OrthogonalAffine => format!(
                    "orthogonal projector with gain and bias, {}",
                    config.method(page.distill).map
                ),
            };
            format!("<br><small>{}</small>", escape(&kind))
        }
        _ => String::new(),
    };
    format!("{}{projector}", terms.join(" + "))
}

fn notes(page: &Page, marked: bool) -> String {
    let seed = page.report.seed;
    let mut notes = vec![format!(
        "<strong>This is one seed ({seed}).</strong> How far the scores move with another seed is not measured here."
    )];
    if page.counts[2] > 0 && page.metric().key == "accuracy" {
        let teacher = [&page.report.teacher.metrics].into_iter();
        let all = teacher.chain(page.report.arms.iter().map(|a| &a.metrics));
        let mut errors: Vec<f64> =
            all.map(|m| error(page, score(page, m))).filter(|e| e.is_finite()).collect();
        errors.sort_by(|a, b| b.total_cmp(a));
        let twice = match errors[..] {
            [first, second, ..] => {
                format!(", here up to {} pp,", percent(2. * first.hypot(second)))
            }
            _ => String::new(),
        };
        notes.push(format!(
            "± is one binomial standard error, √(p(1−p)/n), of an accuracy p on n = {} test images: what the choice of these \
             images alone leaves open. A difference of two accuracies has about √2 times that error, less where both fail on \
             the same images; a difference below twice its error{twice} says little.",
            count(page.counts[2])
        ));
    }
    if marked {
        notes.push(format!(
            "The highlighted arm is the one with the {} test {}{}, picked afterwards; where arms tie, all are.",
            if page.metric().less { "lowest" } else { "highest" },
            page.metric().what,
            if few(page) { " among those with few labels" } else { "" }
        ));
    }
    if page.report.task == "generation" {
        notes.extend(page.report.arms.first().map(measured));
    }
    if page.metric().is_share() {
        notes.push("Bars run from 0 to 100 %; the upright mark is the teacher.".to_owned());
    }
    notes.push(
        "Parameters are those of the saved network, without the projector. Arms may have trained side by side, so their seconds \
         compare only roughly."
            .to_owned(),
    );
    let notes: String = notes.iter().map(|n| format!("<li>{n}</li>\n")).collect();
    format!("<ul class=\"notes\">\n{notes}</ul>\n")
}
