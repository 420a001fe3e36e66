//! `cargo xtask cuda ..`: what the feature `cuda` needs on a machine without a GPU, the check of what it builds, and what travels to
//! a machine with one.

mod bundle;
mod check;
mod emulated;
mod setup;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::args;
use crate::shell;

pub(crate) use check::check;
pub(crate) use emulated::{Report, kernels_are_known, libraries};

pub(crate) const SETUP: args::Command = args::Command {
    name: "cuda setup",
    summary: "Put the CUDA toolkit from Python wheels under target/",
    details: "Installs nvcc, headers and libraries of CUDA 13.0 into target/cuda-toolkit with pip, adds the\n\
              names that a linker wants, and a libcuda that links and does nothing. Needs python3 with pip,\n\
              a C compiler and the network, once. 13.0, because newer PTX asks for a newer driver.",
    flags: &[],
    run: |_| setup::setup(&shell::root()?),
};

pub(crate) const CHECK: args::Command = args::Command {
    name: "cuda check",
    summary: "Compile everything with the feature cuda, and judge each kernel",
    details: "Builds every crate for capability 80 into target/cuda, then our kernels for sm_80 and sm_90, and\n\
              prints registers, shared memory, stack and spills of each. A spill or a local array is an error.\n\
              Needs `cargo xtask cuda setup` once; runs nothing on a GPU.",
    flags: &[args::Flag { name: "--kernels", value: None, help: "the kernels only" }],
    run: |args| check(&shell::root()?, args.has("--kernels")),
};

pub(crate) const BUNDLE: args::Command = args::Command {
    name: "cuda bundle",
    summary: "Pack the suite, the distillation and the benchmarks for a machine with a GPU",
    details: "Builds vkd-device with the feature cuda, stripped, and puts it with torch's scripts, run.sh and a README into\n\
              target/cuda-bundle and target/cuda-bundle.tar.gz, of at most 40 MB. The other machine needs a driver and CUDA's\n\
              libraries, no toolchain and no network. Needs `cargo xtask cuda setup` once, and tar.",
    flags: &[],
    run: |_| bundle::bundle(&shell::root()?),
};

/// The toolkit in the workspace's target folder.
pub(crate) struct Toolkit {
    /// As `CUDA_HOME`: has bin, include and lib.
    pub(crate) home: PathBuf,
    /// Where cargo builds with the feature, apart from the builds without it.
    pub(crate) target: PathBuf,
}

impl Toolkit {
    pub(crate) fn of(root: &Path) -> Result<Self> {
        Ok(Self::under(&shell::target_directory(&shell::metadata(root)?)?))
    }

    fn under(target: &Path) -> Self {
        Self { home: target.join("cuda-toolkit/nvidia/cu13"), target: target.join("cuda") }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.home.join("bin/nvcc").is_file() && self.home.join("lib/libcuda.so").exists()
    }

    /// What cargo, candle's build scripts and ours look at.
    pub(crate) fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for name in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"] {
            command.env(name, &self.home);
        }
        let old = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.home.join("bin")).chain(std::env::split_paths(&old));
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("PATH", path);
        }
        command.env("CUDA_COMPUTE_CAP", "80");
        command.env("RUSTFLAGS", format!("-L {}", self.home.join("lib").display()))
    }
}

/// Whether [`check()`] can run here.
pub(crate) fn is_set_up(root: &Path) -> bool {
    Toolkit::of(root).is_ok_and(|toolkit| toolkit.is_complete())
}
