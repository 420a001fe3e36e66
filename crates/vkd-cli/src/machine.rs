//! Where a run was made: processor, memory, commit. No host name, no user, no path.

use std::path::Path;
use std::process::Command;
use vkd_train::ComputeDevice;

/// The processor's model and how many hardware threads the process may use.
pub(crate) fn description() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    format!("{}, {} cores", model(&text).unwrap_or(std::env::consts::ARCH), processors())
}

fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim()).filter(|model| !model.is_empty())
}

/// Hardware threads that the process may use.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// How many runs train side by side: as many as were asked for, else one a processor, or one at a time on a GPU, whose memory they would
/// share.
pub(crate) fn jobs(asked: Option<u64>, device: ComputeDevice) -> usize {
    match (asked, device) {
        (Some(jobs), _) => usize::try_from(jobs).unwrap_or(usize::MAX),
        (None, ComputeDevice::Cpu) => processors(),
        (None, ComputeDevice::Cuda(_)) => 1,
    }
}

/// A number of kibibytes of /proc, in bytes; `None` where the system has no such file or line.
pub(crate) fn kibibytes(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The commit of the repository whose build folder this program lies in, `-dirty` where tracked files differ from it;
/// `None` for an installed program.
pub(crate) fn commit() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    let git = |arguments: &[&str]| git(program.parent()?, arguments);
    // Tracked in that repository: it is ours and not one that happens to lie around the program.
    git(&["ls-files", "--error-unmatch", ":/crates/vkd-cli/Cargo.toml"])?;
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { commit } else { format!("{commit}-dirty") })
}

fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_one_run_at_a_time_unless_told() {
        assert_eq!(jobs(None, ComputeDevice::Cpu), processors());
        assert_eq!(jobs(None, ComputeDevice::Cuda(0)), 1);
        assert_eq!(jobs(Some(3), ComputeDevice::Cuda(0)), 3);
    }

    #[test]
    fn lines_of_proc() {
        assert_eq!(model("processor : 0\nmodel name\t: A 1 GHz\n"), Some("A 1 GHz"));
        assert_eq!(model(""), None);
        assert_eq!(kibibytes("/nowhere", "MemTotal"), None);
        if Path::new("/proc/meminfo").exists() {
            assert!(kibibytes("/proc/meminfo", "MemTotal").is_some_and(|n| n > 1 << 20));
        }
    }
}
