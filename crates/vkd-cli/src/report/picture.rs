//! A plot as a picture of its own: one SVG file with title and legend, for pages that can't hold HTML.
//!
//! It brings its own ground, light or dark as the reader has it, so it can be read on any page; no script, no font and no date,
//! so the same results give the same bytes.

use super::html::{Pen, escape};
use super::plot::{CHARACTER, HEIGHT, Plot, WIDTH};

const STYLE: &str = include_str!("picture.css");
/// Around everything.
const MARGIN: f64 = 16.;
/// From one line of text to the next.
const LINE: f64 = 18.;
/// Length of a key's line, and the gap after it.
const KEY: f64 = 28.;
/// Between two keys.
const GAP: f64 = 16.;
/// Shown so many times larger than the view box.
const SCALE: f64 = 1.5;

impl Plot<'_> {
    /// The file's text, titled `title`.
    pub(super) fn picture(&self, title: &str) -> String {
        let (keys, rows) = legend(&self.keys());
        let below = MARGIN + LINE + HEIGHT + 10.;
        let notes = if self.note.is_empty() { 0. } else { LINE };
        let (width, height) = (WIDTH + 2. * MARGIN, below + LINE * rows as f64 + notes + MARGIN);
        let note = match self.note {
            "" => String::new(),
            note => format!(
                "<text class=\"note\" x=\"{MARGIN}\" y=\"{:.1}\">{}</text>\n",
                height - MARGIN,
                escape(note)
            ),
        };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{:.0}\" viewBox=\"0 0 {width} {height}\" \
             role=\"img\">\n<style>\n{STYLE}</style>\n\
             <rect class=\"ground\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n\
             <text class=\"title\" x=\"{MARGIN}\" y=\"{:.1}\">{}</text>\n\
             <g transform=\"translate({MARGIN} {:.1})\">\n{}</g>\n\
             <g transform=\"translate({MARGIN} {below:.1})\">\n{keys}</g>\n{note}</svg>\n",
            SCALE * width,
            SCALE * height,
            width - 1.,
            height - 1.,
            MARGIN + 8.,
            escape(title),
            MARGIN + LINE,
            self.drawing(),
        )
    }
}

/// The legend's elements, and how many rows they take: a key that does not fit beside the last one begins a row.
fn legend(keys: &[(Pen, &str)]) -> (String, usize) {
    let (mut text, mut x, mut row) = (String::new(), 0., 0);
    for (pen, name) in keys {
        let width = KEY + CHARACTER * name.chars().count() as f64;
        if x > 0. && x + width > WIDTH {
            (x, row) = (0., row + 1);
        }
        let y = LINE * row as f64 + LINE / 2.;
        text.push_str(&format!(
            "<line class=\"key\" x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" {}/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            x + 22.,
            pen.attributes(),
            x + KEY,
            y + 4.,
            escape(name)
        ));
        x += width + GAP;
    }
    (text, if keys.is_empty() { 0 } else { row + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_wrap_and_none_is_lost() {
        let names: Vec<String> = (0..20).map(|i| format!("arm-{i}")).collect();
        let long = "x".repeat(200);
        let names: Vec<&str> = names.iter().map(String::as_str).chain([long.as_str()]).collect();
        let keys: Vec<(Pen, &str)> = names.iter().map(|n| (Pen::PLAIN, *n)).collect();
        let (text, rows) = legend(&keys);
        assert!(names.iter().all(|n| text.contains(&format!(">{n}</text>"))), "{text}");
        // Four or five of them fit beside each other; the long one has a row of its own.
        assert!((5..=7).contains(&rows), "{rows}");
        assert_eq!(legend(&[]), (String::new(), 0));
    }
}
