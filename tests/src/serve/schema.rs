//! JSON schemas of an OpenAPI 3.1 document: whether a value fits one, and values that fit or nearly fit.
use serde_json::{Map, Value, json};

/// A document whose schemas refer to each other.
pub struct Document(pub Value);

/// Numbers that look random and are the same in every run.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        // splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Below a bound.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

impl Document {
    /// What a schema stands for.
    pub fn resolve<'a>(&'a self, mut schema: &'a Value) -> &'a Value {
        while let Some(reference) = schema["$ref"].as_str() {
            let path = reference.trim_start_matches('#');
            schema = self.0.pointer(path).unwrap_or(&Value::Null);
        }
        schema
    }

    /// What of a value does not fit a schema; `at` says where it is.
    pub fn misfit(&self, schema: &Value, value: &Value, at: &str) -> Option<String> {
        if schema.get("$ref").is_some() && self.resolve(schema).is_null() {
            return Some(format!("{at}: {schema} refers to nothing"));
        }
        let schema = self.resolve(schema);
        let misfits = |of: &Value| of.as_array().map(|all| all.iter().map(|one| self.misfit(one, value, at)).collect());
        let misfits = |key: &str| -> Option<Vec<Option<String>>> { misfits(&schema[key]) };
        if let Some(problem) = misfits("allOf").and_then(|all| all.into_iter().flatten().next()) {
            return Some(problem);
        }
        if let Some(any) = misfits("anyOf").or_else(|| misfits("oneOf"))
            && any.iter().all(Option::is_some)
        {
            return Some(format!(
                "{at}: none of the forms: {}",
                any.into_iter().flatten().collect::<Vec<_>>().join("; ")
            ));
        }
        if let Some(all) = schema["enum"].as_array()
            && !all.contains(value)
        {
            return Some(format!("{at}: {value} is not in {all:?}"));
        }
        if schema.get("const").is_some_and(|one| one != value) {
            return Some(format!("{at}: {value} is not {}", schema["const"]));
        }
        let types: Vec<&str> = types(schema);
        if !types.is_empty() && !types.iter().any(|name| has_type(name, value)) {
            return Some(format!("{at}: {value} is no {types:?}"));
        }
        match value {
            Value::Object(object) => self.object_misfit(schema, object, at),
            Value::Array(list) => {
                let items = schema.get("items").filter(|items| items.is_object())?;
                list.iter().enumerate().find_map(|(i, one)| self.misfit(items, one, &format!("{at}[{i}]")))
            }
            Value::Number(number) => {
                let number = number.as_f64()?;
                let below = schema["minimum"].as_f64().is_some_and(|least| number < least);
                let above = schema["maximum"].as_f64().is_some_and(|most| number > most);
                (below || above).then(|| format!("{at}: {number} is out of bounds"))
            }
            _ => None,
        }
    }

    fn object_misfit(&self, schema: &Value, object: &Map<String, Value>, at: &str) -> Option<String> {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        if let Some(name) = required.into_iter().find(|name| !object.contains_key(*name)) {
            return Some(format!("{at} lacks {name}"));
        }
        let properties = schema["properties"].as_object();
        object.iter().find_map(|(name, value)| {
            let at = format!("{at}.{name}");
            match (properties.and_then(|all| all.get(name)), &schema["additionalProperties"]) {
                (Some(property), _) => self.misfit(property, value, &at),
                (None, Value::Bool(false)) => Some(format!("{at} is not in the schema")),
                (None, more @ Value::Object(_)) => self.misfit(more, value, &at),
                (None, _) => None,
            }
        })
    }

    /// A value that fits.
    pub fn generate(&self, schema: &Value, random: &mut Random, depth: usize) -> Value {
        let schema = self.resolve(schema);
        if let Some(all) = schema["enum"].as_array().filter(|all| !all.is_empty()) {
            return random.pick(all).clone();
        }
        if let Some(one) = schema.get("const") {
            return one.clone();
        }
        for key in ["oneOf", "anyOf"] {
            if let Some(forms) = schema[key].as_array().filter(|forms| !forms.is_empty()) {
                return self.generate(random.pick(forms), random, depth);
            }
        }
        if let Some(parts) = schema["allOf"].as_array() {
            let mut all = Map::new();
            for part in parts.iter().chain([&json!({ "type": "object", "properties": schema["properties"] })]) {
                if let Value::Object(part) = self.generate(part, random, depth) {
                    all.extend(part);
                }
            }
            return Value::Object(all);
        }
        let types = types(schema);
        if types.is_empty() {
            return if schema["properties"].is_object() {
                self.generate_object(schema, random, depth)
            } else {
                anything(random, depth)
            };
        }
        match *random.pick(&types) {
            "object" => self.generate_object(schema, random, depth),
            "array" => {
                let least = schema["minItems"].as_u64().unwrap_or(0) as usize;
                let count = least + if depth > 4 { 0 } else { random.below(3) };
                (0..count).map(|_| self.generate(&schema["items"], random, depth + 1)).collect()
            }
            "string" => Value::String(text(random, schema["minLength"].as_u64().unwrap_or(0) as usize)),
            kind @ ("integer" | "number") => {
                let least = schema["minimum"].as_f64().or(schema["exclusiveMinimum"].as_f64()).unwrap_or(-3.0);
                let most = schema["maximum"].as_f64().unwrap_or(least + 10.0);
                let share = (random.below(1001) as f64 / 1000.0).max(0.001);
                let number = least + (most - least) * share;
                if kind == "integer" { json!(number.round() as i64) } else { json!(number) }
            }
            "boolean" => json!(random.below(2) == 0),
            _ => Value::Null,
        }
    }

    fn generate_object(&self, schema: &Value, random: &mut Random, depth: usize) -> Value {
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut object = Map::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            if required.contains(&name.as_str()) || (depth < 5 && random.below(4) == 0) {
                object.insert(name.clone(), self.generate(property, random, depth + 1));
            }
        }
        if schema["additionalProperties"].is_object() && depth < 5 {
            for _ in 0..random.below(3) {
                object.insert(text(random, 1), self.generate(&schema["additionalProperties"], random, depth + 1));
            }
        }
        Value::Object(object)
    }
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn has_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    }
}

/// Strings that break things.
fn text(random: &mut Random, least: usize) -> String {
    let odd = [
        "",
        "hello",
        "What is 12 plus 7?",
        "\u{0}",
        "ﷺ🦀é\u{301}",
        "\"}]",
        "<|im_start|>",
        "\n\n",
        "{{ 7*7 }}",
        "user",
    ];
    let mut text = (*random.pick(&odd)).to_owned();
    while text.chars().count() < least {
        text.push('x');
    }
    text
}

/// Any JSON.
fn anything(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth > 5 { 6 } else { 8 }) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 => json!(random.next()),
        3 => json!(-(random.below(1000) as i64)),
        4 => json!(random.below(1000) as f64 / 7.0 * 1e30),
        5 => Value::String(text(random, 0)),
        6 => (0..random.below(3)).map(|_| anything(random, depth + 1)).collect(),
        _ => {
            let pairs = (0..random.below(3)).map(|_| (text(random, 0), anything(random, depth + 1)));
            Value::Object(pairs.collect())
        }
    }
}

/// Changes something somewhere: another type, a missing field, one too many.
pub fn damage(value: &mut Value, random: &mut Random) {
    let deeper = random.below(3) > 0;
    match value {
        Value::Object(object) if deeper && !object.is_empty() => {
            let at = random.below(object.len());
            if let Some((name, one)) = object.iter_mut().nth(at) {
                if random.below(4) == 0 {
                    let name = name.clone();
                    object.remove(&name);
                } else {
                    damage(one, random);
                }
            }
        }
        Value::Array(list) if deeper && !list.is_empty() => {
            let at = random.below(list.len());
            damage(&mut list[at], random);
        }
        _ => *value = anything(random, 0),
    }
}
