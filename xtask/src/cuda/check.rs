//! Everything with the feature `cuda` compiled once, and the resources of every kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Toolkit;
use crate::Result;
use crate::shell::{self, cargo};

const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90"];

/// Builds all crates, unless `kernels_only`, and judges the kernels.
pub(crate) fn check(root: &Path, kernels_only: bool) -> Result<()> {
    let toolkit = found(root)?;
    if !kernels_only {
        // The binary needs every crate, and links: that is where a missing symbol shows.
        let mut build = cargo(root);
        let nccl = toolkit.home.join("lib/libnccl.so").exists();
        let features = if nccl && crate::scale::mpi() { "vkd-cli/nccl" } else { "vkd-cli/cuda" };
        if features == "vkd-cli/cuda" {
            println!(
                "SKIPPED: ranks on GPUs, as there is no MPI to build with, or no NCCL (cargo xtask cuda setup)"
            );
        }
        build.args(["build", "--release", "--package", "vkd-cli", "--features", features]);
        shell::run(toolkit.environment(&mut build).arg("--target-dir").arg(&toolkit.target))?;
    }
    let mut findings = 0;
    println!(
        "{:<34} {:>6} {:>9} {:>7} {:>6} {:>6}",
        "kernel", "arch", "registers", "shared", "stack", "spills"
    );
    for source in sources(root)? {
        for architecture in ARCHITECTURES {
            for kernel in compile(root, &toolkit, &source, architecture)? {
                let Kernel { name, registers, shared, stack, spills } = &kernel;
                let mark = if kernel.is_fine() { "" } else { "  <- finding" };
                findings += usize::from(!kernel.is_fine());
                println!(
                    "{name:<34} {architecture:>6} {registers:>9} {shared:>7} {stack:>6} {spills:>6}{mark}"
                );
            }
        }
    }
    match findings {
        0 => Ok(()),
        n => Err(format!("{n} functions spill registers or keep arrays in local memory")),
    }
}

/// The toolkit in cargo's target folder, or else in the workspace's own `target/`: `CARGO_TARGET_DIR` moves the one and not
/// the other, and a shell that builds with the feature has it set.
fn found(root: &Path) -> Result<Toolkit> {
    let (set, own) = (Toolkit::of(root)?, Toolkit::under(&root.join("target")));
    if set.is_complete() {
        return Ok(set);
    }
    if own.is_complete() {
        return Ok(own);
    }
    let moved = std::env::var_os("CARGO_TARGET_DIR").map_or("", |_| " (CARGO_TARGET_DIR is set)");
    Err(format!(
        "expected a CUDA toolkit with bin/nvcc and lib/libcuda.so in {}{moved}, got none: run `cargo xtask cuda setup` first",
        set.home.display()
    ))
}

/// `crates/*/src/ops/*/*.cu`, sorted.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let mut found = Vec::new();
    for package in list(&root.join("crates")) {
        for op in list(&package.join("src/ops")) {
            found
                .extend(list(&op).into_iter().filter(|p| p.extension().is_some_and(|e| e == "cu")));
        }
    }
    found.sort();
    if found.is_empty() { Err("no kernels under crates/*/src/ops".to_owned()) } else { Ok(found) }
}

/// The kernels of one file as ptxas reports them.
fn compile(
    root: &Path,
    toolkit: &Toolkit,
    source: &Path,
    architecture: &str,
) -> Result<Vec<Kernel>> {
    fs::create_dir_all(&toolkit.target).map_err(|error| format!("target/cuda: {error}"))?;
    let mut nvcc = Command::new("nvcc");
    toolkit.environment(&mut nvcc);
    nvcc.args(["-cubin", "-std=c++17", "-O3", "-Xptxas", "-v", "-arch", architecture]);
    nvcc.arg("-I").arg(root.join("crates/vkd-norm/src/ops"));
    nvcc.arg("-o").arg(toolkit.target.join("kernel.cubin")).arg(source);
    let out = nvcc.output().map_err(|error| format!("nvcc did not start: {error}"))?;
    let report = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        return Err(format!("{}: nvcc failed\n{report}", source.display()));
    }
    let kernels = read(&report);
    if kernels.is_empty() {
        return Err(format!("{}: ptxas reported no kernel\n{report}", source.display()));
    }
    Ok(kernels)
}

/// Resources of one kernel, or of a function that is not inlined: bytes but for the registers.
#[derive(Debug, Default, PartialEq)]
struct Kernel {
    name: String,
    registers: u32,
    shared: u32,
    stack: u32,
    spills: u32,
}

impl Kernel {
    fn is_fine(&self) -> bool {
        self.stack == 0 && self.spills == 0
    }
}

/// Reads what `ptxas -v` says.
fn read(report: &str) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    // The number before each of the words, as in `384 bytes smem`.
    let before = |line: &str, word: &str| -> u32 {
        let at = line.find(word).unwrap_or(0);
        line[..at].split_whitespace().next_back().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let mut entry = String::new();
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            entry = rest.split('\'').next().unwrap_or_default().to_owned();
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            // What is called is reported with its caller's name before it.
            let name =
                if name == entry { name.to_owned() } else { format!("{entry} > {}", short(name)) };
            kernels.push(Kernel { name, ..Kernel::default() });
        } else if line.contains("bytes stack frame") {
            if let Some(kernel) = kernels.last_mut() {
                kernel.stack = before(line, " bytes stack frame");
                kernel.spills =
                    before(line, " bytes spill stores") + before(line, " bytes spill loads");
            }
        } else if line.contains("Used ")
            && let Some(kernel) = kernels.iter_mut().rev().find(|kernel| kernel.name == entry)
        {
            kernel.registers = before(line, " registers");
            kernel.shared = before(line, " bytes smem");
        }
    }
    // A function that is called and in order is of no interest by itself.
    kernels.retain(|kernel| !kernel.name.contains(" > ") || !kernel.is_fine());
    kernels
}

fn short(mangled: &str) -> &str {
    mangled.get(..24).unwrap_or(mangled)
}

#[cfg(test)]
mod tests {
    use super::{Kernel, read};

    #[test]
    fn the_report_is_read() {
        let report = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'a_f32' for 'sm_80'\n\
            ptxas info    : Function properties for a_f32\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 48 registers, used 1 barriers, 384 bytes smem, 416 bytes cmem[0]\n\
            ptxas info    : Function properties for _Zcareful\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Compiling entry function 'b_f32' for 'sm_80'\n\
            ptxas info    : Function properties for b_f32\n    \
            8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Used 32 registers, used 0 barriers, 404 bytes cmem[0]\n\
            ptxas info    : Function properties for _Zhelper\n    \
            40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n";
        let kernel = |name: &str, registers, shared, stack, spills| Kernel {
            name: name.to_owned(),
            registers,
            shared,
            stack,
            spills,
        };
        let got = read(report);
        let want = [
            kernel("a_f32", 48, 384, 0, 0),
            kernel("b_f32", 32, 0, 8, 8),
            kernel("b_f32 > _Zhelper", 0, 0, 40, 0),
        ];
        assert_eq!(got, want);
        assert_eq!(got.iter().filter(|kernel| !kernel.is_fine()).count(), 2);
    }
}
