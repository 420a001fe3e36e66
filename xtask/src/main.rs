//! Developer tasks of vkd: everything that is not the library itself.
//!
//! Invariant: this crate imports nothing of ours and needs std and `serde_json` only, so that it
//! builds in seconds and can judge the other crates even when they don't compile. It spawns cargo.

mod args;
mod bench;
mod ci;
mod cuda;
mod device;
mod docs;
mod rows;
mod scale;
mod shell;
mod standalone;
mod tidy;

use std::process::ExitCode;

use args::Command;

/// An error is a sentence for the person at the terminal; nothing here recovers from one.
pub(crate) type Result<T> = std::result::Result<T, String>;

const COMMANDS: [&Command; 10] = [
    &ci::COMMAND,
    &tidy::COMMAND,
    &device::TEST,
    &bench::COMMAND,
    &scale::COMMAND,
    &docs::COMMAND,
    &standalone::COMMAND,
    &cuda::SETUP,
    &cuda::CHECK,
    &cuda::BUNDLE,
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(words: &[String]) -> Result<()> {
    let Some((name, rest)) = words.split_first() else {
        return Err(format!("no subcommand given\n\n{}", args::overview(&COMMANDS)));
    };
    if matches!(name.as_str(), "--help" | "-h" | "help") {
        println!("{}", args::overview(&COMMANDS));
        return Ok(());
    }
    // A name may have two words.
    let two = rest.split_first().map(|(second, rest)| (format!("{name} {second}"), rest));
    let (name, rest) = match two {
        Some((two, rest)) if COMMANDS.iter().any(|command| command.name == two) => (two, rest),
        _ => (name.clone(), rest),
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        return Err(format!("unknown subcommand `{name}`\n\n{}", args::overview(&COMMANDS)));
    };
    match args::parse(command, rest)? {
        None => {
            println!("{}", args::help(command));
            Ok(())
        }
        Some(args) => (command.run)(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::dispatch;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn an_unknown_subcommand_lists_the_known_ones() {
        for line in ["", "cy", "--full"] {
            let message = dispatch(&words(line)).unwrap_err();
            assert!(message.contains("standalone") && message.contains("tidy"), "{message}");
        }
    }

    #[test]
    fn every_subcommand_has_help() {
        for command in super::COMMANDS {
            let name = command.name;
            dispatch(&words(&format!("{name} --help"))).unwrap();
        }
        dispatch(&words("--help")).unwrap();
    }
}
