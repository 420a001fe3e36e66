//! Rules on the text of one Rust file.

use super::scan::{line_of, mask, tokens, without_test_modules};
use super::{Finding, names};

/// Files beside `ops/*/cuda.rs` that may say `unsafe`, or folders of such files, each with its reason.
const UNSAFE_FILES: [(&str, &str); 7] = [
    ("benches/src/alloc.rs", "a counting allocator must implement the unsafe trait GlobalAlloc"),
    ("benches/src/bin/device/driver.rs", "stands between the program and functions of C"),
    ("crates/vkd-simt/src/driver/", "functions of C, whose arguments are pointers"),
    ("crates/vkd-simt/src/memory.rs", "device memory is raw memory of the host, by address"),
    ("crates/vkd-simt/src/blas.rs", "matrices in that memory"),
    ("crates/vkd-simt/src/ptx/access.rs", "a kernel's accesses of that memory"),
    ("crates/vkd-simt/tests/device/mod.rs", "calls of functions of C"),
];

const LIMIT: usize = 500;
const AIM: usize = 250;

/// All rules that look at one `.rs` file; `path` is relative to the root, with slashes.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let masked = mask(text);
    let in_src = path.contains("/src/");
    findings.extend(size(path, text));
    findings.extend(unsafe_code(path, &masked));
    if in_src {
        findings.extend(header(text));
    }
    if path.starts_with("crates/") {
        findings.extend(foreign_module(&masked));
    }
    if path.starts_with("crates/") && in_src && !is_test(path) {
        let masked = without_test_modules(&masked);
        findings.extend(no_bwd(&masked));
        findings.extend(names::check(&masked));
    }
    findings
}

/// Integration tests, and unit tests in a file of their own.
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

fn size(path: &str, text: &str) -> Option<Finding> {
    let lines = text.lines().count();
    (lines > LIMIT && !is_test(path))
        .then(|| Finding::new("size", 0, format!("{lines} lines; split it, the limit is {LIMIT}")))
}

/// Long but allowed: a note, not a finding.
pub(super) fn size_note(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > AIM && lines <= LIMIT && !is_test(path))
        .then(|| format!("{path}: {lines} lines; aim at {AIM}"))
}

fn header(text: &str) -> Option<Finding> {
    (!text.starts_with("//!"))
        .then(|| Finding::new("header", 1, "start with `//!` and say what the file is for"))
}

fn unsafe_code(path: &str, masked: &str) -> Vec<Finding> {
    let kernel_launch = path.contains("/src/ops/") && path.ends_with("/cuda.rs");
    if kernel_launch || UNSAFE_FILES.iter().any(|(place, _)| is_at(path, place)) {
        return Vec::new();
    }
    let message = "`unsafe` outside ops/*/cuda.rs and outside the files listed in tidy";
    tokens(masked)
        .iter()
        .filter(|(_, token)| *token == "unsafe")
        .map(|(at, _)| Finding::new("unsafe", line_of(masked, *at), message))
        .collect()
}

/// Whether a path is this file's, or in this folder where it ends with a slash.
fn is_at(path: &str, place: &str) -> bool {
    path == place || (place.ends_with('/') && path.starts_with(place))
}

/// A file belongs to one crate: `#[path]` reaches where neither the edges nor a package can follow.
fn foreign_module(masked: &str) -> Vec<Finding> {
    let message = "`#[path]`: a module's file stands where its name says";
    tokens(masked)
        .windows(3)
        .filter(|window| [window[0].1, window[1].1, window[2].1] == ["#", "[", "path"])
        .map(|window| Finding::new("path_attr", line_of(masked, window[0].0), message))
        .collect()
}

/// `.._no_bwd` cuts the tape: it may stand in a backward pass, or where the name says so.
fn no_bwd(masked: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut stack: Vec<Option<&str>> = Vec::new();
    let mut pending = None;
    // Brackets opened since `fn name`: the `;` of an array type does not end a signature.
    let mut brackets = 0usize;
    let tokens = tokens(masked);
    let mut previous = "";
    for (at, token) in tokens {
        match token {
            "{" => stack.push(pending.take()),
            "}" => drop(stack.pop()),
            "(" | "[" => brackets += 1,
            ")" | "]" => brackets = brackets.saturating_sub(1),
            ";" if brackets == 0 => pending = None,
            _ if previous == "fn" => (pending, brackets) = (Some(token), 0),
            _ if token.ends_with("_no_bwd") => {
                let allowed =
                    stack.iter().flatten().any(|name| *name == "bwd" || name.ends_with("_no_grad"));
                if !allowed {
                    let message = format!(
                        "`{token}` outside `fn bwd`; a function that cuts the tape is named `.._no_grad`"
                    );
                    findings.push(Finding::new("no_bwd", line_of(masked, at), message));
                }
            }
            _ => {}
        }
        previous = token;
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{check, foreign_module, header, no_bwd, size, size_note, unsafe_code};

    #[test]
    fn size_fails_over_500_lines_outside_tests() {
        assert!(size("crates/a/src/x.rs", &"\n".repeat(500)).is_none());
        assert!(size("crates/a/src/x.rs", &"\n".repeat(501)).is_some());
        assert!(size("crates/a/tests/x.rs", &"\n".repeat(501)).is_none());
        assert!(size_note("crates/a/src/x.rs", &"\n".repeat(251)).is_some());
        assert!(size_note("crates/a/src/x.rs", &"\n".repeat(250)).is_none());
    }

    #[test]
    fn header_wants_a_module_comment() {
        assert!(header("//! Why.\nfn a() {}").is_none());
        assert!(header("// Why.\nfn a() {}").is_some());
    }

    #[test]
    fn unsafe_stands_in_listed_files_only() {
        let text = "fn a() { unsafe { b() } }";
        assert!(unsafe_code("crates/a/src/ops/x/cuda.rs", text).is_empty());
        assert!(unsafe_code("benches/src/alloc.rs", text).is_empty());
        assert!(unsafe_code("crates/vkd-simt/src/driver/launch.rs", text).is_empty());
        assert_eq!(unsafe_code("crates/vkd-simt/src/memory.rs.rs", text).len(), 1);
        assert_eq!(unsafe_code("crates/a/src/ops/x/cpu.rs", text).len(), 1);
        assert_eq!(unsafe_code("crates/a/tests/x.rs", text).len(), 1);
        assert!(unsafe_code("crates/a/src/x.rs", "#![deny(unsafe_code)]").is_empty());
    }

    #[test]
    fn a_module_stands_where_its_name_says() {
        assert!(foreign_module("mod path; #[derive(X)] fn f() { a[path] }").is_empty());
        assert_eq!(foreign_module("#[cfg(test)]\n#[path = \"..\"]\nmod a;")[0].line, 2);
    }

    #[test]
    fn no_bwd_stands_in_backward_passes_and_no_grad_functions_only() {
        let good = "fn bwd(&self, a: [u8; 3]) -> R<T> { if x { t.apply_op1_no_bwd(&o) } }
            fn look_no_grad(t: &T) { t.apply_op2_no_bwd(&u, &o) }
            fn bwd(&self) { let f = |t| { t.apply_op1_no_bwd(&o) }; }";
        assert_eq!(no_bwd(good), vec![]);
        for bad in [
            "fn forward(t: &T) { t.apply_op1_no_bwd(&o) }",
            "fn bwd(&self) {} fn f(t: &T) { t.apply_op1_no_bwd::<O>(&o) }",
            "trait A { fn bwd(&self); fn f(&self) { t.apply_op1_no_bwd(&o) } }",
            "fn bwd(&self); const X: F = T::apply_op1_no_bwd;",
        ] {
            assert_eq!(no_bwd(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn comments_and_tests_are_not_code() {
        let text = "//! Never unsafe, never apply_op1_no_bwd(x).\nfn f() { g(\"unsafe\") }\n\
            #[cfg(test)]\nmod tests { fn f() { t.apply_op1_no_bwd(&o) } }\n";
        assert_eq!(check("crates/a/src/x.rs", text), vec![]);
        let text = "//! Never.\nfn f() { t.apply_op1_no_bwd(&o) }\n";
        let findings = check("crates/a/src/x.rs", text);
        assert_eq!((findings.len(), findings[0].line), (1, 2));
        assert_eq!(check("crates/a/tests/x.rs", text), vec![]);
        assert_eq!(check("crates/a/src/x/tests.rs", text), vec![]);
    }
}
