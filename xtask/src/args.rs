//! Subcommands and flags, read by hand.
//!
//! Five commands with a handful of flags do not pay for an argument crate: xtask is the first thing
//! a clean clone builds. The rules are the usual ones: `--flag VALUE`, `--flag=VALUE`, `--help`;
//! an unknown word is an error that lists the known ones.

use std::collections::BTreeMap;

use crate::Result;

/// One flag; `value` names its argument, `None` makes it a switch.
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) value: Option<&'static str>,
    pub(crate) help: &'static str,
}

/// One subcommand.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) details: &'static str,
    pub(crate) flags: &'static [Flag],
    pub(crate) run: fn(&Args) -> Result<()>,
}

/// The flags that were given.
#[derive(Debug, Default)]
pub(crate) struct Args {
    given: BTreeMap<&'static str, String>,
}

impl Args {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.given.get(name).map(String::as_str)
    }
}

/// Reads the words after the subcommand; `None` asks for help.
pub(crate) fn parse(command: &Command, words: &[String]) -> Result<Option<Args>> {
    let mut args = Args::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if matches!(word.as_str(), "--help" | "-h") {
            return Ok(None);
        }
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let Some(flag) = command.flags.iter().find(|flag| flag.name == name) else {
            let what = if name.starts_with('-') { "flag" } else { "argument" };
            return Err(format!("{}: unknown {what} `{name}`\n\n{}", command.name, help(command)));
        };
        let value = match (flag.value, inline) {
            (None, None) => String::new(),
            (None, Some(_)) => return Err(format!("{}: `{name}` takes no value", command.name)),
            (Some(_), Some(value)) => value,
            (Some(what), None) => match words.next() {
                Some(value) if !value.starts_with("--") => value.clone(),
                _ => return Err(format!("{}: `{name}` needs {what}", command.name)),
            },
        };
        if flag.value.is_some() && value.is_empty() {
            return Err(format!("{}: `{name}` is empty", command.name));
        }
        if args.given.insert(flag.name, value).is_some() {
            return Err(format!("{}: `{name}` is given twice", command.name));
        }
    }
    Ok(Some(args))
}

/// What `cargo xtask --help` prints.
pub(crate) fn overview(commands: &[&Command]) -> String {
    let mut text = String::from("Usage: cargo xtask <SUBCOMMAND> [FLAGS]\n\nSubcommands:\n");
    for command in commands {
        text += &format!("  {:<12}{}\n", command.name, command.summary);
    }
    text + "\n`cargo xtask <SUBCOMMAND> --help` lists its flags."
}

/// What `cargo xtask <name> --help` prints.
pub(crate) fn help(command: &Command) -> String {
    let mut text = format!("{}\n\nUsage: cargo xtask {}", command.summary, command.name);
    for flag in command.flags {
        text += &match flag.value {
            Some(value) => format!(" [{} {value}]", flag.name),
            None => format!(" [{}]", flag.name),
        };
    }
    text += &format!("\n\n{}\n\nFlags:\n", command.details);
    for flag in command.flags {
        let left = format!("{} {}", flag.name, flag.value.unwrap_or_default());
        text += &format!("  {left:<18}{}\n", flag.help);
    }
    text + "  --help            print this"
}

#[cfg(test)]
mod tests {
    use super::{Args, Command, Flag, parse};

    const SAMPLE: Command = Command {
        name: "sample",
        summary: "A sample",
        details: "",
        flags: &[
            Flag { name: "--quick", value: None, help: "" },
            Flag { name: "--json", value: Some("FILE"), help: "" },
        ],
        run: |_| Ok(()),
    };

    fn read(line: &str) -> crate::Result<Option<Args>> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&SAMPLE, &words)
    }

    #[test]
    fn flags_and_values_are_read() {
        let args = read("--quick --json out.json").unwrap().unwrap();
        assert!(args.has("--quick"));
        assert_eq!(args.value("--json"), Some("out.json"));
        assert_eq!(read("--json=a=b").unwrap().unwrap().value("--json"), Some("a=b"));
        assert!(read("--quick -h").unwrap().is_none());
    }

    #[test]
    fn wrong_words_are_named() {
        for (line, part) in [
            ("--slow", "unknown flag `--slow`"),
            ("slow", "unknown argument `slow`"),
            ("--json", "needs FILE"),
            ("--json --quick", "needs FILE"),
            ("--json=", "is empty"),
            ("--quick=1", "takes no value"),
            ("--quick --quick", "given twice"),
        ] {
            let message = read(line).unwrap_err();
            assert!(message.contains(part), "{line}: {message}");
        }
    }
}
