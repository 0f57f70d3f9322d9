//! Typed access to the fields of a JSON object, with errors that name file and field.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// One JSON object and where it came from. `null` counts as absent, as it does in transformers.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub(crate) origin: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Views `value`, which must be an object.
    pub(crate) fn new(origin: &'a str, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Fields { origin, map }),
            other => Err(Error::Config {
                origin: origin.to_owned(),
                field: "(whole file)".to_owned(),
                problem: format!("must be a JSON object, is {}", kind(other)),
            }),
        }
    }

    pub(crate) fn error(&self, field: &str, problem: impl Into<String>) -> Error {
        Error::Config {
            origin: self.origin.to_owned(),
            field: field.to_owned(),
            problem: problem.into(),
        }
    }

    fn wrong(&self, field: &str, wanted: &str, found: &Value) -> Error {
        self.error(field, format!("must be {wanted}, is {}", kind(found)))
    }

    /// True where the key is present, even with `null`.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<Fields<'a>>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields {
                origin: self.origin,
                map,
            })),
            Some(other) => Err(self.wrong(field, "an object", other)),
        }
    }

    /// The object under `field`, where there is one; no error for other types.
    pub(crate) fn object_if_object(&self, field: &str) -> Option<Fields<'a>> {
        Some(Fields {
            origin: self.origin,
            map: self.get(field)?.as_object()?,
        })
    }

    /// True where both objects hold the same fields with the same values.
    pub(crate) fn same_as(&self, other: &Fields) -> bool {
        self.map == other.map
    }

    /// A whole number in `min..=max`.
    pub(crate) fn int(&self, field: &str, min: usize, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let number = value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (min..=max).contains(n));
        match (number, value) {
            (Some(n), _) => Ok(Some(n)),
            (None, Value::Number(n)) => Err(self.error(
                field,
                format!("must be a whole number from {min} to {max}, is {n}"),
            )),
            (None, other) => Err(self.wrong(field, "a whole number", other)),
        }
    }

    pub(crate) fn required_int(&self, field: &str, min: usize, max: usize) -> Result<usize> {
        self.int(field, min, max)?
            .ok_or_else(|| self.error(field, "is missing; take config.json from the model's page"))
    }

    /// A finite number.
    pub(crate) fn float(&self, field: &str) -> Result<Option<f64>> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Ok(Some(x)),
                None => Err(self.wrong(field, "a finite number", value)),
            },
        }
    }

    /// A finite number in `min..=max`.
    pub(crate) fn float_in(&self, field: &str, min: f64, max: f64) -> Result<Option<f64>> {
        match self.float(field)? {
            Some(x) if !(min..=max).contains(&x) => {
                Err(self.error(field, format!("must be from {min} to {max}, is {x}")))
            }
            other => Ok(other),
        }
    }

    pub(crate) fn bool(&self, field: &str) -> Result<Option<bool>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(field, "true or false", other)),
        }
    }

    pub(crate) fn str(&self, field: &str) -> Result<Option<&'a str>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(field, "a string", other)),
        }
    }

    pub(crate) fn array(&self, field: &str) -> Result<Option<&'a [Value]>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong(field, "a list", other)),
        }
    }

    /// One token id or a list of them. Negative ids (some files write -1) mean "none".
    pub(crate) fn token_ids(&self, field: &str) -> Result<Vec<u32>> {
        let items = match self.get(field) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let mut ids = Vec::with_capacity(items.len());
        for item in items {
            match (item.as_u64().map(u32::try_from), item.as_i64()) {
                (Some(Ok(id)), _) => ids.push(id),
                (None, Some(_)) => {}
                _ => {
                    return Err(self.error(
                        field,
                        "must be a token id or a list of token ids (whole numbers below 2^32)",
                    ));
                }
            }
        }
        Ok(ids)
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
