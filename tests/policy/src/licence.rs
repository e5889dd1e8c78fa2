//! SPDX licence expressions, as far as packages use them.

/// Says whether an expression can be satisfied with licences of the list.
///
/// `OR` (also written `/`, as old packages do) needs one side, `AND` both; `WITH` joins a licence and its exception
/// into one name, as the list spells it.
///
/// # Errors
/// When the text is no expression: what was found where.
pub fn permits(expression: &str, allowed: &[String]) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let answer = any_of(&mut words, allowed)?;
    match words.next() {
        None => Ok(answer),
        Some(word) => Err(format!("unexpected {word:?}")),
    }
}

type Words<'a, 'b> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_, '_>, allowed: &[String]) -> Result<bool, String> {
    let mut answer = all_of(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        answer |= all_of(words, allowed)?;
    }
    Ok(answer)
}

fn all_of(words: &mut Words<'_, '_>, allowed: &[String]) -> Result<bool, String> {
    let mut answer = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        answer &= one(words, allowed)?;
    }
    Ok(answer)
}

fn one(words: &mut Words<'_, '_>, allowed: &[String]) -> Result<bool, String> {
    match words.next() {
        Some("(") => {
            let answer = any_of(words, allowed)?;
            words.next_if_eq(&")").map(|_| answer).ok_or_else(|| "a parenthesis is not closed".into())
        }
        None | Some(")" | "OR" | "AND" | "WITH") => Err("a licence is missing".into()),
        Some(licence) => {
            let mut name = licence.to_owned();
            if words.next_if_eq(&"WITH").is_some() {
                name = format!("{name} WITH {}", words.next().ok_or("an exception is missing")?);
            }
            Ok(allowed.contains(&name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::permits;

    fn check(expression: &str) -> Result<bool, String> {
        permits(
            expression,
            &["MIT", "Apache-2.0", "Zlib", "Apache-2.0 WITH LLVM-exception"].map(String::from),
        )
    }

    #[test]
    fn one_allowed_alternative_is_enough() {
        assert_eq!(check("GPL-3.0 OR MIT"), Ok(true));
        assert_eq!(check("GPL-3.0/MIT"), Ok(true));
        assert_eq!(check("GPL-3.0 OR LGPL-2.1"), Ok(false));
    }

    #[test]
    fn every_joined_licence_is_needed() {
        assert_eq!(check("MIT AND GPL-3.0"), Ok(false));
        assert_eq!(check("MIT AND (GPL-3.0 OR Zlib)"), Ok(true));
        assert_eq!(check("(MIT OR Apache-2.0) AND GPL-3.0"), Ok(false));
        assert_eq!(check("GPL-3.0 AND Zlib OR MIT"), Ok(true));
    }

    #[test]
    fn an_exception_belongs_to_its_licence() {
        assert_eq!(check("Apache-2.0 WITH LLVM-exception"), Ok(true));
        assert_eq!(check("Zlib WITH LLVM-exception"), Ok(false));
    }

    #[test]
    fn what_is_no_expression_is_said() {
        for broken in ["", "MIT OR", "(MIT", "MIT)", "MIT Zlib", "AND MIT", "MIT WITH"] {
            assert!(check(broken).is_err(), "{broken:?}");
        }
    }
}
