//! `cargo xtask scale`: what several ranks cost and bring.

use crate::args::{Command, Flag};
use crate::shell::{self, cargo};

pub(crate) const COMMAND: Command = Command {
    name: "scale",
    summary: "Measure ranks: sums beside a plain loop of MPI, and the paper's step on one, two and four",
    details: "Needs mpirun, an MPI library with its headers and libclang; takes some minutes, with nothing else running.\n\
              docs/scale.md says what the rows are.",
    flags: &[
        Flag {
            name: "--json",
            value: Some("FILE"),
            help: "where the rows go [default: scale.json in the target folder]",
        },
        Flag {
            name: "--model",
            value: Some("FILE"),
            help: "measure nothing: print what the cost model makes of such a file",
        },
    ],
    run: |args| {
        let root = &shell::root()?;
        if !mpi() {
            return Err("expected mpirun, mpicc and libclang, got no such programs".to_owned());
        }
        let folder = shell::target_directory(&shell::metadata(root)?)?;
        let (flag, file) = match (args.value("--model"), args.value("--json")) {
            (Some(file), _) => ("--model", file.to_owned()),
            (None, Some(file)) => ("--json", file.to_owned()),
            (None, None) => ("--json", folder.join("scale.json").display().to_string()),
        };
        let build = ["build", "--release", "--workspace", "--bins", "--features"];
        shell::run(cargo(root).args(build).arg("vkd-benches/mpi"))?;
        let program = folder.join("release").join(format!("scale{}", std::env::consts::EXE_SUFFIX));
        shell::run(std::process::Command::new(program).args([flag, &file]).current_dir(root))
    },
};

/// Whether the feature `mpi` can be built and used here.
pub(crate) fn mpi() -> bool {
    shell::exists("mpirun") && shell::exists("mpicc") && libclang()
}

/// Whether bindings can be made: clang's library where the feature's builder looks for it.
fn libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() || shell::exists("llvm-config") {
        return true;
    }
    let inside = |folder: &std::path::Path| {
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        names.map(|entry| entry.file_name()).any(|name| {
            name.to_str().is_some_and(|name| name.starts_with("libclang") && name.contains(".so"))
        })
    };
    let versions = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let of_llvm = versions.filter(|e| e.file_name().to_string_lossy().starts_with("llvm-"));
    of_llvm.map(|entry| entry.path().join("lib")).any(|lib| inside(&lib))
        || ["/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu"]
            .iter()
            .any(|f| inside(f.as_ref()))
}
