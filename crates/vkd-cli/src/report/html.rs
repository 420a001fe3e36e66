//! Pieces of HTML: escaping, numbers and the arms' colours.

use std::fmt::Display;

/// Okabe and Ito's colour-blind-safe palette; three are a little darker than theirs, to stand out on white.
const PALETTE: [&str; 8] =
    ["#0072b2", "#3a9fdc", "#009e73", "#d55e00", "#cc79a7", "#dd9200", "#8c8c8c", "#b3a800"];

/// How a line is drawn: the same for an arm in every plot and in the table.
#[derive(Clone, Copy)]
pub(super) struct Pen {
    pub(super) color: &'static str,
    pub(super) dashes: &'static str,
}

impl Pen {
    /// The pen of arm `index`; where the colours run out, they come again with dashes.
    pub(super) fn arm(index: usize) -> Self {
        let dashes = ["none", "7 2", "2 2"][(index / PALETTE.len()) % 3];
        Self { color: PALETTE[index % PALETTE.len()], dashes }
    }

    /// The teacher's and the laws' pen.
    pub(super) const LEVEL: Self = Self { color: "currentColor", dashes: "5 4" };

    /// The pen of what belongs to no arm.
    pub(super) const PLAIN: Self = Self { color: "currentColor", dashes: "none" };

    /// Attributes of an SVG element.
    pub(super) fn attributes(self) -> String {
        format!("stroke=\"{}\" stroke-dasharray=\"{}\"", self.color, self.dashes)
    }

    /// A short piece of the line, for legends.
    pub(super) fn key(self) -> String {
        format!(
            "<svg class=\"key\" viewBox=\"0 0 22 8\" width=\"22\" height=\"8\" aria-hidden=\"true\">\
             <line x1=\"0\" y1=\"4\" x2=\"22\" y2=\"4\" stroke-width=\"3\" {}/></svg>",
            self.attributes()
        )
    }
}

/// Text that means itself in HTML, in content and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // HTML allows no other control characters.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A whole number with a comma after each three digits.
pub(crate) fn count(n: impl Display) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A share as a percentage, without the sign.
pub(super) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.2}", 100. * share) } else { "–".to_owned() }
}

/// Seconds: a decimal where they are few.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "–".to_owned(),
        s if s < 100. => format!("{s:.1}"),
        s => count(s.round() as u64),
    }
}

/// A number in as few characters as it needs: plain near one, else `m×10ⁿ`.
pub(super) fn scientific(value: f64, digits: usize) -> String {
    if value == 0. || !value.is_finite() {
        return if value == 0. { "0".to_owned() } else { "–".to_owned() };
    }
    let text = format!("{value:.digits$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let raised: String = exponent.chars().map(superscript).collect();
    match mantissa {
        "1" => format!("10{raised}"),
        m => format!("{m}×10{raised}"),
    }
}

fn superscript(c: char) -> char {
    let digits = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    match c.to_digit(10) {
        Some(d) => digits[d as usize],
        None => '⁻',
    }
}
