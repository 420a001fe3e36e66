//! The page of a comparison: arms, paired differences, learning curves with bands, every single run.

use super::html::{Pen, count, escape, scientific, seconds};
use super::markdown::{Metric, facts, interval, terms};
use super::plot::{Level, Line, Plot};
use super::{STYLE, curves::LAW};
use crate::grid::{Grid, Pair};
use crate::summary::Summary;
use std::collections::BTreeSet;

/// The whole page; `recipe` is the resolved TOML and `command` what makes it again. `pictures` is a section of what the task has
/// to show; empty for none.
pub(crate) fn html(
    grid: &Grid,
    title: &str,
    recipe: &str,
    command: &str,
    pictures: &str,
) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>vkd: {0}, compared</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<h1>Comparison: {0}</h1>\n<p class=\"lead\">{1}</p>\n</header>\n{2}{3}{4}{5}{6}{7}{8}</main>\n</body>\n</html>\n",
        escape(title),
        facts(grid).iter().map(|s| escape(s)).collect::<Vec<_>>().join("<br>\n"),
        arms(grid),
        pairs(grid),
        pictures,
        curves(grid),
        geometry(grid),
        runs(grid),
        reproduction(recipe, command),
    )
}

fn pen(grid: &Grid, arm: &str) -> Pen {
    Pen::arm(grid.arms.iter().position(|a| a == arm).unwrap_or(0))
}

fn arms(grid: &Grid) -> String {
    let metrics = Metric::of(grid);
    let heads: String = metrics.iter().map(|m| format!("<th>{}</th>", escape(m.name))).collect();
    let teacher: Vec<(String, String)> = metrics
        .iter()
        .map(|m| (m.name.to_owned(), m.show(m.summary(grid.teacher(m.key).into_values()))))
        .collect();
    let dash = |name: &str| (name.to_owned(), "–".to_owned());
    let around = |loss: (String, String), labels, scores: Vec<_>, tail: [(String, String); 2]| {
        // As on the page of a run.
        [vec![labels, loss], scores, tail.to_vec()].concat()
    };
    let first = around(
        dash("loss"),
        dash("labels"),
        teacher,
        [dash("largest max|WᵀW−I|"), dash("seconds a run")],
    );
    let mut rows =
        format!("<tr class=\"teacher\"><th>{}teacher</th>{}</tr>\n", Pen::LEVEL.key(), tds(&first));
    for arm in &grid.arms {
        let Some(any) = grid.of(arm).next() else { continue };
        let scores = metrics
            .iter()
            .map(|m| (m.name.to_owned(), m.show(m.summary(grid.values(arm, m.key).into_values()))))
            .collect();
        let residual = grid.residual(arm).map_or("–".to_owned(), |r| match r {
            r if r <= LAW => scientific(r, 1),
            r => format!("<span class=\"bad\">{} over the law of 10⁻⁶</span>", scientific(r, 1)),
        });
        let time: Vec<f64> = grid.of(arm).map(|r| r.arm.seconds).collect();
        let time = Summary::of(&time).map_or("–".to_owned(), |s| seconds(s.mean));
        let cells = around(
            ("loss".to_owned(), escape(&terms(&any.arm.terms))),
            ("labels".to_owned(), count(any.arm.labels)),
            scores,
            [("largest max|WᵀW−I|".to_owned(), residual), ("seconds a run".to_owned(), time)],
        );
        let (key, label) = (pen(grid, arm).key(), grid.label(arm));
        rows.push_str(&format!("<tr><th>{key}{}</th>{}</tr>\n", escape(&label), tds(&cells)));
    }
    format!(
        "<section>\n<h2>Arms</h2>\n<div class=\"scroll\">\n<table>\n<thead>\n<tr><th>arm</th><th>labels</th><th>loss</th>{heads}\
         <th>largest max|WᵀW−I|</th><th>seconds a run</th></tr>\n</thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n\
         <ul class=\"notes\">\n<li>Mean ± sample standard deviation over {} seeds, over n where an arm says so; a seed draws the labelled images, the \
         networks' first weights and the order of the images. The test images are the same for all.</li>\n\
         <li>Runs may have trained side by side, so their seconds compare only roughly.</li>\n</ul>\n</section>\n",
        grid.seeds().len()
    )
}

/// Cells of a row; on a narrow screen each shows its label.
fn tds(cells: &[(String, String)]) -> String {
    let cell = |(label, value): &(String, String)| {
        let class = if label == "loss" { " class=\"loss\"" } else { "" };
        // A mean and its spread stay on one line.
        let value = value.replace(" ± ", "\u{a0}±\u{a0}");
        format!("<td{class} data-label=\"{}\"><div>{value}</div></td>", escape(label))
    };
    cells.iter().map(cell).collect()
}

fn pairs(grid: &Grid) -> String {
    let Some(metric) = Metric::of(grid).first().copied() else { return String::new() };
    let pairs = metric.pairs(grid);
    if pairs.is_empty() {
        return String::new();
    }
    let ends = |p: &Pair| {
        let (low, high) = p.difference.interval.unwrap_or((p.difference.mean, p.difference.mean));
        [low, high, p.difference.mean]
    };
    let reach = pairs.iter().flat_map(ends).map(f64::abs).filter(|v| v.is_finite());
    let reach = reach.fold(0., f64::max).max(1e-9);
    let rows: String = pairs
        .iter()
        .map(|p| {
            let d = p.difference;
            let cells = [
                ("mean difference".to_owned(), metric.signed(d.mean)),
                ("95 % interval".to_owned(), interval(metric, d)),
                (format!("from −{reach:.1} to +{reach:.1}"), forest(d, reach)),
                ("n".to_owned(), d.n.to_string()),
                (
                    "seeds for / equal / against".to_owned(),
                    p.counts.map(|c| c.to_string()).join(" / "),
                ),
            ];
            format!("<tr><th>{} − {}</th>{}</tr>\n", escape(&p.left), escape(&p.right), tds(&cells))
        })
        .collect();
    format!(
        "<section>\n<h2>Paired differences: {}</h2>\n<div class=\"scroll\">\n<table>\n<thead>\n<tr><th>pair</th>\
         <th>mean difference</th><th>95 % interval</th><th>from −{reach:.1} to +{reach:.1}</th><th>n</th>\
         <th>seeds for / equal / against</th></tr>\n</thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n\
         <ul class=\"notes\">\n<li>Both arms of a difference have the same seed: the same labels, first weights and batches. The \
         interval is of the mean over seeds, by Student's t; one that holds zero leaves open which arm is better. With {} intervals about one \
         in twenty misses the truth by chance: none is widened for that.</li>\n</ul>\n</section>\n",
        escape(metric.name),
        pairs.len()
    )
}

/// An interval with its mean on an axis from `-reach` to `reach`, zero marked.
fn forest(d: Summary, reach: f64) -> String {
    let at = |v: f64| 50. + 49. * (v / reach).clamp(-1., 1.);
    let (low, high) = d.interval.unwrap_or((d.mean, d.mean));
    format!(
        "<svg class=\"bar\" viewBox=\"0 0 100 8\" preserveAspectRatio=\"none\" aria-hidden=\"true\">\
         <rect class=\"ground\" y=\"3.5\" width=\"100\" height=\"1\"/><rect class=\"mark\" x=\"49.8\" width=\"0.4\" height=\"8\"/>\
         <rect class=\"error\" x=\"{:.2}\" y=\"2.5\" width=\"{:.2}\" height=\"3\"/>\
         <rect class=\"mark\" x=\"{:.2}\" width=\"1.2\" height=\"8\"/></svg>",
        at(low),
        (at(high) - at(low)).max(0.),
        at(d.mean) - 0.6
    )
}

/// The learning curves as a picture of its own; none where no result has a curve, as those read from a `report.json`.
pub(crate) fn picture(grid: &Grid) -> Option<String> {
    let first = grid.first()?;
    let what = main(grid)?.what;
    Some(plot(grid)?.picture(&format!("Validation {what}: {}", first.dataset)))
}

/// The main metric.
fn main(grid: &Grid) -> Option<Metric> {
    Some(Metric::main(&grid.first()?.arm.metrics))
}

/// The learning curves: a line an arm, the mean over its seeds.
fn plot(grid: &Grid) -> Option<Plot<'_>> {
    let lines: Vec<Line> = grid.arms.iter().map(|arm| line(grid, arm)).collect();
    if lines.iter().all(|l| l.points.is_empty()) {
        return None;
    }
    let main = main(grid)?;
    let teacher = main.summary(grid.teacher(&main.validation()).into_values());
    let (title, unit) = match main.what {
        "AP" => ("Validation AP", "AP (%)"),
        "Fréchet distance" => ("Validation Fréchet distance", "Fréchet distance"),
        _ => ("Validation accuracy", "accuracy (%)"),
    };
    let levels = teacher
        .map(|s| Level { name: format!("teacher, finished ({:.1} %)", s.mean), value: s.mean });
    let note = if lines.iter().any(|l| !l.band.is_empty()) {
        "Lines are means over the seeds, bands one standard deviation to each side."
    } else {
        ""
    };
    Some(Plot { title, unit, log: false, lines, levels: levels.into_iter().collect(), note })
}

fn line<'a>(grid: &Grid, arm: &'a str) -> Line<'a> {
    let curve = grid.curve(arm);
    let factor = main(grid).map_or(1., |main| main.in_unit(1.));
    let most = if factor == 100. { 100. } else { f64::INFINITY };
    let part = |f: fn(Summary) -> f64| {
        curve.iter().map(|(step, s)| (*step as f64, f(s.times(factor)))).collect::<Vec<_>>()
    };
    let band = match curve.iter().all(|(_, s)| s.deviation.is_some()) {
        true => part(|s| s.mean - s.deviation.unwrap_or(0.))
            .into_iter()
            .zip(part(|s| s.mean + s.deviation.unwrap_or(0.)))
            .map(|((step, low), (_, high))| (step, low, high.min(most)))
            .collect(),
        false => Vec::new(),
    };
    Line { name: arm, pen: pen(grid, arm), points: part(|s| s.mean), band }
}

fn curves(grid: &Grid) -> String {
    let Some(figure) = plot(grid).map(|plot| plot.figure()) else { return String::new() };
    format!(
        "<section>\n<h2>Learning curves</h2>\n<div class=\"figures wide\">\n{figure}</div>\n</section>\n"
    )
}

fn geometry(grid: &Grid) -> String {
    let keys: BTreeSet<&String> = grid.results().flat_map(|r| r.geometry.keys()).collect();
    if keys.is_empty() {
        return String::new();
    }
    let heads: String = keys.iter().map(|k| format!("<th>{}</th>", escape(k))).collect();
    let mut rows = String::new();
    for arm in &grid.arms {
        let cell = |key: &&String| {
            let values: Vec<f64> =
                grid.of(arm).filter_map(|r| r.geometry.get(*key).copied()).collect();
            let shown = Summary::of(&values).map_or("–".to_owned(), |s| match s.deviation {
                Some(d) => format!("{:.3} ± {d:.3}", s.mean),
                None => format!("{:.3}", s.mean),
            });
            ((*key).clone(), shown)
        };
        if grid.of(arm).any(|r| !r.geometry.is_empty()) {
            let cells: Vec<_> = keys.iter().map(cell).collect();
            let key = pen(grid, arm).key();
            rows.push_str(&format!("<tr><th>{key}{}</th>{}</tr>\n", escape(arm), tds(&cells)));
        }
    }
    format!(
        "<section>\n<h2>Features at the end</h2>\n<div class=\"scroll\">\n<table>\n<thead>\n<tr><th>arm</th>{heads}</tr>\n</thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n</div>\n<ul class=\"notes\">\n<li>On validation images, before any projector. rank: \
         effective rank of the student's pooled features; teacher_rank: of the teacher's; cka: linear centred kernel alignment of \
         the two, 1 for equal up to rotation and scale.</li>\n</ul>\n</section>\n"
    )
}

/// Every run: the main score of each seed and arm.
fn runs(grid: &Grid) -> String {
    let Some(metric) = Metric::of(grid).first().copied() else { return String::new() };
    let heads: String = grid.arms.iter().map(|a| format!("<th>{}</th>", escape(a))).collect();
    let rows: String = grid
        .seeds()
        .into_iter()
        .map(|seed| {
            let cell = |arm: &String| {
                let value = grid.values(arm, metric.key).get(&seed).copied();
                (arm.clone(), metric.show(metric.summary(value)))
            };
            let cells: Vec<_> = grid.arms.iter().map(cell).collect();
            format!("<tr><th>seed {seed}</th>{}</tr>\n", tds(&cells))
        })
        .collect();
    format!(
        "<section>\n<h2>Every run: {}</h2>\n<div class=\"scroll\">\n<table>\n<thead>\n<tr><th></th>{heads}</tr>\n</thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n</div>\n</section>\n",
        escape(metric.name)
    )
}

fn reproduction(recipe: &str, command: &str) -> String {
    if recipe.is_empty() {
        return String::new();
    }
    format!(
        "<section>\n<h2>Reproduce</h2>\n<p>Runs that are finished are found by the hash of their settings and are not trained \
         again.</p>\n<pre>{}</pre>\n<h2>Recipe</h2>\n<pre>{}</pre>\n</section>\n",
        escape(command),
        escape(recipe)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::tests::result;
    use crate::report::tests::{check, closed};

    fn page(results: Vec<vkd_train::ArmResult>) -> String {
        let page =
            html(&Grid::new(results, None, None).unwrap(), "d<i>gits", "a = 1", "vkd compare", "");
        check(&page);
        page
    }

    #[test]
    fn a_grid_is_a_page() {
        let arms = ["none", "logits", "vkd", "<b>"];
        let all = (0..3).flat_map(|seed| {
            arms.map(|arm| result(arm, seed, 0.7 + 0.02 * arm.len() as f64 + 0.01 * seed as f64))
        });
        let page = page(all.collect());
        assert!(page.contains("d&lt;i&gt;gits") && page.contains("&lt;b&gt; − none"));
        assert!(page.contains("79.00\u{a0}±\u{a0}1.00") && page.contains("<th>seed 2</th>"));
        // A band for each arm, and the interval of each pair.
        assert_eq!(page.matches("class=\"band\"").count(), 4);
        assert!(page.contains("logits − none") && page.contains("8.000\u{a0}±\u{a0}0.000"));
        assert!(page.contains("vkd compare"));
    }

    #[test]
    fn the_curves_are_a_picture() {
        let arms = ["none", "vkd", "<b>"];
        let all = || {
            let one = |seed| arms.map(|arm| result(arm, seed, 0.7 + 0.1 * seed as f64));
            Grid::new((0..3).flat_map(one).collect(), None, None).unwrap()
        };
        let svg = picture(&all()).unwrap();
        closed(svg.split_once("</style>").unwrap().1, vec!["svg"]);
        assert!(
            svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"")
                && !svg.contains("<script")
        );
        for part in ["&lt;b&gt;</text>", "teacher, finished (95.0 %)</text>", "bands one standard"]
        {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        assert!(svg.contains("Validation accuracy: UCI handwritten digits</text>"));
        assert_eq!(
            (svg.matches("class=\"band\"").count(), svg.matches("class=\"key\"").count()),
            (3, 4)
        );
        assert_eq!(picture(&all()).unwrap(), svg, "the same bytes");
        let mut bare = result("none", 0, 0.5);
        bare.curve.clear();
        assert_eq!(picture(&Grid::new(vec![bare], None, None).unwrap()), None);
    }

    #[test]
    fn odd_grids() {
        let one = page(vec![result("vkd", 0, 0.5)]);
        assert!(!one.contains("class=\"band\"") && !one.contains("Paired"));
        let mut bare = result("none", 0, f64::NAN);
        bare.curve.clear();
        bare.geometry.clear();
        bare.run = None;
        let page = page(vec![bare]);
        assert!(!page.contains("Learning curves") && !page.contains("Features at the end"));
    }
}
