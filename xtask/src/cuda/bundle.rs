//! One folder for a machine with a GPU that builds nothing and reaches no network.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Toolkit;
use crate::Result;
use crate::shell::{self, cargo};

/// Bytes of the packed bundle, at most.
const LIMIT: u64 = 40_000_000;

/// The peers' scripts that the works of benches/device.toml name, and what they share.
const PEERS: [&str; 4] = ["timing.py", "torch_norm.py", "torch_ortho.py", "torch_step.py"];

pub(super) fn bundle(root: &Path) -> Result<()> {
    let toolkit = Toolkit::of(root)?;
    if !toolkit.is_complete() {
        return Err("no CUDA toolkit under target/: run `cargo xtask cuda setup` first".to_owned());
    }
    // By the compiler's own strip, of this program alone: a profile that strips would compile everything again.
    let mut build = cargo(root);
    build.args(["rustc", "--release", "--package", "vkd-benches", "--bin", "vkd-device"]);
    build.args(["--features", "vkd-benches/cuda", "--target-dir"]).arg(&toolkit.target);
    shell::run(toolkit.environment(&mut build).args(["--", "-C", "strip=symbols"]))?;

    let target = shell::target_directory(&shell::metadata(root)?)?;
    let folder = target.join("cuda-bundle");
    let _ = fs::remove_dir_all(&folder);
    let peers = folder.join("peers");
    fs::create_dir_all(&peers).map_err(said("cuda-bundle"))?;
    let program = folder.join("vkd-device");
    fs::copy(toolkit.target.join("release/vkd-device"), &program).map_err(said("vkd-device"))?;
    for script in PEERS {
        fs::copy(root.join("benches/peers").join(script), peers.join(script))
            .map_err(said(script))?;
    }
    fs::write(folder.join("README.md"), include_str!("bundle.md")).map_err(said("README.md"))?;
    fs::write(folder.join("run.sh"), include_str!("run.sh")).map_err(said("run.sh"))?;
    executable(&folder.join("run.sh"))?;
    fs::write(folder.join("commit"), commit(root)).map_err(said("commit"))?;

    let packed = target.join("cuda-bundle.tar.gz");
    // Run inside the folder, so that the printed line names no folder of this machine.
    let mut tar = Command::new("tar");
    shell::run(tar.current_dir(&target).args(["-czf", "cuda-bundle.tar.gz", "cuda-bundle"]))?;
    let size = |path: &Path| fs::metadata(path).map(|meta| meta.len()).map_err(said("size"));
    let (program, packed) = (size(&program)?, size(&packed)?);
    println!(
        "target/cuda-bundle.tar.gz: {:.1} MB, with the program of {:.1} MB",
        packed as f64 / 1e6,
        program as f64 / 1e6
    );
    match packed <= LIMIT {
        true => Ok(()),
        false => Err(format!("the bundle has {packed} bytes, over the limit of {LIMIT}")),
    }
}

fn said(what: &str) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{what}: {error}")
}

/// The commit that is packed, `-dirty` where tracked files differ from it, `none` outside a repository.
fn commit(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "none".to_owned() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}-dirty"),
    }
}

#[cfg(unix)]
fn executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(said("run.sh"))
}

#[cfg(not(unix))]
fn executable(_path: &Path) -> Result<()> {
    Err("the bundle is for Linux, and made there".to_owned())
}

#[cfg(test)]
mod tests {
    use super::PEERS;

    #[test]
    fn every_script_that_a_work_names_is_packed() {
        let works = include_str!("../../../benches/device.toml");
        let named: Vec<&str> =
            works.split("script = \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(named.len() > 4 && named.iter().all(|script| PEERS.contains(script)), "{named:?}");
        // The one of works that name none.
        assert!(PEERS.contains(&"torch_ortho.py"));
    }
}
