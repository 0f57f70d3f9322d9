//! What Jinja2 templates take from Python and minijinja does differently: `repr`, string methods, tests.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};

/// Values nested deeper are refused: the functions below recurse.
pub(super) const MAX_DEPTH: usize = 128;

/// Installs everything in this module.
pub(super) fn install(env: &mut Environment<'_>) {
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", super::json::tojson);
    env.add_filter("string", |v: &Value| str(v));
    env.add_filter("trim", |s: &str, chars: Option<&str>| strip(s, chars, true, true).to_owned());
    for name in ["e", "escape"] {
        env.add_filter(name, |v: &Value| str(v).map(|text| escape(&text)));
    }
    env.add_test("sequence", |v: &Value| sized(v.kind()));
    env.add_test("iterable", |v: &Value| sized(v.kind()) || v.kind() == ValueKind::Iterable);
    env.set_formatter(|out, _state, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&str(value)?).map_err(Error::from),
    });
}

/// Python's `len()` and `[]` work on it; Jinja2's Undefined counts, being an empty sequence.
fn sized(kind: ValueKind) -> bool {
    matches!(kind, ValueKind::String | ValueKind::Bytes | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
}

pub(super) fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

/// markupsafe's escaping, which writes quotes as numbers and leaves the slash alone.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// Python's `str(value)`.
pub(super) fn str(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let mut out = String::new();
    repr(value, &mut out, 0)?;
    Ok(out)
}

/// Python's `repr(value)`, appended to `out`.
fn repr(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("a value is nested too deeply to be printed"));
    }
    match value.kind() {
        ValueKind::String => repr_str(value.as_str().unwrap_or_default(), out),
        ValueKind::Number => number(value, out),
        ValueKind::Seq => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            for (i, item) in value.try_iter()?.checked().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&item?, out, depth + 1)?;
            }
            if tuple && value.len() == Some(1) {
                out.push(',');
            }
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map if value.as_object().is_some_and(|o| o.try_iter_pairs().is_some()) => {
            out.push('{');
            let pairs = value.as_object().and_then(|o| o.try_iter_pairs());
            for (i, (key, item)) in pairs.into_iter().flatten().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&key, out, depth + 1)?;
                out.push_str(": ");
                repr(&item, out, depth + 1)?;
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
    Ok(())
}

fn repr_str(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        let _ = match c {
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\\' => write!(out, "\\\\"),
            c if c == quote => write!(out, "\\{c}"),
            c if !printable(c) && (c as u32) < 0x100 => write!(out, "\\x{:02x}", c as u32),
            c if !printable(c) && (c as u32) < 0x10000 => write!(out, "\\u{:04x}", c as u32),
            c if !printable(c) => write!(out, "\\U{:08x}", c as u32),
            c => write!(out, "{c}"),
        };
    }
    out.push(quote);
}

/// `str.isprintable` but for unassigned code points: other, separator but not the space.
fn printable(c: char) -> bool {
    let format = matches!(c as u32,
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e
        | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0xe000..=0xf8ff | 0xe0000..=0xe007f | 0xf0000..);
    !(c.is_control() || format || (c.is_whitespace() && c != ' '))
}

/// An int or float as Python writes it.
pub(super) fn number(value: &Value, out: &mut String) {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => float(x, out),
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

/// `float.__repr__`: shortest digits, exponent below 1e-4 and from 1e16.
fn float(x: f64, out: &mut String) {
    if x.is_nan() {
        out.push_str("nan");
        return;
    }
    if x.is_infinite() {
        out.push_str(if x > 0.0 { "inf" } else { "-inf" });
        return;
    }
    let scientific = format!("{x:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let _ = match exponent {
        -4..=15 => write!(out, "{x:?}"),
        e if e < 0 => write!(out, "{mantissa}e-{:02}", -e),
        e => write!(out, "{mantissa}e+{e:02}"),
    };
}

/// Python's methods on strings and lists: those here first, then minijinja's own collection.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, name, args)?
    {
        return Ok(result);
    }
    if value.kind() == ValueKind::Seq && name == "index" {
        let (wanted,): (&Value,) = from_args(args)?;
        for (i, item) in value.try_iter()?.checked().enumerate() {
            if item? == *wanted {
                return Ok(Value::from(i));
            }
        }
        return Err(invalid("the value is not in the list"));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => {
            let (sep, max, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let sep: Option<Value> = sep.or(kwargs.get("sep")?);
            let max: Option<i64> = max.or(kwargs.get("maxsplit")?);
            kwargs.assert_all_used()?;
            let sep = sep.filter(|s| !s.is_none());
            let sep = match &sep {
                None => None,
                Some(s) => Some(s.as_str().ok_or_else(|| invalid("the separator must be a string"))?),
            };
            let parts = split(text, sep, max.unwrap_or(-1), name == "rsplit")?;
            Value::from(parts)
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            Value::from(splitlines(text, keep.unwrap_or(false)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => {
            let (sep,): (&str,) = from_args(args)?;
            match text.split_once(sep) {
                Some((a, b)) => strings([a, sep, b]),
                None => strings([text, "", ""]),
            }
        }
        "rpartition" => {
            let (sep,): (&str,) = from_args(args)?;
            match text.rsplit_once(sep) {
                Some((a, b)) => strings([a, sep, b]),
                None => strings(["", "", text]),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn strings(parts: [&str; 3]) -> Value {
    Value::from(parts.map(str::to_owned).to_vec())
}

/// `str.isspace` of one character.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let unwanted = |c: char| match chars {
        Some(set) => set.contains(c),
        None => is_space(c),
    };
    let mut rest = text;
    if start {
        rest = rest.trim_start_matches(unwanted);
    }
    if end {
        rest = rest.trim_end_matches(unwanted);
    }
    rest
}

/// `str.split` and `str.rsplit`; a negative `max` means no limit.
fn split(text: &str, sep: Option<&str>, max: i64, from_end: bool) -> Result<Vec<String>, Error> {
    let limit = usize::try_from(max).map_or(usize::MAX, |m| m.saturating_add(1));
    let own = |parts: Vec<&str>| parts.into_iter().map(str::to_owned).collect();
    match (sep, from_end) {
        (Some(""), _) => Err(invalid("empty separator")),
        (Some(sep), false) => Ok(own(text.splitn(limit, sep).collect())),
        (Some(sep), true) => {
            let mut parts: Vec<&str> = text.rsplitn(limit, sep).collect();
            parts.reverse();
            Ok(own(parts))
        }
        (None, false) => {
            let mut parts = Vec::new();
            let mut rest = text.trim_start_matches(is_space);
            while !rest.is_empty() {
                let cut = match parts.len() + 1 < limit {
                    true => rest.find(is_space).unwrap_or(rest.len()),
                    false => rest.len(),
                };
                parts.push(&rest[..cut]);
                rest = rest[cut..].trim_start_matches(is_space);
            }
            Ok(own(parts))
        }
        (None, true) => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() {
                let last = match parts.len() + 1 < limit {
                    true => rest.char_indices().rev().find(|(_, c)| is_space(*c)),
                    false => None,
                };
                let cut = last.map_or(0, |(i, c)| i + c.len_utf8());
                parts.push(&rest[cut..]);
                rest = rest[..cut].trim_end_matches(is_space);
            }
            parts.reverse();
            Ok(own(parts))
        }
    }
}

fn splitlines(text: &str, keep: bool) -> Vec<String> {
    let ends_line =
        |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(ends_line).unwrap_or(rest.len());
        let after = &rest[end..];
        let width = match after.starts_with("\r\n") {
            true => 2,
            false => after.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(rest[..end + if keep { width } else { 0 }].to_owned());
        rest = &rest[end + width..];
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        for (x, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (1e-5, "1e-05"),
            (1e-4, "0.0001"),
            (1.5e300, "1.5e+300"),
            (-0.0, "-0.0"),
            (123_456.789, "123456.789"),
        ] {
            let mut out = String::new();
            float(x, &mut out);
            assert_eq!(out, text);
        }
    }
}
