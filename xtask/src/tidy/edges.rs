//! Who may import whom: the floors of the workspace, read from `cargo metadata`.

use serde_json::Value;

use super::Finding;
use crate::shell::packages;

const TESTKIT: &str = "vkd-testkit";

/// What a package may depend on among ours; `None` means the package is unknown here.
fn allowed(package: &str) -> Option<&'static [&'static str]> {
    Some(match package {
        // The emulated driver stands in for libraries of C: it knows none of ours, and none knows it.
        "vkd-ortho" | "vkd-norm" | TESTKIT | "vkd-simt" | "xtask" => &[],
        "vkd-loss" | "vkd-nn" => &["vkd-norm"],
        "vkd-tasks" => &["vkd-ortho", "vkd-norm", "vkd-loss"],
        "vkd-models" => &["vkd-nn"],
        "vkd-train" => &["vkd-ortho", "vkd-norm", "vkd-loss", "vkd-nn", "vkd-tasks", "vkd-models"],
        // Imported by nobody, so they may see everything below them.
        "vkd-cli" | "vkd-benches" => {
            &["vkd-ortho", "vkd-norm", "vkd-loss", "vkd-nn", "vkd-tasks", "vkd-models", "vkd-train"]
        }
        _ => return None,
    })
}

/// Findings with the folder of their package.
pub(super) fn check(metadata: &Value) -> Vec<(String, Finding)> {
    let names: Vec<&str> = packages(metadata).iter().filter_map(|p| p["name"].as_str()).collect();
    let mut findings = Vec::new();
    for package in packages(metadata) {
        let found = edges(package, &names).into_iter().chain(missing_facts(package));
        findings.extend(found.map(|finding| (folder(package), finding)));
    }
    findings
}

/// `crates/vkd-norm` from the manifest's path.
fn folder(package: &Value) -> String {
    let manifest = package["manifest_path"].as_str().unwrap_or_default().replace('\\', "/");
    let parts: Vec<&str> = manifest.rsplit('/').skip(1).take(2).collect();
    match parts[..] {
        [last, "crates"] => format!("crates/{last}"),
        [last, ..] => last.to_owned(),
        [] => String::new(),
    }
}

fn edges(package: &Value, ours: &[&str]) -> Vec<Finding> {
    let name = package["name"].as_str().unwrap_or_default();
    let Some(allowed) = allowed(name) else {
        let message = format!("`{name}` has no floor: add it to xtask/src/tidy/edges.rs");
        return vec![Finding::new("edges", 0, message)];
    };
    let dependencies = package["dependencies"].as_array().map_or(&[][..], Vec::as_slice);
    let mut findings = Vec::new();
    for dependency in dependencies {
        let on = dependency["name"].as_str().unwrap_or_default();
        let for_tests = dependency["kind"] == "dev";
        // Kernels are launched through vkd-norm; without the feature `cuda` vkd-ortho stands alone.
        let for_kernels = [name, on] == ["vkd-ortho", "vkd-norm"]
            && (for_tests || dependency["optional"] == true);
        // The suite of a device is a program, whose tools are those of the tests.
        let tools = on == TESTKIT && name != TESTKIT && (for_tests || name == "vkd-benches");
        let fine = allowed.contains(&on) || for_kernels || tools;
        if ours.contains(&on) && !fine {
            let how = if for_tests { "may not, even for tests," } else { "may not" };
            let message = format!("`{name}` {how} depend on `{on}`");
            findings.push(Finding::new("edges", 0, message));
        }
    }
    findings
}

/// What a registry page needs; asked of every crate under crates/.
fn missing_facts(package: &Value) -> Option<Finding> {
    if !folder(package).starts_with("crates/") {
        return None;
    }
    let missing: Vec<&str> = ["description", "license", "keywords", "categories"]
        .into_iter()
        .filter(|fact| match &package[fact] {
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => true,
        })
        .collect();
    let message = format!("missing in [package]: {}", missing.join(", "));
    (!missing.is_empty()).then(|| Finding::new("metadata", 0, message))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::check;

    fn workspace(name: &str, on: &str, kind: Value) -> Value {
        let facts = |name: &str, dependencies: Value| {
            json!({"name": name, "manifest_path": format!("x/crates/{name}/Cargo.toml"),
                "description": "d", "license": "MIT", "keywords": ["k"], "categories": ["c"],
                "dependencies": dependencies})
        };
        let edge = json!([{"name": on, "kind": kind}, {"name": "candle-core", "kind": null}]);
        let mut packages = vec![facts(name, edge)];
        if on != name && on != "elsewhere" {
            packages.push(facts(on, json!([])));
        }
        json!({"packages": packages})
    }

    #[test]
    fn allowed_edges_pass() {
        for (name, on, kind) in [
            ("vkd-loss", "vkd-norm", json!(null)),
            ("vkd-tasks", "vkd-ortho", json!(null)),
            ("vkd-train", "vkd-nn", json!(null)),
            ("vkd-cli", "vkd-train", json!(null)),
            ("vkd-ortho", "vkd-testkit", json!("dev")),
            ("vkd-ortho", "vkd-norm", json!("dev")),
            ("xtask", "elsewhere", json!(null)),
        ] {
            assert_eq!(check(&workspace(name, on, kind)), vec![], "{name} -> {on}");
        }
    }

    #[test]
    fn other_edges_fail() {
        for (name, on, kind) in [
            ("vkd-norm", "vkd-ortho", json!(null)),
            ("vkd-models", "vkd-norm", json!(null)),
            ("vkd-tasks", "vkd-nn", json!("dev")),
            ("vkd-ortho", "vkd-testkit", json!(null)),
            ("vkd-ortho", "vkd-norm", json!(null)),
            ("vkd-testkit", "vkd-norm", json!("dev")),
            ("vkd-simt", "vkd-norm", json!("dev")),
            ("vkd-benches", "vkd-simt", json!(null)),
            ("xtask", "vkd-loss", json!("build")),
            ("vkd-train", "vkd-benches", json!(null)),
            ("vkd-new", "elsewhere", json!(null)),
        ] {
            assert_eq!(check(&workspace(name, on, kind)).len(), 1, "{name} -> {on}");
        }
    }

    #[test]
    fn missing_metadata_fails() {
        let mut metadata = workspace("vkd-norm", "elsewhere", json!(null));
        metadata["packages"][0]["keywords"] = json!([]);
        metadata["packages"][0]["license"] = json!(null);
        let findings = check(&metadata);
        assert_eq!(findings[0].0, "crates/vkd-norm");
        assert_eq!(findings[0].1.message, "missing in [package]: license, keywords");
    }
}
