//! Tokens of PTX, each with the line that it stands on.

use crate::ParseError;

/// One token. A word keeps its dots (`ld.global.v4.b32`, `%tid.x`, `.reg`), since PTX gives no
/// meaning to space around them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    /// A name, directive, register or opcode with its modifiers.
    Word(&'a str),
    /// A literal that starts with a digit, uninterpreted.
    Number(&'a str),
    /// The inside of a string literal.
    Text(&'a str),
    /// One of `{ } [ ] ( ) < > , ; : @ ! | + - =`.
    Punct(char),
}

/// Splits `text` into tokens with their one-based lines.
///
/// # Errors
/// A character that PTX does not know, or a comment or string that never ends.
pub(crate) fn tokens(text: &str) -> Result<Vec<(Token<'_>, u32)>, ParseError> {
    let mut found = Vec::with_capacity(text.len() / 4);
    let mut rest = text;
    let mut line = 1;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '\n' => {
                line += 1;
                1
            }
            _ if c.is_ascii_whitespace() => 1,
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => {
                let end = rest.find("*/").ok_or_else(|| unfinished("comment", line))?;
                line += newlines(&rest[..end]);
                end + 2
            }
            '"' => {
                let end = rest[1..].find('"').ok_or_else(|| unfinished("string", line))?;
                found.push((Token::Text(&rest[1..=end]), line));
                line += newlines(&rest[1..=end]);
                end + 2
            }
            '0'..='9' => {
                let end = word_length(rest);
                found.push((Token::Number(&rest[..end]), line));
                end
            }
            'a'..='z' | 'A'..='Z' | '_' | '$' | '%' | '.' => {
                let end = word_length(rest);
                found.push((Token::Word(&rest[..end]), line));
                end
            }
            '{' | '}' | '[' | ']' | '(' | ')' | '<' | '>' | ',' | ';' | ':' | '@' | '!' | '|' | '+' | '-' | '=' => {
                found.push((Token::Punct(c), line));
                1
            }
            _ => {
                let what = format!("unexpected character {c:?}");
                return Err(ParseError::Syntax { line, what });
            }
        };
        rest = &rest[length..];
    }
    Ok(found)
}

/// Bytes of the word at the start of `text`; `::` belongs to it (`shared::cta`), a lone `:` does
/// not (a label).
fn word_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut end = 1;
    while let Some(&c) = bytes.get(end) {
        if c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.' | b'%') {
            end += 1;
        } else if c == b':' && bytes.get(end + 1) == Some(&b':') {
            end += 2;
        } else {
            break;
        }
    }
    end
}

fn newlines(text: &str) -> u32 {
    text.bytes().filter(|&c| c == b'\n').count() as u32
}

fn unfinished(what: &str, line: u32) -> ParseError {
    ParseError::Syntax { line, what: format!("this {what} never ends") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_dots_and_scopes_but_not_label_colons() {
        let text = "again: ld.shared::cta.b32 %r1, [%r2+-4]; // done\n@!%p1 bra $L__1;";
        let found: Vec<_> = tokens(text).unwrap();
        assert_eq!(found[0], (Token::Word("again"), 1));
        assert_eq!(found[1], (Token::Punct(':'), 1));
        assert_eq!(found[2], (Token::Word("ld.shared::cta.b32"), 1));
        assert_eq!(found.last(), Some(&(Token::Punct(';'), 2)));
        assert!(found.contains(&(Token::Number("4"), 1)));
    }

    #[test]
    fn what_ptx_does_not_know_is_named_with_its_line() {
        let message = tokens("\n\nmov #").unwrap_err().to_string();
        assert_eq!(message, "line 3: unexpected character '#'");
        assert!(tokens("/* open").is_err());
    }
}
