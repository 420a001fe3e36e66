//! The CUDA toolkit from Python wheels, and what they lack.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::Toolkit;
use crate::Result;
use crate::shell;

/// All of one CUDA minor, so that the PTX has the version that a driver of CUDA 13.0 loads.
const WHEELS: [&str; 8] = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
    "nvidia-cuda-nvrtc==13.0.*",
    "nvidia-cublas==13.1.*",
    "nvidia-curand==10.4.*",
];

/// What ranks with a GPU each sum by; 2.30 is what cudarc's bindings are of, and its library is apart from the others.
const NCCL: &str = "nvidia-nccl-cu13>=2.30";

pub(super) fn setup(root: &Path) -> Result<()> {
    let toolkit = Toolkit::of(root)?;
    let folder = shell::target_directory(&shell::metadata(root)?)?.join("cuda-toolkit");
    let install = |wheels: &[&str], folder: &Path| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--no-deps", "--target"]).arg(folder).args(wheels);
        shell::run(&mut pip)
    };
    if !toolkit.home.join("bin/nvcc").is_file() {
        install(&WHEELS, &folder)?;
    }
    if !toolkit.home.join("lib/libnccl.so").exists() {
        // In a folder of its own: pip passes over what it finds there already.
        install(&[NCCL], &folder.join("nccl"))?;
        let library = "../../../nccl/nvidia/nccl/lib/libnccl.so.2";
        link(library, &toolkit.home.join("lib/libnccl.so.2"))?;
    }
    links(&toolkit.home)?;
    stub(&toolkit.home)?;
    let mut nvcc = Command::new("nvcc");
    shell::run(toolkit.environment(&mut nvcc).arg("--version"))?;
    println!("the toolkit is in target/cuda-toolkit; next: cargo xtask cuda check");
    Ok(())
}

fn said(what: &Path) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{}: {error}", what.display())
}

/// `libX.so` beside each `libX.so.N`, and `lib64`.
fn links(home: &Path) -> Result<()> {
    let lib = home.join("lib");
    for entry in fs::read_dir(&lib).map_err(said(&lib))? {
        let name = entry.map_err(said(&lib))?.file_name();
        let name = name.to_string_lossy();
        if let Some((stem, _)) = name.split_once(".so.") {
            link(&name, &lib.join(format!("{stem}.so")))?;
        }
    }
    link("lib", &home.join("lib64"))
}

/// A symbolic link at `place` to `to`, unless something is there.
fn link(to: &str, place: &Path) -> Result<()> {
    if place.symlink_metadata().is_ok() {
        return Ok(());
    }
    #[cfg(unix)]
    return std::os::unix::fs::symlink(to, place).map_err(said(place));
    #[cfg(not(unix))]
    return Err(format!("{}: links to {to} are made on Unix only", place.display()));
}

/// The driver's library comes with the driver; one that links and fails at run time stands in for it.
fn stub(home: &Path) -> Result<()> {
    let header = home.join("include/cuda.h");
    let text = fs::read_to_string(&header).map_err(said(&header))?;
    let folder = home.join("lib/stubs");
    fs::create_dir_all(&folder).map_err(said(&folder))?;
    let source = folder.join("cuda.c");
    fs::write(&source, stub_source(&text)).map_err(said(&source))?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o"]);
    shell::run(compiler.arg(folder.join("libcuda.so.1")).arg(&source))?;
    link("stubs/libcuda.so.1", &home.join("lib/libcuda.so"))
}

/// A function that returns 999 (unknown error) for every name `cuXyz` in the header.
fn stub_source(header: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_call = |name: &&str| {
        name.strip_prefix("cu")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
    };
    let names: BTreeSet<&str> = header.split(|c| !word(c)).filter(is_call).collect();
    names.iter().map(|name| format!("int {name}(void) {{ return 999; }}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::stub_source;

    #[test]
    fn the_stub_has_every_call_once() {
        let header = "#define cuMemAlloc cuMemAlloc_v2\nCUresult CUDAAPI cuMemAlloc(size_t n);\n\
                      typedef int CUdevice; int cudaFree; /* see cuInit() */";
        let want = ["cuInit", "cuMemAlloc", "cuMemAlloc_v2"]
            .map(|name| format!("int {name}(void) {{ return 999; }}\n"));
        assert_eq!(stub_source(header), want.concat());
    }
}
