//! `cargo xtask bench`: runs the criterion benches and gathers their rows.

use std::path::{Path, PathBuf};
use std::process;

use serde_json::Value;

use crate::Result;
use crate::args::{Command, Flag};
use crate::{rows, shell};

pub(crate) const COMMAND: Command = Command {
    name: "bench",
    summary: "Measure the works of benches/shapes.toml beside their floors",
    details: "Prints a table. A floor is the same FLOPs and bytes as candle matmuls and plain\n\
              copies, timed in the same run; median and spread (the median absolute deviation,\n\
              scaled to a standard deviation) are criterion's. --against also asks the peers of a\n\
              library, torch, scipy or pycocotools, with the Python in VKD_PYTHON, or with that of\n\
              an environment that is made in the target folder and gets the library from pip.\n\
              --device measures the works of benches/device.toml on a GPU instead, against torch on the same one;\n\
              on cpu these have tiny sizes, which shows that they run.",
    flags: &[
        Flag { name: "--quick", value: None, help: "few samples: does it run, not how fast" },
        Flag { name: "--json", value: Some("FILE"), help: "also write the rows" },
        Flag { name: "--filter", value: Some("S"), help: "only works whose name contains S" },
        Flag {
            name: "--against",
            value: Some("LIBRARY"),
            help: "also measure torch, scipy or pycocotools, interleaved",
        },
        Flag {
            name: "--device",
            value: Some("D"),
            help: "cuda, cuda:N or cpu: the works of a GPU",
        },
        Flag {
            name: "--baseline",
            value: Some("FILE"),
            help: "fail where median / floor got 20 % worse than in FILE",
        },
    ],
    run: |args| {
        let request = Request {
            quick: args.has("--quick"),
            json: args.value("--json").map(PathBuf::from),
            filter: args.value("--filter").map(str::to_owned),
            against: args.value("--against").map(str::to_owned),
            baseline: args.value("--baseline").map(PathBuf::from),
        };
        let root = &shell::root()?;
        match args.value("--device") {
            None => measure(root, &request),
            Some(device) => on_device(root, device, &request),
        }
    },
};

/// Tells the benches which Python measures the peer, and of which library: scripts of others are not asked.
const PEER_PYTHON: &str = "VKD_BENCH_PEER_PYTHON";
const PEER_LIBRARY: &str = "VKD_BENCH_PEER_LIBRARY";

/// The libraries with scripts in benches/peers, each with what pip installs beside numpy.
const LIBRARIES: [(&str, &str); 3] =
    [("torch", "torch==2.15.*"), ("scipy", "scipy==1.*"), ("pycocotools", "pycocotools==2.0.*")];

/// Bytes below which glibc's allocator neither maps nor returns memory; other allocators ignore it.
const KEEP_MEMORY: &str = "4294967296";

/// What to measure, and what to do with the rows.
#[derive(Default)]
pub(crate) struct Request {
    pub(crate) quick: bool,
    pub(crate) json: Option<PathBuf>,
    pub(crate) filter: Option<String>,
    pub(crate) against: Option<String>,
    pub(crate) baseline: Option<PathBuf>,
}

pub(crate) fn measure(root: &Path, request: &Request) -> Result<()> {
    // Before minutes of measuring: a wrong file name or filter should cost nothing.
    let baseline = request.baseline.as_deref().map(rows::read).transpose()?;
    let works = works(root)?;
    let filter = request.filter.as_deref().unwrap_or_default();
    let wanted: Vec<&String> = works.iter().filter(|work| work.contains(filter)).collect();
    if wanted.is_empty() {
        return Err(format!("no work contains `{filter}`; known:\n  {}", works.join("\n  ")));
    }
    let metadata = shell::metadata(root)?;
    let folder = shell::target_directory(&metadata)?.join("vkd-bench");
    std::fs::create_dir_all(&folder).map_err(|error| format!("vkd-bench folder: {error}"))?;
    let gathered = folder.join("rows.jsonl");
    std::fs::write(&gathered, "").map_err(|error| format!("rows.jsonl: {error}"))?;

    let python = peer(&folder, request.against.as_deref())?;

    let mut command = shell::cargo(root);
    // The whole workspace, so that candle keeps the features it has in `cargo test --workspace`
    // and is not compiled again; the named targets, so that nothing else is built.
    command.args(["bench", "--workspace"]);
    for target in targets(&metadata) {
        command.args(["--bench", target]);
    }
    command.arg("--");
    if request.quick {
        command.arg("--quick");
    }
    if !filter.is_empty() {
        command.args(["--filter", filter]);
    }
    // By environment, so that the printed line names no folder of this machine.
    command.env("VKD_BENCH_FOLDER", &folder);
    ask_peer(&mut command, python);
    // As `vkd distill` runs its workers: freed memory is kept, so that no step faults its pages in again. The benches start
    // the peer, which inherits it.
    for name in ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"] {
        command.env(name, KEEP_MEMORY);
    }
    // candle's pool for elementwise ops spins for about a millisecond after each one, on cores that rayon's threads then
    // lack: times come in two kinds, up to twofold apart. The workers have no such pool; here it goes to sleep at once.
    command.env("CANDLE_BARRIER_POOL_SPIN_LIMIT", "100");
    shell::run(&mut command)?;

    let text =
        std::fs::read_to_string(&gathered).map_err(|error| format!("rows.jsonl: {error}"))?;
    let rows = text
        .lines()
        .map(|line| serde_json::from_str(line).map_err(|error| format!("rows.jsonl: {error}")))
        .collect::<Result<Vec<Value>>>()?;
    rows.iter().try_for_each(rows::check)?;
    println!("\n{}", rows::table(&rows));
    if let Some(path) = &request.json {
        std::fs::write(path, rows::to_json(&rows))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        println!("{} rows written to {}", rows.len(), path.display());
    }
    let missing: Vec<&str> = wanted
        .into_iter()
        .filter(|work| !rows.iter().any(|row| row["name"] == **work))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        return Err(format!("in shapes.toml but measured by no bench: {}", missing.join(", ")));
    }
    match &baseline {
        Some(baseline) => rows::compare(baseline, &rows),
        None => Ok(()),
    }
}

/// The works of a GPU.
fn on_device(root: &Path, device: &str, request: &Request) -> Result<()> {
    if let Some(other) = request.against.as_deref().filter(|library| *library != "torch") {
        return Err(format!("--against: expected torch with --device, got {other}"));
    }
    let folder = shell::target_directory(&shell::metadata(root)?)?.join("vkd-bench");
    std::fs::create_dir_all(&folder).map_err(|error| format!("vkd-bench folder: {error}"))?;
    let python = peer(&folder, request.against.as_deref())?.map(|(python, _)| python);
    crate::device::bench(root, device, request, python)
}

/// The Python of a peer's library, where one is named.
fn peer(folder: &Path, library: Option<&str>) -> Result<Option<(PathBuf, &'static str)>> {
    let Some(name) = library else { return Ok(None) };
    match LIBRARIES.into_iter().find(|(library, _)| *library == name) {
        Some((library, package)) => Ok(Some((peer_python(folder, library, package)?, library))),
        None => {
            let known = LIBRARIES.map(|(library, _)| library).join(", ");
            Err(format!("--against: expected one of {known}, got {name}"))
        }
    }
}

/// Tells a bench which Python to ask, or none.
pub(crate) fn ask_peer(command: &mut process::Command, python: Option<(PathBuf, &str)>) {
    command.env_remove(PEER_PYTHON);
    if let Some((python, library)) = python {
        command.env(PEER_PYTHON, python).env(PEER_LIBRARY, library);
    }
}

/// A Python with a library: VKD_PYTHON, or that of an environment which is made once.
fn peer_python(folder: &Path, library: &str, package: &str) -> Result<PathBuf> {
    let has_it = |python: &Path| {
        let mut import = process::Command::new(python);
        shell::run(import.args(["-c", &format!("import {library}, numpy, scipy")]))
    };
    if let Some(python) = std::env::var_os("VKD_PYTHON").map(PathBuf::from) {
        // The benches run in another folder. Links stay: an environment's python is one.
        let python = match python.components().count() {
            0 | 1 => python,
            _ => std::path::absolute(&python).map_err(|error| format!("VKD_PYTHON: {error}"))?,
        };
        has_it(&python).map_err(|error| format!("VKD_PYTHON has no {library}: {error}"))?;
        return Ok(python);
    }
    let venv = folder.join("venv");
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if !python.is_file() || has_it(&python).is_err() {
        let wrong = |error| {
            format!(
                "--against {library}: no environment, set VKD_PYTHON to a Python with {library}: {error}"
            )
        };
        // Run inside the folder, so that the printed line names no folder of this machine.
        let mut make = process::Command::new("python3");
        shell::run(make.current_dir(folder).args(["-m", "venv", "venv"])).map_err(wrong)?;
        let mut install = process::Command::new(&python);
        shell::run(install.args(["-m", "pip", "install", package, "numpy", "scipy"]))
            .map_err(wrong)?;
        has_it(&python).map_err(wrong)?;
    }
    Ok(python)
}

/// The bench targets of vkd-benches.
fn targets(metadata: &Value) -> Vec<&str> {
    let packages = shell::packages(metadata).iter().filter(|p| p["name"] == "vkd-benches");
    packages
        .flat_map(|package| package["targets"].as_array().map_or(&[][..], Vec::as_slice))
        .filter(|target| target["kind"] == serde_json::json!(["bench"]))
        .filter_map(|target| target["name"].as_str())
        .collect()
}

/// The names of all works: the lines `name = ".."` of benches/shapes.toml.
fn works(root: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(root.join("benches/shapes.toml"))
        .map_err(|error| format!("benches/shapes.toml: {error}"))?;
    Ok(names(&text))
}

pub(crate) fn names(shapes: &str) -> Vec<String> {
    shapes
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn works_are_read_from_their_lines() {
        let text = "# name = \"no\"\n[[work]]\nname = \"a/b/c/d\"\nreason = \"x\"\n";
        assert_eq!(names(text), ["a/b/c/d"]);
    }
}
