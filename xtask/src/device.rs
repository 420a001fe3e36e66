//! `cargo xtask test` and `cargo xtask bench --device`: the program `vkd-device`, built and run.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::args;
use crate::bench::Request;
use crate::cuda::{self, Report, Toolkit};
use crate::rows;
use crate::shell::{self, Outcome, Steps, cargo};

pub(crate) const TEST: args::Command = args::Command {
    name: "test",
    summary: "Run the suite of a device: every op against f64 on the CPU, and a distillation",
    details: "On cuda it needs a GPU, its driver and a toolkit to build with (`cargo xtask cuda setup`). Where compute-sanitizer\n\
              is on the PATH the suite runs under its memcheck and racecheck too, elsewhere these print SKIPPED. On cpu the\n\
              suite compares the CPU with itself: that is how it is tested where there is no GPU. On emulated the program\n\
              for cuda runs its small cases on a driver that interprets PTX on the CPU, and what it asked of the device is\n\
              counted: it needs the toolkit and no GPU. Whatever goes wrong on it is an error, also where the program overlooks it.\n\
              First every kernel that nvcc made is decoded. The last step runs the small cases again and looks for races on shared memory.",
    flags: &[
        args::Flag {
            name: "--device",
            value: Some("D"),
            help: "cpu, cuda, cuda:N or emulated [default: cpu]",
        },
        args::Flag {
            name: "--filter",
            value: Some("S"),
            help: "only ops with S in their name, and nothing else",
        },
    ],
    run: |args| {
        test(&shell::root()?, args.value("--device").unwrap_or("cpu"), args.value("--filter"))
    },
};

/// NVIDIA's checker of memory accesses and of races.
const SANITIZER: &str = "compute-sanitizer";

/// The device `cuda` without a GPU.
const EMULATED: &str = "emulated";

/// The step that looks for races on the emulated device.
const RACES: &str = "races";

/// The program and how it is started.
struct Program {
    path: PathBuf,
    /// Folders of libraries that come before the machine's own.
    libraries: Vec<PathBuf>,
}

impl Program {
    /// Builds the program for a device.
    fn build(root: &Path, device: &str) -> Result<Self> {
        let name = format!("vkd-device{}", std::env::consts::EXE_SUFFIX);
        let mut build = cargo(root);
        if device == "cpu" {
            // The whole workspace, so that nothing is compiled with other features than for the tests.
            shell::run(build.args(["build", "--release", "--workspace", "--bin", "vkd-device"]))?;
            let folder = shell::target_directory(&shell::metadata(root)?)?;
            return Ok(Self { path: folder.join("release").join(name), libraries: Vec::new() });
        }
        let toolkit = Toolkit::of(root)?;
        build.args(["build", "--release", "--package", "vkd-benches", "--bin", "vkd-device"]);
        build.args(["--features", "vkd-benches/cuda", "--target-dir"]).arg(&toolkit.target);
        let mut libraries = match toolkit.is_complete() {
            true => {
                toolkit.environment(&mut build);
                vec![toolkit.home.join("lib")]
            }
            // The machine's own, found by the build scripts.
            false if shell::exists("nvcc") => Vec::new(),
            false => {
                return Err("no nvcc: run `cargo xtask cuda setup`, or put a CUDA toolkit's bin on the PATH".to_owned());
            }
        };
        shell::run(&mut build)?;
        if device == EMULATED {
            libraries.insert(0, cuda::libraries(root)?);
        }
        Ok(Self { path: toolkit.target.join("release").join(name), libraries })
    }

    /// Lets a program that starts this one find the libraries that it was linked with.
    fn environment<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        if !self.libraries.is_empty() {
            let old = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            let folders = self.libraries.iter().cloned().chain(std::env::split_paths(&old));
            let path = std::env::join_paths(folders)
                .map_err(|error| format!("LD_LIBRARY_PATH: {error}"))?;
            command.env("LD_LIBRARY_PATH", path);
        }
        Ok(command)
    }

    fn run(&self, words: &[&str]) -> Result<Outcome> {
        let mut command = Command::new(&self.path);
        shell::run(self.environment(&mut command)?.args(words)).map(|()| Outcome::Passed)
    }

    /// Runs a part on the emulated device, prints what it asked of it, whatever came of it, and fails where something went wrong on it.
    fn counted(&self, part: &str, words: &[&str]) -> Result<Outcome> {
        let folder = self.libraries.first().ok_or("no folder of the emulated driver")?;
        let report = folder.join(format!("{part}.json"));
        // That of an earlier run must not pass for this one's.
        match std::fs::remove_file(&report) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("{}: {error}", report.display()));
            }
            _ => {}
        }
        let mut command = Command::new(&self.path);
        self.environment(&mut command)?.args(words).env("VKD_SIMT_REPORT", &report);
        if part == RACES {
            command.env("VKD_SIMT_RACES", "1");
        }
        let outcome = shell::run(&mut command);
        let report = Report::read(&report);
        let line = report.as_ref().map_err(Clone::clone).and_then(Report::line);
        if let Ok(line) = &line {
            println!("{part}: {line}");
        }
        // What the program itself says comes first; it may have ended before there was a report.
        outcome?;
        line?;
        report?.judge().map(|()| Outcome::Passed)
    }

    /// The small part of the suite under a tool of the sanitizer.
    fn sanitized(&self, tool: &str, device: &str) -> Result<Outcome> {
        if device == "cpu" {
            return Ok(Outcome::Skipped(
                "it watches kernels of a GPU, and this is a CPU".to_owned(),
            ));
        }
        if !shell::exists(SANITIZER) {
            return Ok(Outcome::Skipped(format!(
                "`{SANITIZER}` is not on the PATH; the CUDA toolkit has it"
            )));
        }
        let mut command = Command::new(SANITIZER);
        self.environment(&mut command)?.args(["--tool", tool, "--error-exitcode", "1"]);
        command.arg(&self.path).args(["laws", "--device", device, "--small"]);
        shell::run(&mut command).map(|()| Outcome::Passed)
    }
}

fn test(root: &Path, device: &str, filter: Option<&str>) -> Result<()> {
    if device == EMULATED {
        return emulated(root, filter);
    }
    let program = Program::build(root, device)?;
    if let Some(filter) = filter {
        return program.run(&["laws", "--device", device, "--filter", filter]).map(|_| ());
    }
    let mut steps = Steps::default();
    steps.step("laws", || program.run(&["laws", "--device", device]))?;
    steps.step("digits", || program.run(&["digits", "--device", device]))?;
    for tool in ["memcheck", "racecheck"] {
        steps.step(tool, || program.sanitized(tool, device))?;
    }
    steps.summary();
    Ok(())
}

/// The suite's small cases and a short distillation of the program for `cuda`, on a driver that interprets its kernels on the CPU.
pub(crate) fn emulated(root: &Path, filter: Option<&str>) -> Result<()> {
    let program = Program::build(root, EMULATED)?;
    let laws = ["laws", "--device", "cuda", "--small"];
    if let Some(filter) = filter {
        return program.counted("laws", &[&laws[..], &["--filter", filter]].concat()).map(drop);
    }
    let mut steps = Steps::default();
    let target = Toolkit::of(root)?.target;
    steps.step("ptx", || cuda::kernels_are_known(root, &target).map(|()| Outcome::Passed))?;
    steps.step("laws", || program.counted("laws", &laws))?;
    let digits = ["digits", "--device", "cuda", "--small"];
    steps.step("digits", || program.counted("digits", &digits))?;
    steps.step(RACES, || program.counted(RACES, &laws))?;
    steps.summary();
    Ok(())
}

/// Measures the works of benches/device.toml; on the CPU with tiny sizes, as a check that they run.
pub(crate) fn bench(
    root: &Path,
    device: &str,
    request: &Request,
    python: Option<PathBuf>,
) -> Result<()> {
    if device == EMULATED {
        return Err("bench: an emulated device says nothing of time".to_owned());
    }
    let folder = shell::target_directory(&shell::metadata(root)?)?.join("vkd-bench");
    std::fs::create_dir_all(&folder).map_err(|error| format!("vkd-bench folder: {error}"))?;
    let on_cpu = device == "cpu";
    if on_cpu && (request.json.is_some() || request.baseline.is_some()) {
        return Err(
            "bench: --json and --baseline need a GPU: on the device cpu nothing is measured"
                .to_owned(),
        );
    }
    let program = Program::build(root, device)?;
    let gathered = folder.join("device.json");
    let mut command = Command::new(&program.path);
    program.environment(&mut command)?.args(["bench", "--device", device]).current_dir(root);
    if !on_cpu {
        command.arg("--json").arg(&gathered);
    }
    if request.quick {
        command.arg("--quick");
    }
    if let Some(filter) = &request.filter {
        command.args(["--filter", filter]);
    }
    crate::bench::ask_peer(&mut command, python.map(|python| (python, "torch")));
    shell::run(&mut command)?;
    if on_cpu {
        return Ok(());
    }
    let rows = rows::read(&gathered)?;
    println!("\n{}", rows::table(&rows));
    if let Some(path) = &request.json {
        std::fs::write(path, rows::to_json(&rows))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        println!("{} rows written to {}", rows.len(), path.display());
    }
    match &request.baseline {
        Some(baseline) => rows::compare(&rows::read(baseline)?, &rows),
        None => Ok(()),
    }
}
