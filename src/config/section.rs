use std::collections::BTreeMap;
use std::fmt;

use toml::{Table, Value};

/// What is wrong with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key with its path, `network[0].bridge_name`, or the environment variable that set it; empty when the text is
    /// not TOML at all.
    pub key: String,
    /// The value as given, and what would fit.
    pub message: String,
    /// Where the key stands in the file, from 1; none if it does not.
    pub line: Option<usize>,
}

impl Problem {
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into(), line: None }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if self.key.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.key, self.message)
        }
    }
}

/// One table of the file being read: each key is taken once and parsed, what is left at the end is unknown. All problems
/// are kept, so that an operator sees them in one go.
pub(super) struct Section<'a> {
    path: String,
    table: Table,
    /// Environment variables that replaced a key's value, by key.
    replaced: BTreeMap<&'static str, &'static str>,
    known: Vec<&'static str>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Section<'a> {
    pub(super) fn new(path: impl Into<String>, table: Table, problems: &'a mut Vec<Problem>) -> Self {
        Self { path: path.into(), table, replaced: BTreeMap::new(), known: Vec::new(), problems }
    }

    /// A table inside this one.
    pub(super) fn below(&mut self, name: String, table: Table) -> Section<'_> {
        Section::new(format!("{}.{name}", self.path), table, self.problems)
    }

    /// The top-level table `key`, empty when the file has none.
    pub(super) fn of(file: &mut Table, key: &'static str, problems: &'a mut Vec<Problem>) -> Self {
        let table = match file.remove(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                problems.push(Problem::new(key, format!("{other} is not a [{key}] table")));
                Table::new()
            }
        };
        Self::new(key, table, problems)
    }

    /// Puts the value of the environment variable `variable` in the place of `key`'s.
    pub(super) fn replace(&mut self, key: &'static str, variable: &'static str, value: Value) {
        self.table.insert(key.to_owned(), value);
        self.replaced.insert(key, variable);
    }

    /// What an operator has to look for to change `key`.
    pub(super) fn name_of(&self, key: &str) -> String {
        match self.replaced.get(key) {
            Some(variable) => (*variable).to_owned(),
            None => format!("{}.{key}", self.path),
        }
    }

    pub(super) fn problem(&mut self, key: &str, message: impl Into<String>) {
        let problem = Problem::new(self.name_of(key), message);
        self.problems.push(problem);
    }

    /// The value of `key`, or `default` when it is not given; none, and a problem, when `parse` refuses it. `parse`'s
    /// error is what would fit, as a noun phrase.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        default: impl Into<Value>,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        self.known.push(key);
        let value = self.table.remove(key).unwrap_or_else(|| default.into());
        match parse(&value) {
            Ok(parsed) => Some(parsed),
            Err(expected) => {
                self.problem(key, format!("{value} is not {expected}"));
                None
            }
        }
    }

    /// The value of `key` if it is given.
    pub(super) fn take_if<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        if self.table.contains_key(key) {
            return self.take(key, false, parse);
        }
        self.known.push(key);
        None
    }

    /// Reads the table `key`, empty when it is not given.
    pub(super) fn table<T>(&mut self, key: &'static str, read: impl FnOnce(Section<'_>) -> T) -> T {
        self.known.push(key);
        let table = match self.table.remove(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                self.problem(key, format!("{other} is not a table"));
                Table::new()
            }
        };
        read(Section::new(format!("{}.{key}", self.path), table, self.problems))
    }

    /// Reads each table of the array of tables `key`.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(Section<'_>) -> Option<T>,
    ) -> Vec<T> {
        self.known.push(key);
        let items = match self.table.remove(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => vec![other],
        };
        let mut found = Vec::new();
        for (at, item) in items.into_iter().enumerate() {
            match item {
                Value::Table(table) => {
                    found.extend(read(Section::new(
                        format!("{}.{key}[{at}]", self.path),
                        table,
                        self.problems,
                    )));
                }
                other => self.problem(key, format!("{other} is not a [[{}.{key}]] table", self.path)),
            }
        }
        found
    }

    /// Ends the section: what nobody took is unknown.
    pub(super) fn finish(mut self) {
        let unknown: Vec<String> = self.table.keys().cloned().collect();
        for key in unknown {
            let message = format!("unknown key; known here: {}", self.known.join(", "));
            self.problem(&key, message);
        }
    }
}
