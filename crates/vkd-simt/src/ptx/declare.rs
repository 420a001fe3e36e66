//! What a module declares: variables, kernels, functions. Bodies stay text until they're needed.

use std::collections::HashMap;

use super::text::{Cursor, integer, name_end, operands, says_where};
use super::types::Type;
use crate::Fault;

/// Where a variable lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Global,
    Shared,
    Local,
    Param,
    /// An address says by itself which space it's in.
    Generic,
}

/// A declared variable or parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) space: Space,
    pub(super) align: usize,
    pub(super) bytes: usize,
    /// `.extern .shared name[]`: as many bytes as the launch asks for.
    pub(super) dynamic: bool,
    /// What it holds at first, from its beginning; zeros follow.
    pub(super) init: Vec<u8>,
}

/// A kernel or a function of the device.
#[derive(Clone, Debug)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) kernel: bool,
    pub(super) results: Vec<Variable>,
    pub(super) parameters: Vec<Variable>,
    pub(super) max_threads: Option<u64>,
    pub(super) body: String,
    pub(super) body_line: u32,
}

/// All that a module declares.
#[derive(Clone, Debug, Default)]
pub(super) struct Declared {
    pub(super) variables: HashMap<String, Variable>,
    pub(super) functions: HashMap<String, Function>,
}

impl Declared {
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let mut out = Self::default();
        let mut cursor = Cursor::new(text, 1);
        loop {
            cursor.skip_space();
            let line = cursor.line;
            let rest = cursor.peek();
            let at = |fault: Fault| fault.at(format!("PTX line {line}"));
            if rest.is_empty() {
                return Ok(out);
            }
            let by_line = [".version", ".target", ".address_size", ";"];
            if by_line.iter().any(|word| rest.starts_with(word)) || says_where(rest) {
                if rest.starts_with(';') {
                    cursor.skip(1)
                } else {
                    _ = cursor.line_end()
                }
                continue;
            }
            let unclosed = || at(Fault::new("a declaration that doesn't end"));
            if rest.starts_with(".section") {
                cursor.until(&['{']).ok_or_else(unclosed)?;
                cursor.braced().ok_or_else(unclosed)?;
                continue;
            }
            let head = cursor.until(&[';', '{', '=']).ok_or_else(unclosed)?;
            let is_function = head.contains(".entry") || head.contains(".func");
            if is_function {
                let mut function = function(head).map_err(at)?;
                if cursor.peek().starts_with('{') {
                    function.body_line = cursor.line;
                    function.body = cursor.braced().ok_or_else(unclosed)?.to_owned();
                    out.functions.insert(function.name.clone(), function);
                } else {
                    cursor.skip(1);
                }
                continue;
            }
            let init = if cursor.peek().starts_with('=') {
                cursor.skip(1);
                let text = cursor.until(&[';']).ok_or_else(unclosed)?;
                Some(text)
            } else {
                None
            };
            cursor.skip(1);
            if head.starts_with(".pragma") || head.starts_with(".alias") {
                continue;
            }
            for variable in variables(head, init).map_err(at)? {
                out.variables.insert(variable.name.clone(), variable);
            }
        }
    }
}

/// The variables of one declaration, such as `.shared .align 8 .b8 name[512]`.
pub(super) fn variables(head: &str, init: Option<&str>) -> Result<Vec<Variable>, Fault> {
    let unknown = || Fault::new(format!("expected a variable, got `{}`", head.trim()));
    let (mut space, mut align, mut kind) = (None, None, None);
    let (mut is_extern, mut pointer) = (false, false);
    let mut rest = head.trim_start();
    while rest.starts_with('.') {
        let end = rest[1..].find(char::is_whitespace).ok_or_else(unknown)? + 1;
        let word = &rest[1..end];
        rest = rest[end..].trim_start();
        match word {
            // What a parameter points to: nothing of its own.
            "global" | "const" | "shared" | "local" if pointer => {}
            "global" | "const" => space = Some(Space::Global),
            "shared" => space = Some(Space::Shared),
            "local" => space = Some(Space::Local),
            "param" => space = Some(Space::Param),
            "extern" => is_extern = true,
            "ptr" => pointer = true,
            "visible" | "weak" | "common" | "managed" => {}
            "align" => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                let bytes = integer(&rest[..end]).ok_or_else(unknown)? as usize;
                align = if pointer { align } else { Some(bytes) };
                rest = rest[end..].trim_start();
            }
            _ => {
                let element = match word.strip_prefix('v').and_then(|rest| rest.split_once('.')) {
                    Some((count, of)) => {
                        let count = integer(count).ok_or_else(unknown)? as usize;
                        Type::parse(of).map(|t| (t, count))
                    }
                    None => Type::parse(word).map(|t| (t, 1)),
                };
                kind = Some(element.ok_or_else(unknown)?);
            }
        }
    }
    let (space, (kind, count)) = space.zip(kind).ok_or_else(unknown)?;
    let size = kind.bytes() * count;
    let align = align.unwrap_or(size).max(1);
    let mut out = Vec::new();
    for name in operands(rest) {
        let end = name_end(name);
        let (name, dimensions) = name.split_at(end);
        let mut bytes = size;
        let mut dynamic = false;
        for dimension in dimensions.split('[').skip(1) {
            let count = dimension.trim_end().trim_end_matches(']').trim();
            if count.is_empty() {
                dynamic = true;
            } else {
                bytes *= integer(count).ok_or_else(unknown)? as usize;
            }
        }
        if dynamic && !(is_extern && space == Space::Shared) || name.is_empty() {
            return Err(unknown());
        }
        let init = init.map(|text| initial(text, kind)).transpose()?.unwrap_or_default();
        let bytes = if dynamic { 0 } else { bytes };
        out.push(Variable { name: name.to_owned(), space, align, bytes, dynamic, init });
    }
    if out.is_empty() { Err(unknown()) } else { Ok(out) }
}

/// The bytes of `{1, 2, {3, 4}}` or of a single number.
fn initial(text: &str, kind: Type) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    for word in text.split(['{', '}', ',']).map(str::trim).filter(|word| !word.is_empty()) {
        let bits = number(word, kind).ok_or_else(|| {
            Fault::new(format!("expected a number as initial value, got `{word}`"))
        })?;
        out.extend(bits.to_le_bytes().iter().take(kind.bytes()));
    }
    Ok(out)
}

/// A constant's bits: an integer, `0f3F800000` or `0d3FF0000000000000`.
pub(super) fn number(word: &str, kind: Type) -> Option<u64> {
    let float = |prefix: &str| {
        let rest = word.strip_prefix(prefix)?;
        (rest.len() == if prefix.eq_ignore_ascii_case("0f") { 8 } else { 16 })
            .then(|| u64::from_str_radix(rest, 16).ok())?
    };
    if let Some(bits) = float("0f").or_else(|| float("0F")) {
        let value = f32::from_bits(bits as u32);
        return Some(if kind == Type::F64 { f64::from(value).to_bits() } else { bits });
    }
    if let Some(bits) = float("0d").or_else(|| float("0D")) {
        return Some(match kind {
            Type::F32 => u64::from((f64::from_bits(bits) as f32).to_bits()),
            _ => bits,
        });
    }
    let value = integer(word)?;
    match kind {
        Type::F32 | Type::F64 => None,
        Type::Pred => Some(u64::from(value != 0)),
        _ if kind.bytes() == 8 => Some(value),
        _ => Some(value & ((1 << (8 * kind.bytes())) - 1)),
    }
}

/// `.visible .entry name(...)` and what follows it, up to its body.
fn function(head: &str) -> Result<Function, Fault> {
    let unknown = || Fault::new(format!("expected a function, got `{}`", head.trim()));
    let (kernel, rest) = match head.split_once(".entry") {
        Some((_, rest)) => (true, rest),
        None => (false, head.split_once(".func").ok_or_else(unknown)?.1),
    };
    let list = |text: &str| -> Result<Vec<Variable>, Fault> {
        let mut out = Vec::new();
        for one in operands(text) {
            out.extend(variables(one, None)?);
        }
        Ok(out)
    };
    let mut rest = rest.trim_start();
    while let Some(after) = rest.strip_prefix(".noreturn") {
        rest = after.trim_start();
    }
    let mut results = Vec::new();
    if let Some(after) = rest.strip_prefix('(') {
        let (inside, after) = after.split_once(')').ok_or_else(unknown)?;
        results = list(inside)?;
        rest = after.trim_start();
    }
    let (name, after) = rest.split_at(name_end(rest));
    let after = after.trim_start();
    let (parameters, after) = match after.strip_prefix('(') {
        Some(inside) => {
            let (inside, after) = inside.split_once(')').ok_or_else(unknown)?;
            (list(inside)?, after)
        }
        None => (Vec::new(), after),
    };
    if name.is_empty() {
        return Err(unknown());
    }
    let max_threads = [".maxntid", ".reqntid"].iter().find_map(|word| {
        let (_, sizes) = after.split_once(word)?;
        let sizes = &sizes[..sizes.find('.').unwrap_or(sizes.len())];
        operands(sizes).iter().map(|size| integer(size)).product::<Option<u64>>()
    });
    Ok(Function {
        name: name.to_owned(),
        kernel,
        results,
        parameters,
        max_threads,
        body: String::new(),
        body_line: 0,
    })
}
