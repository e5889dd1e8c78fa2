//! From three sources to one value per key: the file, then the environment, then flags; the last one that names a
//! key wins, and every value remembers where it came from, so that an error can say it.

use super::{
    Row,
    settings::{Kind, SETTINGS, find, variable},
};
use std::{collections::BTreeMap, fmt, path::Path};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A value that passed its setting's check.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Bool(bool),
    Integer(i64),
}

/// Where a value was named: `kiln.toml:3`, `KILN_SERVE_LISTEN`, `--listen`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Origin(pub(crate) String);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Every value that was named somewhere, by key.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    values: BTreeMap<&'static str, (Value, Origin)>,
    /// What was wrong, one line each: all of it is said at once.
    problems: Vec<String>,
    /// What looks wrong and is not refused.
    warnings: Vec<String>,
}

impl Layers {
    /// Reads a file's text; `name` is how errors call it.
    pub(crate) fn file(&mut self, name: &Path, text: &str) {
        let name = name.display();
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => {
                let at = error.span().map_or(1, |span| line(span.start));
                return self.problems.push(format!("{name}:{at}: {}", error.message()));
            }
        };
        for (key, value) in table.get_ref() {
            let origin = |key: &Spanned<_>| Origin(format!("{name}:{}", line(key.span().start)));
            match value.get_ref() {
                DeValue::Table(section) => {
                    let prefix = format!("{}.", key.get_ref());
                    if !SETTINGS.iter().any(|setting| setting.key.starts_with(&prefix)) {
                        self.problems.push(format!(
                            "{}: there is no section [{}]{}",
                            origin(key),
                            key.get_ref(),
                            nearest(key.get_ref(), sections(), |near| format!("; did you mean [{near}]?"))
                        ));
                        continue;
                    }
                    for (inner, value) in section {
                        self.file_value(
                            &format!("{prefix}{}", inner.get_ref()),
                            value.get_ref(),
                            origin(inner),
                        );
                    }
                }
                other => self.file_value(key.get_ref(), other, origin(key)),
            }
        }
    }

    fn file_value(&mut self, key: &str, value: &DeValue<'_>, origin: Origin) {
        let value = match value {
            DeValue::String(text) => Ok(Value::Text(text.to_string())),
            DeValue::Boolean(value) => Ok(Value::Bool(*value)),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map(Value::Integer)
                .map_err(|_| "a number beyond 64 bits"),
            DeValue::Float(_) => Err("a number with a fraction"),
            DeValue::Datetime(_) => Err("a date"),
            DeValue::Array(_) => Err("an array"),
            DeValue::Table(_) => Err("a section"),
        };
        let Some(setting) = find(key) else {
            let near = nearest(key, SETTINGS.iter().map(|s| s.key), |near| format!("; did you mean {near}?"));
            return self.problems.push(format!("{origin}: there is no setting {key}{near}"));
        };
        let checked = match value {
            Ok(value) => check(&setting.kind, value),
            Err(what) => Err(format!("{}, not {what}", wanted(&setting.kind))),
        };
        self.keep(setting.key, checked, origin);
    }

    /// Reads the variables that start with `KILN_`. Unknown ones are warned of, not refused: container platforms set
    /// such variables by themselves for a service called kiln.
    pub(crate) fn environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        let own: Vec<(String, String)> = variables
            .into_iter()
            .filter(|(name, _)| name.starts_with("KILN_") && name != "KILN_CONFIG")
            .collect();
        for (name, text) in own {
            match SETTINGS.iter().find(|setting| variable(setting.key) == name) {
                Some(setting) => self.text(setting.key, &text, Origin(name)),
                None => {
                    let known: Vec<String> = SETTINGS.iter().map(|setting| variable(setting.key)).collect();
                    let near = nearest(&name, known.iter().map(String::as_str), |near| {
                        format!("; did you mean {near}?")
                    });
                    self.warnings
                        .push(format!("the environment variable {name} is no setting of kiln{near}"));
                }
            }
        }
    }

    /// Takes a value written as text, from the environment or a flag.
    pub(crate) fn text(&mut self, key: &'static str, text: &str, origin: Origin) {
        let setting = find(key).expect("invariant: callers name keys of the table");
        let value = match &setting.kind {
            Kind::Bool(_) => match text {
                "true" | "1" | "yes" => Ok(Value::Bool(true)),
                "false" | "0" | "no" => Ok(Value::Bool(false)),
                _ => Err(format!("{}, not {text:?}", wanted(&setting.kind))),
            },
            Kind::Integer { .. } => text
                .parse()
                .map(Value::Integer)
                .map_err(|_| format!("{}, not {text:?}", wanted(&setting.kind))),
            _ => Ok(Value::Text(text.to_owned())),
        };
        self.keep(setting.key, value.and_then(|value| check(&setting.kind, value)), origin);
    }

    fn keep(&mut self, key: &'static str, value: Result<Value, String>, origin: Origin) {
        match value {
            Ok(value) => {
                self.values.insert(key, (value, origin));
            }
            Err(why) => self.problems.push(format!("{origin}: {key} must be {why}")),
        }
    }

    /// Adds a problem that only the meaning of a value showed.
    pub(crate) fn problem(&mut self, key: &'static str, why: &str) {
        let place = self.origin(key).map_or_else(|| "defaults".to_owned(), ToString::to_string);
        self.problems.push(format!("{place}: {key} {why}"));
    }

    /// Every setting with its effective value and where it came from. `derived` names the values that the machine
    /// decides when nobody else does.
    pub(crate) fn rows(&self, derived: &[(&'static str, String)]) -> Vec<Row> {
        let row = |setting: &'static super::settings::Setting| {
            let key = setting.key;
            let derived =
                derived.iter().find(|(known, _)| *known == key).map(|(_, value)| format!("{value:?}"));
            let value = match &setting.kind {
                Kind::Secret { .. } => self.values.get(key).map(|_| "\"(not shown)\"".to_owned()),
                Kind::Text(_) | Kind::OptionalText { .. } | Kind::Choice(_) => {
                    derived.or_else(|| self.get_text(key).map(|text| format!("{text:?}")))
                }
                Kind::Bool(_) => Some(self.get_bool(key).to_string()),
                Kind::Integer { .. } => Some(self.get_integer(key).to_string()),
            };
            let origin = self.origin(key).map_or_else(|| "default".to_owned(), ToString::to_string);
            Row { key, value: value.unwrap_or_else(|| "(not set)".into()), origin }
        };
        SETTINGS.iter().map(row).collect()
    }

    /// Everything that was wrong so far.
    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Everything that looked wrong so far.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Where a key was named, if anywhere.
    pub(crate) fn origin(&self, key: &str) -> Option<&Origin> {
        self.values.get(key).map(|(_, origin)| origin)
    }

    /// The text of a key; its default, or `None` where it has none.
    pub(crate) fn get_text(&self, key: &str) -> Option<String> {
        match (self.values.get(key), &setting(key).kind) {
            (Some((Value::Text(text), _)), _) => Some(text.clone()),
            (None, Kind::Text(default)) => Some((*default).to_owned()),
            (None, Kind::Choice(words)) => Some(words[0].to_owned()),
            (None, Kind::OptionalText { .. } | Kind::Secret { .. }) => None,
            (found, kind) => unreachable!("invariant: {key} is text, found {found:?} for {kind:?}"),
        }
    }

    /// The number of a key, or its default.
    pub(crate) fn get_integer(&self, key: &str) -> i64 {
        match (self.values.get(key), &setting(key).kind) {
            (Some((Value::Integer(number), _)), _) => *number,
            (None, Kind::Integer { default, .. }) => *default,
            (found, kind) => unreachable!("invariant: {key} is a number, found {found:?} for {kind:?}"),
        }
    }

    /// The switch of a key, or its default.
    pub(crate) fn get_bool(&self, key: &str) -> bool {
        match (self.values.get(key), &setting(key).kind) {
            (Some((Value::Bool(value), _)), _) => *value,
            (None, Kind::Bool(default)) => *default,
            (found, kind) => unreachable!("invariant: {key} is true or false, found {found:?} for {kind:?}"),
        }
    }
}

fn setting(key: &str) -> &'static super::settings::Setting {
    find(key).expect("invariant: callers name keys of the table")
}

/// Checks a value against its kind; the error completes "… must be".
fn check(kind: &Kind, value: Value) -> Result<Value, String> {
    let fits = match (kind, &value) {
        (Kind::Text(_) | Kind::OptionalText { .. } | Kind::Secret { .. }, Value::Text(text)) => {
            !text.trim().is_empty()
        }
        (Kind::Choice(words), Value::Text(text)) => words.contains(&text.as_str()),
        (Kind::Bool(_), Value::Bool(_)) => true,
        (Kind::Integer { min, max, .. }, Value::Integer(number)) => (min..=max).contains(&number),
        _ => false,
    };
    if fits {
        return Ok(value);
    }
    Err(match (kind, value) {
        // A secret's wrong value is not repeated either.
        (Kind::Secret { .. }, _) => wanted(kind),
        (_, Value::Text(text)) => format!("{}, not {text:?}", wanted(kind)),
        (_, Value::Bool(value)) => format!("{}, not {value}", wanted(kind)),
        (_, Value::Integer(number)) => format!("{}, not {number}", wanted(kind)),
    })
}

fn wanted(kind: &Kind) -> String {
    match kind {
        Kind::Text(_) | Kind::OptionalText { .. } | Kind::Secret { .. } => "text in quotes".into(),
        Kind::Choice(words) => words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or "),
        Kind::Bool(_) => "true or false".into(),
        Kind::Integer { min, max, .. } => format!("a whole number from {min} to {max}"),
    }
}

fn sections() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().filter_map(|setting| Some(setting.key.split_once('.')?.0))
}

/// Words for the known name that is nearest to a misspelt one; empty when none is near.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>, words: impl Fn(&str) -> String) -> String {
    let (distance, near) =
        known.map(|candidate| (edits(name, candidate), candidate)).min().unwrap_or((usize::MAX, ""));
    // A third of the name: "listn" finds "listen", "colour" finds nothing.
    if distance <= name.len().div_ceil(3) { words(near) } else { String::new() }
}

/// Levenshtein's distance, in characters.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::{Layers, Origin, edits};
    use std::path::Path;

    fn file(text: &str) -> Layers {
        let mut layers = Layers::default();
        layers.file(Path::new("kiln.toml"), text);
        layers
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let mut layers =
            file("[serve]\nlisten = \"1.1.1.1:1\"\nbody_limit_bytes = 4096\n[log]\nfilter = \"warn\"\n");
        layers.environment(pairs(&[("KILN_SERVE_LISTEN", "2.2.2.2:2"), ("KILN_LOG_FILTER", "debug")]));
        layers.text("serve.listen", "3.3.3.3:3", Origin("--listen".into()));
        assert_eq!(layers.problems(), [""; 0]);
        assert_eq!(layers.get_text("serve.listen").as_deref(), Some("3.3.3.3:3"));
        assert_eq!(layers.get_text("log.filter").as_deref(), Some("debug"));
        assert_eq!(layers.get_integer("serve.body_limit_bytes"), 4096);
        assert_eq!(layers.get_integer("queue.max_attempts"), 5);
        assert_eq!(layers.origin("serve.listen"), Some(&Origin("--listen".into())));
        assert_eq!(layers.origin("serve.body_limit_bytes"), Some(&Origin("kiln.toml:3".into())));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_one() {
        let layers = file("\n[serve]\nlistn = \"x\"\n[queu]\n[work]\ncolour = 1\n");
        for line in [
            "kiln.toml:3: there is no setting serve.listn; did you mean serve.listen?",
            "kiln.toml:4: there is no section [queu]; did you mean [queue]?",
            "kiln.toml:6: there is no setting work.colour",
        ] {
            assert!(layers.problems().iter().any(|known| known == line), "{line}: {:?}", layers.problems());
        }
        assert_eq!(layers.problems().len(), 3, "{:?}", layers.problems());
    }

    #[test]
    fn a_wrong_value_is_named_with_what_is_wanted() {
        let layers = file("[log]\nformat = \"xml\"\n");
        assert_eq!(layers.problems(), [r#"kiln.toml:2: log.format must be "text" or "json", not "xml""#]);
        let layers = file("[queue]\nlease_seconds = 0\n");
        assert_eq!(
            layers.problems(),
            ["kiln.toml:2: queue.lease_seconds must be a whole number from 1 to 3600, not 0"]
        );
        let layers = file("[queue]\nlease_seconds = 4.5\n");
        assert_eq!(
            layers.problems(),
            [
                "kiln.toml:2: queue.lease_seconds must be a whole number from 1 to 3600, not a number with a fraction"
            ]
        );
        let mut layers = Layers::default();
        layers.environment(pairs(&[("KILN_SERVE_INSECURE_NO_AUTH", "maybe")]));
        assert_eq!(
            layers.problems(),
            [r#"KILN_SERVE_INSECURE_NO_AUTH: serve.insecure_no_auth must be true or false, not "maybe""#]
        );
    }

    #[test]
    fn a_file_that_is_no_toml_is_named_with_its_line() {
        let layers = file("[serve]\nlisten = \n");
        assert!(layers.problems()[0].starts_with("kiln.toml:2: "), "{:?}", layers.problems());
    }

    #[test]
    fn a_wrong_secret_is_not_repeated() {
        let layers = file("[database]\nurl = 4711\n");
        assert_eq!(layers.problems(), ["kiln.toml:2: database.url must be text in quotes"]);
    }

    #[test]
    fn a_variable_of_somebody_else_is_a_warning() {
        let mut layers = Layers::default();
        layers.environment(pairs(&[("KILN_SERVE_LISTN", "x"), ("KILN_PORT_80_TCP", "y"), ("PATH", "z")]));
        assert_eq!(layers.problems(), [""; 0]);
        assert_eq!(layers.warnings().len(), 2);
        assert!(layers.warnings()[0].ends_with("did you mean KILN_SERVE_LISTEN?"), "{:?}", layers.warnings());
    }

    #[test]
    fn distances_are_levenshteins() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("same", "same"), 0);
    }
}
