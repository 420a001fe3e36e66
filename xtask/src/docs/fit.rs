//! How the time of an orthogonal map grows with n: the line t(n) = a + b n through its rows.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::rows::seconds;

/// A line, and the largest distance of a point from it, relative to the point.
struct Line {
    start: f64,
    slope: f64,
    deviation: f64,
}

/// One line of text a map with at least three rows `ortho/<map>/<n>x64/fwd_bwd`; else nothing.
pub(super) fn render(rows: &[Value]) -> String {
    let mut maps: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        let parts: Vec<&str> = row["name"].as_str().unwrap_or_default().split('/').collect();
        let ["ortho", map, shape, "fwd_bwd"] = parts[..] else { continue };
        let n = shape.strip_suffix("x64").and_then(|n| n.parse::<f64>().ok());
        if let Some(point) = n.zip(row["median_s"].as_f64()) {
            maps.entry(map).or_default().push(point);
        }
    }
    let lines = maps.into_iter().filter_map(|(map, points)| {
        let line = fit(&points)?;
        let sign = if line.start < 0.0 { "-" } else { "" };
        Some(format!(
            "- {map}: {sign}{} + {} n; largest deviation {:.1} % of {} points\n",
            seconds(line.start.abs()),
            seconds(line.slope),
            line.deviation * 100.0,
            points.len()
        ))
    });
    let lines: String = lines.collect();
    if lines.is_empty() {
        return lines;
    }
    format!(
        "\nTime by n at k = 64, t(n) = a + b n, least squares over the relative error; the deviation \
         is relative to the measured time:\n\n{lines}"
    )
}

/// Least squares over the relative error: the points span orders of magnitude, and plain least
/// squares would only see the largest.
fn fit(points: &[(f64, f64)]) -> Option<Line> {
    if points.len() < 3 {
        return None;
    }
    // Minimise the sum of (a / t + b n / t - 1)²: two unknowns, solved by Cramer's rule.
    let sum =
        |of: fn(f64, f64) -> f64| points.iter().map(|&(n, t)| of(n / t, 1.0 / t)).sum::<f64>();
    let (one_one, one_n, n_n) = (sum(|_, i| i * i), sum(|x, i| x * i), sum(|x, _| x * x));
    let (one, n) = (sum(|_, i| i), sum(|x, _| x));
    let determinant = one_one * n_n - one_n * one_n;
    let start = (one * n_n - n * one_n) / determinant;
    let slope = (n * one_one - one * one_n) / determinant;
    let deviation =
        points.iter().map(|&(n, t)| ((start + slope * n) / t - 1.0).abs()).fold(0.0, f64::max);
    (start.is_finite() && slope.is_finite()).then_some(Line { start, slope, deviation })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{fit, render};

    #[test]
    fn a_line_is_found_and_a_bend_is_seen() {
        let sizes = [1024.0, 4096.0, 16384.0, 65536.0];
        let line = fit(&sizes.map(|n| (n, 1e-3 + 2e-6 * n))).unwrap();
        // Exact data: only the rounding of two-by-two elimination is left.
        assert!((line.start - 1e-3).abs() < 1e-10 && (line.slope - 2e-6).abs() < 1e-14);
        assert!(line.deviation < 1e-8);
        assert!(fit(&sizes.map(|n| (n, 1e-9 * n * n))).unwrap().deviation > 0.5);
        assert!(fit(&[(1.0, 1.0), (2.0, 2.0)]).is_none());
        assert!(fit(&[(1.0, 1.0); 3]).is_none());
    }

    #[test]
    fn only_the_rows_of_k_64_count() {
        let row = |name: &str, t: f64| json!({"name": name, "median_s": t});
        let mut rows = vec![row("ortho/m/1000x64/fwd_bwd", 4e-3)];
        rows.push(row("ortho/m/3024x192/fwd_bwd", 9.0));
        rows.push(row("ortho/m/2000x64/fwd_bwd", 6e-3));
        assert_eq!(render(&rows), "");
        rows.push(row("ortho/m/4000x64/fwd_bwd", 10e-3));
        let text = render(&rows);
        assert!(text.contains("m: 2.00 ms + 2.00 µs n") && text.contains("3 points"), "{text}");
    }
}
