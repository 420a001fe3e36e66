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

/// Has the emulated driver's own tests decode every kernel that nvcc made under `target`, where the program was built.
pub(crate) fn kernels_are_known(root: &Path, target: &Path) -> Result<()> {
    let folders = with_ptx(&target.join("release/build"))?;
    if folders.is_empty() {
        return Err("the build of the program left no PTX".to_owned());
    }
    for folder in folders {
        // The whole workspace, so that nothing is compiled with other features than for the tests.
        let mut test = cargo(root);
        test.args(["test", "--release", "--workspace", "--test", "ptx", "files::"]);
        shell::run(test.env("VKD_SIMT_PTX", folder))?;
    }
    Ok(())
}

/// The folders of build scripts' results with PTX in them, sorted.
fn with_ptx(builds: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for build in fs::read_dir(builds).map_err(said(builds))? {
        let out = build.map_err(said(builds))?.path().join("out");
        // Not every build script leaves something.
        let Ok(entries) = fs::read_dir(&out) else { continue };
        let is_ptx = |path: PathBuf| path.extension().is_some_and(|extension| extension == "ptx");
        if entries.filter_map(std::result::Result::ok).any(|entry| is_ptx(entry.path())) {
            folders.push(out);
        }
    }
    folders.sort();
    Ok(folders)
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

/// What a program asked of the emulated device, as its driver wrote it at the end.
pub(crate) struct Report(Value);

impl Report {
    /// # Errors
    /// There is none, as if the program was run by another driver, or it isn't JSON.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(|error| format!("no report of the emulated device: {}", said(path)(error)))?;
        serde_json::from_str(&text)
            .map(Self)
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    /// All counts.
    ///
    /// # Errors
    /// One isn't there.
    pub(crate) fn line(&self) -> Result<String> {
        let count = |name: &str| self.count(name);
        let mega = |name: &str| count(name).map(|bytes| bytes as f64 / 1e6);
        let copies = |name: &str| -> Result<String> {
            let (calls, bytes) = (format!("/{name}/calls"), format!("/{name}/bytes"));
            Ok(format!("{} ({:.1} MB)", count(&calls)?, mega(&bytes)?))
        };
        let kernels = self.0["kernels"].as_object().ok_or_else(|| absent("kernels"))?;
        Ok(format!(
            "{} launches of {} kernels, {} products; copies to the device {}, to the host {}, on the device {}; \
             fills {}; waits {}; {} allocations, at most {:.1} MB at once; {} blocks left, {} bytes; \
             {} faults, {} refusals",
            count("/launches")?,
            kernels.len(),
            count("/products")?,
            copies("host_to_device")?,
            copies("device_to_host")?,
            copies("device_to_device")?,
            copies("memsets")?,
            count("/synchronizations")?,
            count("/allocations")?,
            mega("/peak_bytes")?,
            count("/blocks_left")?,
            count("/bytes_left")?,
            count("/faults")?,
            count("/refusals")?,
        ))
    }

    /// That kernels ran, and that nothing went wrong: a program may well overlook a call that fails, as one that frees in a `drop` does.
    ///
    /// # Errors
    /// What went wrong, as the driver says it.
    pub(crate) fn judge(&self) -> Result<()> {
        if self.count("/launches")? == 0 {
            return Err("no kernel ran on the emulated device".to_owned());
        }
        let (faults, refusals) = (self.count("/faults")?, self.count("/refusals")?);
        if (faults, refusals) == (0, 0) {
            return Ok(());
        }
        let failures = self.0["failures"].as_array().ok_or_else(|| absent("failures"))?;
        let failures: Vec<&str> = failures.iter().filter_map(Value::as_str).collect();
        let failures = failures.join("\n  ");
        Err(format!(
            "the emulated device: {faults} faults and {refusals} refusals, the first:\n  {failures}"
        ))
    }

    /// The number at a JSON pointer.
    fn count(&self, name: &str) -> Result<u64> {
        self.0.pointer(name).and_then(Value::as_u64).ok_or_else(|| absent(name))
    }
}

fn absent(name: &str) -> String {
    format!("the report of the emulated device has no `{}`", name.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Report;

    fn report() -> Value {
        let copies = |calls: u64, bytes: u64| json!({"calls": calls, "bytes": bytes});
        json!({
            "launches": 12, "products": 3, "host_to_device": copies(4, 1_500_000),
            "device_to_host": copies(5, 0), "device_to_device": copies(6, 60_000),
            "memsets": copies(7, 700_000), "synchronizations": 8, "allocations": 9,
            "peak_bytes": 2_000_000, "blocks_left": 1, "bytes_left": 10, "faults": 0, "refusals": 0,
            "failures": [], "kernels": {"a": 10, "b": 2},
        })
    }

    #[test]
    fn a_line_has_every_count() {
        let want = "12 launches of 2 kernels, 3 products; copies to the device 4 (1.5 MB), to the host 5 (0.0 MB), \
                    on the device 6 (0.1 MB); fills 7 (0.7 MB); waits 8; 9 allocations, at most 2.0 MB at once; \
                    1 blocks left, 10 bytes; 0 faults, 0 refusals";
        assert_eq!(Report(report()).line().as_deref(), Ok(want));
        assert_eq!(Report(report()).judge(), Ok(()));
    }

    #[test]
    fn a_count_that_is_not_there_is_an_error() {
        let names: Vec<String> =
            report().as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
        assert_eq!(names.len(), 15);
        for name in names.iter().filter(|name| *name != "failures") {
            let mut part = report();
            part[name] = Value::Null;
            let error = Report(part).line().err();
            assert!(error.is_some_and(|error| error.contains(name)), "{name}");
        }
        for name in ["launches", "faults", "refusals"] {
            let mut part = report();
            part[name] = Value::Null;
            assert!(Report(part).judge().is_err_and(|error| error.contains(name)), "{name}");
        }
    }

    #[test]
    fn what_went_wrong_is_said() {
        let changed = |name: &str, value: Value| {
            let mut report = report();
            report[name] = value;
            report["failures"] = json!(["cuMemFree: twice"]);
            Report(report).judge().err().unwrap_or_default()
        };
        assert!(changed("launches", json!(0)).contains("no kernel ran"));
        for name in ["faults", "refusals"] {
            let error = changed(name, json!(2));
            assert!(
                error.contains(&format!("2 {name}")) && error.contains("cuMemFree: twice"),
                "{error}"
            );
        }
        let no_file = Report::read(std::path::Path::new("no such file")).err();
        assert!(no_file.is_some_and(|error| error.contains("no report of the emulated device")));
    }
}
