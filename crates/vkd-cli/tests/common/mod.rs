//! The command line as a child process.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::path::Path;
use std::process::{Command, Output};

/// `vkd ARGS` in `dir`.
pub(crate) fn vkd(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vkd")).current_dir(dir).args(args).output().unwrap()
}

/// What it prints where it must succeed.
pub(crate) fn good(dir: &Path, args: &[&str]) -> String {
    let out = vkd(dir, args);
    assert!(out.status.success(), "vkd {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What it complains of where it must fail, without a panic.
pub(crate) fn bad(dir: &Path, args: &[&str]) -> String {
    let out = vkd(dir, args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "vkd {args:?} must fail");
    assert!(!text.contains("panicked") && !text.contains("internal fault"), "{text}");
    text
}
