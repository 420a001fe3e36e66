//! A line plot as SVG, and the figure around it. The figure's legend is HTML, so that it wraps and is never cut; [`super::picture`]
//! is the same plot as a file of its own.

use super::axis::Axis;
use super::html::{Pen, escape, scientific};
use std::fmt::Write;

/// A curve: `(step, value)` in the order of the steps, and around it a band of `(step, low, high)` or none.
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    pub(super) pen: Pen,
    pub(super) points: Vec<(f64, f64)>,
    pub(super) band: Vec<(f64, f64, f64)>,
}

/// A dashed line at one height.
pub(super) struct Level {
    pub(super) name: String,
    pub(super) value: f64,
}

/// A figure over the steps.
pub(super) struct Plot<'a> {
    pub(super) title: &'a str,
    /// Quantity and unit of the vertical axis.
    pub(super) unit: &'a str,
    pub(super) log: bool,
    pub(super) lines: Vec<Line<'a>>,
    pub(super) levels: Vec<Level>,
    /// Below the plot.
    pub(super) note: &'a str,
}

// Units of the view box: about one CSS pixel on a wide screen.
pub(super) const WIDTH: f64 = 440.;
pub(super) const HEIGHT: f64 = 270.;
const TOP: f64 = 28.;
const BOTTOM: f64 = 40.;
const RIGHT: f64 = 14.;
/// Width of a character of a tick's label, generously.
pub(super) const CHARACTER: f64 = 7.5;
/// Up to so many points a line, each is marked.
const MARKED: usize = 30;

impl Plot<'_> {
    /// The figure; where there is nothing to draw, it says so.
    pub(super) fn figure(&self) -> String {
        let body = match self.drawn().is_empty() {
            true => "<p class=\"nothing\">Nothing was recorded.</p>\n".to_owned(),
            false => format!(
                "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n{}</svg>\n{}",
                self.drawing(),
                self.legend()
            ),
        };
        let note = match self.note {
            "" => String::new(),
            note => format!("<p class=\"note\">{}</p>\n", escape(note)),
        };
        format!(
            "<figure>\n<figcaption>{}</figcaption>\n{body}{note}</figure>\n",
            escape(self.title)
        )
    }

    /// The lines with any point.
    fn drawn(&self) -> Vec<&Line<'_>> {
        self.lines.iter().filter(|l| !l.points.is_empty()).collect()
    }

    /// What the legend names, in its order.
    pub(super) fn keys(&self) -> Vec<(Pen, &str)> {
        let levels = self.levels.iter().map(|l| (Pen::LEVEL, l.name.as_str()));
        let lines = self.drawn().into_iter().map(|l| (l.pen, l.name));
        lines.chain(levels).filter(|(_, name)| !name.is_empty()).collect()
    }

    fn legend(&self) -> String {
        let item = |(pen, name): (Pen, &str)| format!("<li>{}{}</li>\n", pen.key(), escape(name));
        let items: String = self.keys().into_iter().map(item).collect();
        format!("<ul class=\"legend\">\n{items}</ul>\n")
    }

    /// The plot's elements, in a box of [`WIDTH`] by [`HEIGHT`].
    pub(super) fn drawing(&self) -> String {
        let lines = self.drawn();
        let points = || lines.iter().flat_map(|l| &l.points);
        let x = Axis::steps(points().map(|p| p.0).fold(0., f64::max));
        let bands = || lines.iter().flat_map(|l| &l.band);
        let values = points().map(|p| p.1).chain(self.levels.iter().map(|l| l.value));
        let values = values.chain(bands().flat_map(|b| [b.1, b.2]));
        let y = if self.log { Axis::log(values) } else { Axis::linear(values) };
        let widest = y.ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0);
        let left = 10. + CHARACTER * widest as f64;
        let at_x = |v: f64| left + x.position(v) * (WIDTH - RIGHT - left);
        let at_y = |v: f64| HEIGHT - BOTTOM - y.position(v) * (HEIGHT - BOTTOM - TOP);
        let right = WIDTH - RIGHT;

        let mut out = format!(
            "<title>{}: {} over the steps</title>\n\
             <text class=\"unit\" x=\"0\" y=\"13\">{}</text>\n\
             <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">step</text>\n",
            escape(self.title),
            escape(self.unit),
            escape(self.unit),
            (left + right) / 2.,
            HEIGHT - 5.
        );
        let mut put = |text: std::fmt::Arguments| out.write_fmt(text).unwrap_or_default();
        for (value, label) in &y.ticks {
            let at = at_y(*value);
            put(format_args!(
                "<line class=\"grid\" x1=\"{left:.1}\" y1=\"{at:.1}\" x2=\"{right:.1}\" y2=\"{at:.1}\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
                left - 5.,
                at + 4.
            ));
        }
        for (value, label) in &x.ticks {
            let (at, foot) = (at_x(*value), HEIGHT - BOTTOM);
            put(format_args!(
                "<line class=\"axis\" x1=\"{at:.1}\" y1=\"{foot:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>\n\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
                foot + 4.,
                foot + 17.
            ));
        }
        put(format_args!(
            "<line class=\"axis\" x1=\"{left:.1}\" y1=\"{0:.1}\" x2=\"{right:.1}\" y2=\"{0:.1}\"/>\n",
            HEIGHT - BOTTOM
        ));
        for level in self.levels.iter().filter(|l| l.value.is_finite()) {
            let at = at_y(level.value);
            put(format_args!(
                "<line class=\"level\" x1=\"{left:.1}\" y1=\"{at:.1}\" x2=\"{right:.1}\" y2=\"{at:.1}\" {}>\
                 <title>{}</title></line>\n",
                Pen::LEVEL.attributes(),
                escape(&level.name)
            ));
        }
        // Below all lines.
        for line in lines.iter().filter(|l| !l.band.is_empty()) {
            let low = line.band.iter().map(|(step, low, _)| (*step, *low));
            let high = line.band.iter().rev().map(|(step, _, high)| (*step, *high));
            let around: Vec<String> = low
                .chain(high)
                .map(|(step, value)| format!("{:.1},{:.1}", at_x(step), at_y(value)))
                .collect();
            put(format_args!(
                "<polygon class=\"band\" fill=\"{}\" points=\"{}\"/>\n",
                line.pen.color,
                around.join(" ")
            ));
        }
        for line in &lines {
            let path: Vec<String> = line
                .points
                .iter()
                .map(|(step, value)| format!("{:.1},{:.1}", at_x(*step), at_y(*value)))
                .collect();
            put(format_args!(
                "<polyline class=\"line\" {} points=\"{}\"><title>{}</title></polyline>\n",
                line.pen.attributes(),
                path.join(" "),
                escape(line.name)
            ));
            if line.points.len() <= MARKED {
                for (step, value) in &line.points {
                    put(format_args!(
                        "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.4\" fill=\"{}\"><title>{}, step {step}: {}</title>\
                         </circle>\n",
                        at_x(*step),
                        at_y(*value),
                        line.pen.color,
                        escape(line.name),
                        reading(*value)
                    ));
                }
            }
        }
        out
    }
}

/// A value as a tooltip shows it.
fn reading(value: f64) -> String {
    match value.abs() {
        a if a == 0. || (0.01..1e6).contains(&a) => format!("{}", (value * 1e4).round() / 1e4),
        _ => scientific(value, 3),
    }
}
