//! What pages say of the command line is what it takes: every `guestnet …` of README and docs/, in blocks and between backticks,
//! is parsed, so that a renamed flag fails. `tests/it/docs.rs` runs the blocks.

use std::fs;
use std::path::Path;

use clap::error::ErrorKind;

use super::parse;

/// What stands for something of the reader's.
const STANDS_FOR: [(&str, &str); 9] = [
    ("VM", "web-1"),
    ("VM_ID", "web-1"),
    ("TARGET", "cmdline"),
    ("NAME", "web"),
    ("FILE", "file"),
    ("DIR", "dir"),
    ("MAC", "06:00:0a:64:00:02"),
    ("ADDRESS", "10.100.0.2"),
    ("N", "1"),
];

/// The words of a command line up to what is the shell's, as a POSIX shell splits them.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (None, '|' | '>' | ';' | '&') if word.is_none() => break,
            (None, '#') if word.is_none() => break,
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Alternatives, `a|b`, are commands each; dots stand for more of the same.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = vec![Vec::new()];
    for word in words(text) {
        // What is in brackets may be left out.
        let bare = word.trim_end_matches('…').trim_start_matches('[');
        let word = if word.contains('=') { word } else { bare.trim_end_matches([']', '…']).to_owned() };
        if word.is_empty() {
            continue;
        }
        let plain =
            |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let either: Vec<String> = match word.split('|').collect::<Vec<_>>() {
            parts if parts.len() > 1 && parts.iter().all(|part| plain(part)) => {
                parts.into_iter().map(str::to_owned).collect()
            }
            _ => vec![word],
        };
        let stands = |word: &String| {
            let found = STANDS_FOR.iter().find(|(name, _)| name == word);
            found.map_or_else(|| word.clone(), |(_, value)| (*value).to_owned())
        };
        all = all
            .into_iter()
            .flat_map(|before| either.iter().map(move |word| [before.clone(), vec![stands(word)]].concat()))
            .collect();
    }
    all
}

/// `guestnet …` of one page: whether it has to be whole, and the text.
fn of_page(page: &str) -> Vec<(bool, String)> {
    let (mut found, mut block) = (Vec::new(), None);
    for line in page.replace("\\\n", "").lines() {
        if let Some(kind) = line.strip_prefix("```") {
            block = if block.is_some() { None } else { Some(kind.to_owned()) };
            continue;
        }
        match block.as_deref() {
            Some(kind @ ("sh" | "console")) => {
                let prompt = if kind == "sh" { "" } else { "$ " };
                let Some(command) = line.strip_prefix(prompt) else { continue };
                let command = command.strip_prefix("sudo ").unwrap_or(command);
                if command.starts_with("guestnet ") {
                    found.push((true, command.to_owned()));
                }
            }
            Some(_) => {}
            // Every second piece is between backticks; a table's bar is written with a backslash.
            None => found.extend(
                line.split('`')
                    .skip(1)
                    .step_by(2)
                    .map(|code| code.replace("\\|", "|"))
                    .map(|code| code.strip_prefix("sudo ").unwrap_or(&code).to_owned())
                    .filter(|code| code.starts_with("guestnet "))
                    .map(|code| (false, code)),
            ),
        }
    }
    found
}

#[test]
fn every_command_that_a_page_names_is_one_with_the_flags_that_it_has() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let top = [
        "README.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "vm-images/README.md",
    ];
    let pages = docs.chain(top.map(|name| root.join(name)));
    let mut seen = 0;
    for page in pages.filter(|page| page.extension().is_some_and(|end| end == "md")) {
        for (whole, text) in of_page(&fs::read_to_string(&page).unwrap()) {
            for command in commands(&text) {
                seen += 1;
                let Err(error) = parse(command.iter().map(Into::into)) else { continue };
                // In a sentence a noun may stand for all that can be done with it.
                let short = matches!(
                    error.kind(),
                    ErrorKind::MissingRequiredArgument
                        | ErrorKind::MissingSubcommand
                        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                );
                // `serve --config` ends where the value would be.
                let short = short || error.to_string().contains("a value is required");
                let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
                assert!(help || (short && !whole), "{}: {text}: {command:?}\n{error}", page.display());
            }
        }
    }
    assert!(seen > 100, "{seen} commands");
}
