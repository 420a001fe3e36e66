//! Names of candle that the crates must not call, because they cut the gradient without a word or
//! draw numbers that no seed controls.
//!
//! Paths are compared in full, so candle's modules must be imported item by item: a glob or an
//! import of a whole module would hide the name from this rule, and is refused for that reason.

use super::Finding;
use super::scan::{line_of, tokens};

const CUTS: &str = "has no backward pass, so all below it stops learning";
const UNSEEDED: &str = "draws from a generator that no seed controls";

const OWN: &str = "has a replacement in vkd-nn or vkd-norm that is tested against torch";
const WRONG: &str = "has a backward pass that is wrong or stops with an error";

/// A run of path segments, or a method after a dot, and what is wrong with it.
const BANNED: [(&str, &str); 49] = [
    ("candle_nn::layer_norm", CUTS),
    ("candle_nn::layer_norm_no_bias", CUTS),
    ("candle_nn::LayerNorm", CUTS),
    ("candle_nn::rms_norm", CUTS),
    ("candle_nn::RmsNorm", CUTS),
    ("candle_nn::ops::layer_norm", CUTS),
    ("candle_nn::ops::rms_norm", CUTS),
    ("candle_nn::ops::softmax_last_dim", CUTS),
    ("candle_nn::ops::sdpa", CUTS),
    ("candle_nn::rotary_emb", CUTS),
    ("candle_nn::attention", CUTS),
    ("candle_nn::cpu_flash_attention", CUTS),
    ("candle_nn::varlen_attention", CUTS),
    ("candle_nn::ops::layer_norm_slow", OWN),
    ("candle_nn::ops::rms_norm_slow", OWN),
    ("candle_nn::ops::softmax", OWN),
    ("candle_nn::ops::log_softmax", OWN),
    ("candle_nn::batch_norm", OWN),
    ("candle_nn::BatchNorm", OWN),
    ("candle_nn::group_norm", OWN),
    ("candle_nn::GroupNorm", OWN),
    ("candle_nn::embedding", OWN),
    ("candle_nn::Embedding", OWN),
    ("candle_nn::optim", OWN),
    ("candle_nn::AdamW", OWN),
    ("candle_nn::SGD", OWN),
    (".upsample_nearest1d", WRONG),
    (".upsample_nearest2d", WRONG),
    (".interpolate1d", WRONG),
    (".interpolate2d", WRONG),
    (".upsample_bilinear2d", WRONG),
    (".upsample_bilinear2d_with_scale", WRONG),
    (".avg_pool2d", WRONG),
    (".avg_pool2d_with_stride", WRONG),
    (".max_pool2d", WRONG),
    (".max_pool2d_with_stride", WRONG),
    (".scatter", WRONG),
    (".scatter_add", WRONG),
    ("candle_nn::ops::dropout", UNSEEDED),
    ("candle_nn::ops::Dropout", UNSEEDED),
    ("candle_nn::Dropout", UNSEEDED),
    ("candle_nn::VarMap", "draws unseeded initial values and lists variables in no fixed order"),
    ("candle_nn::var_map", "draws unseeded initial values and lists variables in no fixed order"),
    ("Tensor::rand", UNSEEDED),
    ("Tensor::randn", UNSEEDED),
    ("Var::rand", UNSEEDED),
    ("Var::randn", UNSEEDED),
    ("rand_like", UNSEEDED),
    ("randn_like", UNSEEDED),
];

/// Imports that would hide a name.
const OPAQUE: [&str; 4] = ["candle_nn", "candle_nn::*", "candle_nn::ops", "candle_nn::ops::*"];

/// Looks at masked code.
pub(super) fn check(masked: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Found { at, path, import } in paths(masked) {
        let line = line_of(masked, at);
        let method = masked[..at].trim_end().ends_with('.') || path.contains(&"Tensor");
        let banned = |name: &str| match name.strip_prefix('.') {
            // A function of ours may have the name of candle's method.
            Some(name) => method && contains(&path, name),
            None => contains(&path, name),
        };
        if let Some((name, why)) = BANNED.iter().find(|(name, _)| banned(name)) {
            findings.push(Finding::new("names", line, format!("`{name}` {why}")));
        } else if import && OPAQUE.contains(&path.join("::").as_str()) {
            let path = path.join("::");
            let message = format!("import items of `{path}` one by one, so that tidy sees them");
            findings.push(Finding::new("names", line, message));
        }
    }
    findings
}

/// Whether the segments of `name` stand in a row in `path`.
fn contains(path: &[&str], name: &str) -> bool {
    let wanted: Vec<&str> = name.split("::").collect();
    path.windows(wanted.len()).any(|window| window == wanted)
}

struct Found<'a> {
    at: usize,
    path: Vec<&'a str>,
    import: bool,
}

/// Every path in the code; the trees of `use` are written out.
fn paths(masked: &str) -> Vec<Found<'_>> {
    let tokens = tokens(masked);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        // `use<'a>` in a bound captures a lifetime and imports nothing.
        if tokens[at].1 == "use" && sign(&tokens, at + 1) != "<" {
            at = use_tree(&tokens, at + 1, &[], &mut found);
        } else if is_word(tokens[at].1) {
            let (path, next) = path(&tokens, at);
            found.push(Found { at: tokens[at].0, path, import: false });
            at = next;
        } else {
            at += 1;
        }
    }
    found
}

fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

fn sign<'a>(tokens: &[(usize, &'a str)], at: usize) -> &'a str {
    tokens.get(at).map_or("", |token| token.1)
}

/// Words joined by `::` from `at`, and the position after them.
fn path<'a>(tokens: &[(usize, &'a str)], mut at: usize) -> (Vec<&'a str>, usize) {
    let mut path = vec![tokens[at].1];
    at += 1;
    while sign(tokens, at) == ":" && sign(tokens, at + 1) == ":" && is_word(sign(tokens, at + 2)) {
        path.push(tokens[at + 2].1);
        at += 3;
    }
    (path, at)
}

/// One branch of a `use` tree; returns the position after it.
fn use_tree<'a>(
    tokens: &[(usize, &'a str)],
    mut at: usize,
    prefix: &[&'a str],
    found: &mut Vec<Found<'a>>,
) -> usize {
    let mut whole = prefix.to_vec();
    while sign(tokens, at) == ":" {
        at += 1;
    }
    let start = tokens.get(at).map_or(0, |token| token.0);
    if is_word(sign(tokens, at)) {
        let (path, next) = path(tokens, at);
        whole.extend(path.iter().filter(|segment| **segment != "self"));
        at = next;
    }
    while sign(tokens, at) == ":" {
        at += 1;
    }
    if sign(tokens, at) == "{" {
        at += 1;
        while at < tokens.len() && sign(tokens, at) != "}" {
            at = use_tree(tokens, at, &whole, found);
            if sign(tokens, at) == "," {
                at += 1;
            }
        }
        return at + 1;
    }
    if sign(tokens, at) == "*" {
        whole.push("*");
    }
    found.push(Found { at: start, path: whole, import: true });
    // Past an alias, to the end of this branch.
    while at < tokens.len() && !matches!(sign(tokens, at), "," | "}" | ";") {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::{BANNED, check};

    #[test]
    fn every_banned_name_is_found_and_named() {
        for (name, _) in BANNED {
            let codes = match name.strip_prefix('.') {
                None => [format!("fn f() {{ {name}(x) }}"), format!("use {name};")],
                Some(own) => {
                    assert_eq!(check(&format!("fn f() {{ {own}(x) }}")), vec![], "{own}");
                    [format!("fn f() {{ x{name}(2) }}"), format!("fn f() {{ Tensor::{own}(x) }}")]
                }
            };
            for code in codes {
                let findings = check(&code);
                assert_eq!(findings.len(), 1, "{code}: {findings:?}");
                assert!(findings[0].message.contains(name), "{code}: {findings:?}");
            }
        }
    }

    #[test]
    fn trees_aliases_globs_and_modules_do_not_hide_a_name() {
        for code in [
            "use candle_nn::{Linear, ops::{self as o, sigmoid}};",
            "use candle_nn::{linear, {ops::{sdpa, sigmoid}}};",
            "use candle_nn::{Init, LayerNorm as Norm};",
            "use candle_nn::*;",
            "use candle_nn::ops::*;",
            "use candle_nn as nn;",
            "use ::candle_nn::Dropout;",
            "fn f() { xs.randn_like(0., 1.) }",
            "fn f<'a>() -> impl Fn() + use<'a> { xs.randn_like(0., 1.); }",
            "fn f() { candle_core::Tensor::randn(0f32, 1., s, d) }",
        ] {
            assert_eq!(check(code).len(), 1, "{code}");
        }
    }

    #[test]
    fn good_names_pass() {
        for code in [
            "use candle_nn::{Linear, Module, VarBuilder, linear, ops::sigmoid, loss};",
            "use vkd_norm::{LayerNorm, layer_norm}; fn f() { vkd_norm::layer_norm(x, e) }",
            "fn f<'a>() -> impl Fn() + use<'a> { g() }",
            "fn f() { layer_norm(x, 1e-5); rand_distr::StandardNormal; a.rand(); }",
            "pub use self::ops::softmax_last_dim; use candle_core::{Result, Tensor, Var};",
        ] {
            assert_eq!(check(code), vec![], "{code}");
        }
    }
}
