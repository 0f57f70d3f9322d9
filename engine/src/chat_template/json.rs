//! The `tojson` filter.

use std::fmt::Write;

use minijinja::Error;
use minijinja::value::{Kwargs, Value, ValueKind};

use super::python::{MAX_DEPTH, invalid, number, str};

/// `json.dumps` as transformers configures it: non-ASCII kept, `, ` and `: ` between items, nothing escaped for HTML.
pub(super) fn tojson(
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    separators: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let ensure_ascii = ensure_ascii.or(kwargs.get("ensure_ascii")?).unwrap_or(false);
    let indent: Option<Value> = indent.or(kwargs.get("indent")?);
    let separators: Option<Value> = separators.or(kwargs.get("separators")?);
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let indent = match indent.filter(|v| !v.is_none() && !v.is_undefined()) {
        None => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_owned(),
            // Negative widths mean newlines only; a bound keeps a hostile template from filling memory.
            None => " ".repeat(i64::try_from(v)?.clamp(0, 64) as usize),
        }),
    };
    let mut item = if indent.is_some() { "," } else { ", " }.to_owned();
    let mut key = ": ".to_owned();
    if let Some(pair) = separators.filter(|v| !v.is_none() && !v.is_undefined()) {
        item = str(&pair.get_item_by_index(0)?)?;
        key = str(&pair.get_item_by_index(1)?)?;
    }
    let json = Json { ensure_ascii, indent, item, key, sort_keys };
    let mut out = String::new();
    json.value(value, &mut out, 0)?;
    Ok(Value::from(out))
}

struct Json {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Json {
    fn value(&self, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("tojson: the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value, out),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked();
                self.container(items, ('[', ']'), out, depth, |item, out| self.value(&item, out, depth + 1))?;
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|o| o.try_iter_pairs());
                let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
                if self.sort_keys {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.container(pairs.into_iter().map(Ok), ('{', '}'), out, depth, |(k, v), out| {
                    self.key(&k, out)?;
                    out.push_str(&self.key);
                    self.value(&v, out, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("tojson: {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn container<T>(
        &self,
        items: impl Iterator<Item = Result<T, Error>>,
        brackets: (char, char),
        out: &mut String,
        depth: usize,
        mut write: impl FnMut(T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let newline = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        out.push(brackets.0);
        let mut empty = true;
        for item in items {
            if !empty {
                out.push_str(&self.item);
            }
            empty = false;
            newline(depth + 1, out);
            write(item?, out)?;
        }
        if !empty {
            newline(depth, out);
        }
        out.push(brackets.1);
        Ok(())
    }

    fn key(&self, key: &Value, out: &mut String) -> Result<(), Error> {
        let mut text = String::new();
        match key.kind() {
            ValueKind::String => text.push_str(key.as_str().unwrap_or_default()),
            ValueKind::Number => self.number(key, &mut text),
            ValueKind::Bool => text.push_str(if key.is_true() { "true" } else { "false" }),
            ValueKind::None => text.push_str("null"),
            kind => return Err(invalid(format!("tojson: keys must be strings, not {kind}"))),
        }
        self.string(&text, out);
        Ok(())
    }

    fn number(&self, value: &Value, out: &mut String) {
        let start = out.len();
        number(value, out);
        let name = match &out[start..] {
            "nan" => "NaN",
            "inf" => "Infinity",
            "-inf" => "-Infinity",
            _ => return,
        };
        out.truncate(start);
        out.push_str(name);
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ensure_ascii && (c as u32) > 0x7e) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
