//! `cargo xtask ci`: the one list of checks, cheapest first; the server runs the same command.

use std::path::Path;

use crate::Result;
use crate::args::{Args, Command, Flag};
use crate::shell::{self, Outcome, Steps, cargo};

pub(crate) const COMMAND: Command = Command {
    name: "ci",
    summary: "Run every check, cheapest first, and stop at the first that fails",
    details: "fmt, tidy, typos, deny, clippy, tests, docs --check, examples, rustdoc.\n\
              typos and cargo-deny are optional: where they are absent the step prints SKIPPED; so are tests of several\n\
              ranks, which the step `test` runs where there is MPI.\n\
              With --full: also standalone, the tests that take minutes, cuda check, the emulated device, and bench --quick.",
    flags: &[Flag { name: "--full", value: None, help: "also what takes long" }],
    run,
};

/// The targets that hold tests of minutes, which are `#[ignore]`d.
const LONG: [&str; 7] =
    ["--lib", "--test", "large", "--test", "vidt_long", "--example", "gan_digits"];

fn run(args: &Args) -> Result<()> {
    let root = &shell::root()?;
    let mut steps = Steps::default();
    let mpi = crate::scale::mpi();
    steps.step("fmt", || passed(cargo(root).args(["fmt", "--all", "--", "--check"])))?;
    steps.step("tidy", || crate::tidy::check(root).map(|()| Outcome::Passed))?;
    steps.step("typos", || optional(root, "typos", "typos", &[]))?;
    steps.step("deny", || {
        let arguments = ["check", "--hide-inclusion-graph", "licenses", "bans", "sources"];
        optional(root, "cargo-deny", "cargo-deny", &arguments)
    })?;
    steps.step("clippy", || {
        let arguments = ["clippy", "--workspace", "--all-targets", "--release", "--"];
        passed(cargo(root).args(arguments).args(["-D", "warnings"]))
    })?;
    if mpi && args.has("--full") {
        steps.step("clippy with mpi", || {
            let features = ["--features", "vkd-cli/mpi,vkd-benches/mpi", "--", "-D", "warnings"];
            let arguments = ["clippy", "--workspace", "--all-targets", "--release"];
            passed(cargo(root).args(arguments).args(features))
        })?;
    }
    steps.step("test", || {
        // A red server must be red again at home; `cargo test` by hand draws a new seed each time.
        let seed = ("PROPTEST_RNG_SEED", "0");
        let mut test = cargo(root);
        test.args(["test", "--workspace", "--release"]).env(seed.0, seed.1);
        // Beside the other tests, so that nothing is compiled twice; clippy has seen the crates without.
        if mpi {
            test.args(["--features", "vkd-cli/mpi"]);
        }
        passed(&mut test)
    })?;
    // By the program that the tests have built, so that none is compiled for this alone.
    steps.step("docs --check", || {
        let folder = shell::target_directory(&shell::metadata(root)?)?.join("release");
        let program = folder.join(format!("vkd{}", std::env::consts::EXE_SUFFIX));
        crate::docs::check(root, Some(&program)).map(|()| Outcome::Passed)
    })?;
    if !mpi {
        let reason = "needs mpirun, mpicc and libclang";
        steps.step("test of ranks", || Ok(Outcome::Skipped(reason.to_owned())))?;
    }
    steps.step("examples", || examples(root))?;
    steps.step("doc", || {
        // Release, so that the metadata clippy made of the dependencies serves again.
        let arguments = ["doc", "--workspace", "--no-deps", "--release"];
        passed(cargo(root).args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    if args.has("--full") {
        steps.step("standalone", || crate::standalone::check(root).map(|()| Outcome::Passed))?;
        steps.step("long tests", || {
            let test = ["test", "--release", "--workspace"];
            passed(cargo(root).args(test).args(LONG).args(["--", "--ignored"]))
        })?;
        let with_toolkit = |work: &dyn Fn() -> Result<()>| match crate::cuda::is_set_up(root) {
            true => work().map(|()| Outcome::Passed),
            false => {
                Ok(Outcome::Skipped("no toolkit; `cargo xtask cuda setup` gets it".to_owned()))
            }
        };
        steps.step("cuda check", || with_toolkit(&|| crate::cuda::check(root, false)))?;
        steps.step("emulated device", || with_toolkit(&|| crate::device::emulated(root, None)))?;
        steps.step("bench --quick", || {
            let request = crate::bench::Request { quick: true, ..Default::default() };
            crate::bench::measure(root, &request).map(|()| Outcome::Passed)
        })?;
    } else {
        let reason = "compiling candle for CUDA takes minutes; --full does it";
        steps.step("cuda check", || Ok(Outcome::Skipped(reason.to_owned())))?;
    }
    steps.summary();
    Ok(())
}

fn passed(command: &mut std::process::Command) -> Result<Outcome> {
    shell::run(command).map(|()| Outcome::Passed)
}

/// Runs a tool that a contributor need not have.
fn optional(root: &Path, program: &str, package: &str, arguments: &[&str]) -> Result<Outcome> {
    if !shell::exists(program) {
        return Ok(Outcome::Skipped(format!("`{package}` is not installed")));
    }
    passed(std::process::Command::new(program).args(arguments).current_dir(root))
}

/// Runs each example that `cargo test` has just built: an example that only compiles may still lie. One with tests in it
/// (`test = true`) was run by them, and `cargo test` has built no program of it.
fn examples(root: &Path) -> Result<Outcome> {
    let metadata = shell::metadata(root)?;
    let folder = shell::target_directory(&metadata)?.join("release").join("examples");
    let mut count = 0;
    for package in shell::packages(&metadata) {
        let targets = package["targets"].as_array().map_or(&[][..], Vec::as_slice);
        for target in targets {
            if !target["kind"].as_array().is_some_and(|kinds| kinds.contains(&"example".into())) {
                continue;
            }
            if target["test"] == true {
                continue;
            }
            let name = target["name"].as_str().unwrap_or_default();
            let program = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
            shell::run(std::process::Command::new(program).current_dir(root))?;
            count += 1;
        }
    }
    println!("{count} examples ran");
    Ok(Outcome::Passed)
}
