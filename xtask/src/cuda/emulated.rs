//! The driver that runs kernels on the CPU, in the place of the libraries that a program with the feature `cuda` is linked with.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::shell::{self, cargo};

/// The libraries that it stands in for, by the names that a program looks for.
const NAMES: [&str; 3] = ["libcuda.so.1", "libcublas.so.13", "libcurand.so.10"];

/// Builds it, and returns a folder that has it under all its names.
pub(crate) fn libraries(root: &Path) -> Result<PathBuf> {
    // The whole workspace, so that nothing is compiled with other features than for the tests.
    shell::run(cargo(root).args(["build", "--release", "--workspace", "--lib"]))?;
    let target = shell::target_directory(&shell::metadata(root)?)?;
    let folder = target.join("cuda-emulated");
    fs::create_dir_all(&folder).map_err(said(&folder))?;
    for name in NAMES {
        link("../release/libvkd_simt.so", &folder.join(name))?;
    }
    Ok(folder)
}

fn said(what: &Path) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{}: {error}", what.display())
}

/// A symbolic link at `place`, in the place of an older one.
fn link(to: &str, place: &Path) -> Result<()> {
    if place.symlink_metadata().is_ok() {
        fs::remove_file(place).map_err(said(place))?;
    }
    #[cfg(unix)]
    return std::os::unix::fs::symlink(to, place).map_err(said(place));
    #[cfg(not(unix))]
    return Err(format!("{}: links to {to} are made on Unix only", place.display()));
}

/// Reads what a program asked of the emulated device, in one line.
pub(crate) fn counts(report: &Path) -> Result<String> {
    let text = fs::read_to_string(report).map_err(said(report))?;
    let report: Value =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", report.display()))?;
    Ok(line(&report))
}

fn line(report: &Value) -> String {
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let mega = |value: &Value| count(value) as f64 / 1e6;
    let copies = |name: &str| {
        let copies = &report[name];
        format!("{} ({:.1} MB)", count(&copies["calls"]), mega(&copies["bytes"]))
    };
    format!(
        "{} launches of {} kernels, {} products; copies to the device {}, to the host {}, on the device {}; \
         fills {}; waits {}; {} allocations, at most {:.1} MB at once; {} blocks left; {} faults",
        count(&report["launches"]),
        report["kernels"].as_object().map_or(0, serde_json::Map::len),
        count(&report["products"]),
        copies("host_to_device"),
        copies("device_to_host"),
        copies("device_to_device"),
        copies("memsets"),
        count(&report["synchronizations"]),
        count(&report["allocations"]),
        mega(&report["peak_bytes"]),
        count(&report["blocks_left"]),
        count(&report["faults"]),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::line;

    #[test]
    fn a_line_has_every_count() {
        let copies = |calls: u64, bytes: u64| json!({"calls": calls, "bytes": bytes});
        let report = json!({
            "launches": 12, "products": 3, "host_to_device": copies(4, 1_500_000),
            "device_to_host": copies(5, 0), "device_to_device": copies(6, 60_000),
            "memsets": copies(7, 700_000), "synchronizations": 8, "allocations": 9,
            "peak_bytes": 2_000_000, "blocks_left": 1, "bytes_left": 10, "faults": 0,
            "kernels": {"a": 10, "b": 2},
        });
        let want = "12 launches of 2 kernels, 3 products; copies to the device 4 (1.5 MB), to the host 5 (0.0 MB), \
                    on the device 6 (0.1 MB); fills 7 (0.7 MB); waits 8; 9 allocations, at most 2.0 MB at once; \
                    1 blocks left; 0 faults";
        assert_eq!(line(&report), want);
    }
}
