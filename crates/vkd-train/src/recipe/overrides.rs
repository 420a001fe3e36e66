//! Overrides of single keys, and errors that point at the place.

use candle_core::{Result, bail};
use serde::de::DeserializeOwned;

/// A TOML error with its file and line.
pub(super) fn located(text: &str, source: &str, e: &toml::de::Error) -> String {
    let line = e.span().map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
    let line = line.map(|line| format!(" line {line}")).unwrap_or_default();
    format!("{source}{line}: {}", with_nearest(e.message()))
}

/// Whose fault it is that a recipe with its overrides is none: the file's, with its line, or the first override's after which
/// the whole is worse than before.
pub(super) fn blame<T: DeserializeOwned>(
    text: &str,
    source: &str,
    overrides: &[String],
    e: &toml::de::Error,
) -> Result<String> {
    if let Err(own) = toml::from_str::<T>(text)
        && own.message() == e.message()
    {
        return Ok(located(text, source, &own));
    }
    let mut table: toml::Table = toml::from_str(text).map_err(candle_core::Error::wrap)?;
    for change in overrides {
        set(&mut table, change)?;
        if let Err(own) = T::deserialize(table.clone())
            && own.message() == e.message()
        {
            return Ok(format!("--set {change}: {}", with_nearest(own.message())));
        }
    }
    Ok(format!("{source}: {}", with_nearest(e.message())))
}

/// Puts one `a.b=value` into a table. The value is read as TOML, and as a plain string where that fails.
pub(super) fn set(table: &mut toml::Table, text: &str) -> Result<()> {
    let Some((path, value)) = text.split_once('=') else {
        bail!("--set {text}: expected KEY=VALUE")
    };
    let value = match toml::from_str::<toml::Table>(&format!("x = {value}")) {
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("x"),
        _ => None,
    }
    .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let Some(last) = keys.pop().filter(|k| !k.is_empty()) else {
        bail!("--set {text}: expected KEY=VALUE")
    };
    let mut at = table;
    for key in keys {
        let next = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = match next {
            toml::Value::Table(inner) => inner,
            other => bail!("--set {text}: expected {key} to be a table, got {}", other.type_str()),
        };
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// Adds "did you mean" to serde's message about an unknown field or variant.
fn with_nearest(message: &str) -> String {
    let message = message.trim_end();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let [unknown, known @ ..] = &quoted[..] else { return message.to_owned() };
    if !message.starts_with("unknown") {
        return message.to_owned();
    }
    let nearest = known.iter().max_by(|a, b| {
        strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b))
    });
    match nearest {
        Some(nearest) => format!("{message}; did you mean `{nearest}`?"),
        None => message.to_owned(),
    }
}
