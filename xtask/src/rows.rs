//! Benchmark rows: their table, their file, and the comparison with a baseline.
//!
//! A row is one JSON object; a file is one array, one row a line, so that a diff reads well.

use std::path::Path;

use serde_json::Value;

use crate::Result;

/// The keys of a row, in the order they are written.
const KEYS: [&str; 12] = [
    "name",
    "device",
    "threads",
    "dtype",
    "median_s",
    "spread_s",
    "floor_s",
    "peer",
    "peer_median_s",
    "peak_bytes",
    "commit",
    "machine",
];

/// Keys that a row may lack: files written before they were measured have none of them.
const OPTIONAL: [&str; 3] = ["peer_repeats", "peer_residual", "residual"];

/// A ratio median / floor that grew by more than this is a failure.
const WORSE: f64 = 1.20;

/// Reads a file of rows.
pub(crate) fn read(path: &Path) -> Result<Vec<Value>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
    let rows: Value = serde_json::from_str(&text).map_err(|error| format!("{name}: {error}"))?;
    let rows = rows.as_array().ok_or_else(|| format!("{name}: expected an array of rows"))?;
    rows.iter().try_for_each(|row| check(row).map_err(|message| format!("{name}: {message}")))?;
    Ok(rows.clone())
}

fn known(key: &str) -> bool {
    KEYS.contains(&key) || OPTIONAL.contains(&key)
}

/// A row has the twelve keys, perhaps the optional ones, and numbers where they may not be null.
pub(crate) fn check(row: &Value) -> Result<()> {
    let object = row.as_object().ok_or("a row is not an object")?;
    if let Some(key) = KEYS.iter().find(|key| !object.contains_key(**key)) {
        return Err(format!("a row has no `{key}`"));
    }
    if let Some(key) = object.keys().find(|key| !known(key)) {
        return Err(format!("a row has an unknown key `{key}`"));
    }
    let is_text = |key: &str| row[key].is_string();
    let is_positive = |key: &str| row[key].as_f64().is_some_and(|value| value > 0.0);
    let fine = ["name", "device", "dtype", "commit", "machine"].into_iter().all(is_text)
        && ["threads", "median_s"].into_iter().all(is_positive);
    if fine { Ok(()) } else { Err(format!("a row has a value of the wrong type: {row}")) }
}

/// The text of a file of rows.
pub(crate) fn to_json(rows: &[Value]) -> String {
    let line = |row: &Value| {
        let optional = OPTIONAL.iter().filter(|key| row.get(**key).is_some());
        let fields = KEYS.iter().chain(optional).map(|key| format!("\"{key}\":{}", row[*key]));
        format!("  {{{}}}", fields.collect::<Vec<_>>().join(","))
    };
    format!("[\n{}\n]\n", rows.iter().map(line).collect::<Vec<_>>().join(",\n"))
}

/// A Markdown table; it reads well in a terminal too.
pub(crate) fn table(rows: &[Value]) -> String {
    let mut cells = vec![
        ["name", "device", "threads", "dtype", "median", "spread", "floor", "median / floor"]
            .into_iter()
            .chain(["peer", "peer / median", "peak"])
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    ];
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let time = |key: &str| row[key].as_f64().map_or("-".to_owned(), seconds);
        let times =
            |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let median = row["median_s"].as_f64();
        let peer = row["peer_median_s"].as_f64().zip(median).map(|(peer, median)| peer / median);
        let peak = row["peak_bytes"].as_f64();
        cells.push(vec![
            text("name"),
            text("device"),
            row["threads"].to_string(),
            text("dtype"),
            time("median_s"),
            time("spread_s"),
            time("floor_s"),
            times(ratio(row)),
            text("peer"),
            times(peer),
            peak.map_or("-".to_owned(), |bytes| format!("{:.1} MiB", bytes / 1_048_576.0)),
        ]);
    }
    crate::docs::markdown_table(&cells, 4)
}

/// The table of orthogonal maps: floor, peer and residual.
pub(crate) fn orthogonal_table(rows: &[Value]) -> String {
    let header =
        ["work", "median", "floor", "x floor", "peer", "peer median", "times faster", "peak MiB"];
    let mut cells =
        vec![header.into_iter().chain(["residual"]).map(str::to_owned).collect::<Vec<_>>()];
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let time = |key: &str| row[key].as_f64().map_or("-".to_owned(), seconds);
        let show = |value: Option<f64>, digits: usize| {
            value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let peer = row["peer_median_s"].as_f64().zip(row["median_s"].as_f64());
        cells.push(vec![
            text("name"),
            time("median_s"),
            time("floor_s"),
            show(ratio(row), 2),
            text("peer"),
            time("peer_median_s"),
            show(peer.map(|(peer, median)| peer / median), 1),
            show(row["peak_bytes"].as_f64().map(|bytes| bytes / 1_048_576.0), 1),
            row["residual"].as_f64().map_or("-".to_owned(), |value| format!("{value:.1e}")),
        ]);
    }
    crate::docs::markdown_table(&cells, 1)
}

/// The table of the works of a GPU: the row of each that stands last among `rows`, and what nobody has measured.
pub(crate) fn device_table(works: &[String], rows: &[Value]) -> String {
    let header =
        ["work", "median", "floor", "x floor", "peer", "peer median", "times faster", "where"];
    let mut cells = vec![header.map(str::to_owned).to_vec()];
    for work in works {
        let on_device = |row: &&Value| {
            row["name"] == **work && row["device"].as_str().is_some_and(|device| device != "cpu")
        };
        let Some(row) = rows.iter().rev().find(on_device) else {
            let mut empty = vec![work.clone(), "not measured".to_owned()];
            empty.resize(header.len(), "-".to_owned());
            cells.push(empty);
            continue;
        };
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let time = |key: &str| row[key].as_f64().map_or("-".to_owned(), seconds);
        let peer = row["peer_median_s"].as_f64().zip(row["median_s"].as_f64());
        let times =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        cells.push(vec![
            work.clone(),
            time("median_s"),
            time("floor_s"),
            times(ratio(row)),
            text("peer"),
            time("peer_median_s"),
            times(peer.map(|(peer, median)| peer / median)),
            text("machine"),
        ]);
    }
    crate::docs::markdown_table(&cells, 1)
}

/// Three digits that matter, and the unit that fits.
pub(crate) fn seconds(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 1.0 => (value, "s"),
        value if value >= 1e-3 => (value * 1e3, "ms"),
        value => (value * 1e6, "µs"),
    };
    let digits = if value >= 100.0 { 0 } else { 1 + usize::from(value < 10.0) };
    format!("{value:.digits$} {unit}")
}

/// median / floor, where both were measured.
fn ratio(row: &Value) -> Option<f64> {
    let floor = row["floor_s"].as_f64().filter(|floor| *floor > 0.0)?;
    row["median_s"].as_f64().map(|median| median / floor)
}

/// What makes two rows the same measurement.
fn key(row: &Value) -> String {
    let keys = ["name", "device", "threads", "dtype"];
    keys.map(|key| row[key].to_string()).join(" ")
}

/// Compares ratios, not seconds, so that a baseline of another machine still says something.
///
/// Prints a line a row; fails where a ratio got 20 % worse.
pub(crate) fn compare(baseline: &[Value], rows: &[Value]) -> Result<()> {
    let mut worse = Vec::new();
    let mut compared = 0;
    for row in rows {
        let name = row["name"].as_str().unwrap_or_default();
        let old = baseline.iter().find(|old| key(old) == key(row));
        let (Some(old), Some(new)) = (old.and_then(ratio), ratio(row)) else {
            println!("baseline: {name}: not compared (no such row, or no floor)");
            continue;
        };
        compared += 1;
        let change = (new / old - 1.0) * 100.0;
        println!("baseline: {name}: median / floor {old:.2} -> {new:.2} ({change:+.0} %)");
        if new > old * WORSE {
            worse.push(name);
        }
    }
    if compared == 0 {
        return Err("the baseline has no row in common with this run".to_owned());
    }
    if worse.is_empty() {
        Ok(())
    } else {
        Err(format!("median / floor got more than 20 % worse: {}", worse.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{check, compare, seconds, table, to_json};

    fn row(name: &str, median: f64, floor: Value) -> Value {
        json!({"name": name, "device": "cpu", "threads": 1, "dtype": "f32", "median_s": median,
            "spread_s": 0.001, "floor_s": floor, "peer": null, "peer_median_s": null,
            "peak_bytes": 1048576, "commit": "abc", "machine": "m"})
    }

    #[test]
    fn rows_are_checked() {
        check(&row("a/b/c/d", 0.5, json!(null))).unwrap();
        let mut missing = row("a", 0.5, json!(1.0));
        missing.as_object_mut().unwrap().remove("peer");
        assert!(check(&missing).unwrap_err().contains("`peer`"));
        let mut extra = row("a", 0.5, json!(1.0));
        extra["host"] = json!("x");
        assert!(check(&extra).unwrap_err().contains("`host`"));
        assert!(check(&row("a", 0.0, json!(1.0))).is_err());
    }

    #[test]
    fn a_file_reads_back() {
        let mut rows = vec![row("a", 0.5, json!(0.25)), row("b", 1.0, json!(null))];
        rows[1]["residual"] = json!(1e-7);
        rows[1]["peer_repeats"] = json!(null);
        rows.iter().for_each(|row| check(row).unwrap());
        let back: Vec<Value> = serde_json::from_str(&to_json(&rows)).unwrap();
        assert_eq!(back, rows);
    }

    #[test]
    fn the_table_shows_ratio_and_peak() {
        let text = table(&[row("a/b/c/d", 0.5, json!(0.25))]);
        assert!(text.contains("500 ms") && text.contains("2.00") && text.contains("1.0 MiB"));
        assert_eq!(seconds(2.5e-6), "2.50 µs");
        assert_eq!(seconds(0.0123), "12.3 ms");
    }

    #[test]
    fn what_no_gpu_has_measured_says_so() {
        let works = ["a/b/c/d", "e/f/g/h"].map(str::to_owned);
        let mut measured = row("a/b/c/d", 0.5, json!(0.25));
        let on_cpu = super::device_table(&works, &[measured.clone()]);
        assert_eq!(on_cpu.matches("not measured").count(), 2, "{on_cpu}");
        measured["device"] = json!("cuda");
        measured["machine"] = json!("a card, driver 1.2");
        let text = super::device_table(&works, &[measured]);
        assert_eq!(text.matches("not measured").count(), 1, "{text}");
        assert!(text.contains("500 ms") && text.contains("a card, driver 1.2"), "{text}");
    }

    #[test]
    fn the_orthogonal_table_compares_with_the_peer() {
        let mut row = row("ortho/b/c/d", 0.5, json!(0.25));
        row["peer"] = json!("torch");
        row["peer_median_s"] = json!(4.0);
        row["residual"] = json!(1.23e-7);
        let text = super::orthogonal_table(&[row]);
        assert!(text.contains("8.0") && text.contains("1.2e-7") && text.contains("2.00"), "{text}");
    }

    #[test]
    fn only_a_ratio_20_per_cent_worse_fails() {
        let old = [row("a", 1.0, json!(0.5)), row("b", 1.0, json!(0.5))];
        // Twice as slow on a machine that is twice as slow: the same ratio.
        compare(&old, &[row("a", 2.0, json!(1.0))]).unwrap();
        compare(&old, &[row("a", 1.19, json!(0.5))]).unwrap();
        let message = compare(&old, &[row("a", 1.0, json!(0.5)), row("b", 1.21, json!(0.5))]);
        assert!(message.unwrap_err().ends_with("worse: b"));
        // A comparison of nothing must not pass.
        assert!(compare(&old, &[row("c", 1.0, json!(0.5))]).is_err());
        assert!(compare(&old, &[row("a", 1.0, json!(null))]).is_err());
    }
}
