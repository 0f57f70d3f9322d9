//! Values of flags.
use std::ops::RangeInclusive;

/// Token counts with vLLM's suffixes: `32K` is 32·1024, `32k` is 32·1000; M, m, G and g likewise.
pub fn tokens(text: &str) -> Result<usize, String> {
    const MAX: u64 = 1 << 31;
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let unit: u64 = match suffix {
        "" => 1,
        "k" => 1000,
        "K" => 1 << 10,
        "m" => 1_000_000,
        "M" => 1 << 20,
        "g" => 1_000_000_000,
        "G" => 1 << 30,
        _ => return Err("expected a number of tokens such as 4096, 32K (32·1024) or 32k (32·1000)".into()),
    };
    let value: f64 = number.parse().map_err(|_| "expected a number of tokens such as 4096 or 32K".to_owned())?;
    let value = value * unit as f64;
    if value.fract() != 0.0 {
        return Err("is not a whole number of tokens".into());
    }
    if !(1.0..=MAX as f64).contains(&value) {
        return Err(format!("must be from 1 to {MAX}"));
    }
    Ok(value as usize)
}

/// Sizes of memory: `80GB` (10⁹), `80GiB` (2³⁰), a plain number is bytes.
pub fn memory(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let unit: u64 = match suffix.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "mb" | "m" => 1_000_000,
        "mib" => 1 << 20,
        "gb" | "g" => 1_000_000_000,
        "gib" => 1 << 30,
        _ => return Err("expected a size such as 80GB or 24GiB".into()),
    };
    let value: f64 = number.parse().map_err(|_| "expected a size such as 80GB or 24GiB".to_owned())?;
    let bytes = value * unit as f64;
    if !(1e6..=1e15).contains(&bytes) {
        return Err("must be from 1MB to 1000000GB".into());
    }
    Ok(bytes as u64)
}

/// `--top-k`; -1 is off too, as in vLLM.
pub fn top_k(text: &str) -> Result<u32, String> {
    match text {
        "-1" => Ok(0),
        _ => text.parse().map_err(|_| "expected a whole number; 0 is off".to_owned()),
    }
}

/// A share above 0, at most 1.
pub fn share(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "expected a number such as 0.9".to_owned())?;
    if value > 0.0 && value <= 1.0 { Ok(value) } else { Err("must be above 0 and at most 1".into()) }
}

/// A probability, 0 and 1 included.
pub fn probability(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "expected a number such as 0.8".to_owned())?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("must be from 0 to 1".into()) }
}

/// A count within a range.
pub fn count_in(range: RangeInclusive<usize>) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| {
        let value: usize = text.parse().map_err(|_| "expected a whole number".to_owned())?;
        if range.contains(&value) {
            Ok(value)
        } else {
            Err(format!("must be from {} to {}", range.start(), range.end()))
        }
    }
}

/// A share below 1, or 0.
pub fn range_ratio(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number such as 0.2".to_owned())?;
    if (0.0..1.0).contains(&value) { Ok(value) } else { Err("must be at least 0 and below 1".into()) }
}

/// `TOKEN=BIAS`.
pub fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let parts = text.split_once('=').and_then(|(token, bias)| Some((token.parse().ok()?, bias.parse().ok()?)));
    parts.ok_or_else(|| "expected a token's id and a number, such as 42=-1.5 or 42=-inf".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_suffixes() {
        for (text, value) in [("7", 7), ("4096", 4096), ("32K", 32768), ("32k", 32000), ("1.5K", 1536), ("1M", 1 << 20)]
        {
            assert_eq!(tokens(text), Ok(value), "{text}");
        }
        for text in ["", "K", "-1", "0", "1.2", "32KB", "1e3", "9999999999", "99G", "K32", "1..2", "∞"] {
            assert!(tokens(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_sizes() {
        for (text, value) in
            [("80GB", 80_000_000_000), ("80 gb", 80_000_000_000), ("24GiB", 24 << 30), ("1000000", 1_000_000)]
        {
            assert_eq!(memory(text), Ok(value), "{text}");
        }
        for text in ["", "80TBB", "-1GB", "0", "GB", "1e30GB"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn top_ks() {
        assert_eq!((top_k("50"), top_k("0"), top_k("-1")), (Ok(50), Ok(0), Ok(0)));
        assert!(top_k("-2").is_err() && top_k("1.5").is_err());
    }

    #[test]
    fn shares() {
        assert_eq!(share("0.9"), Ok(0.9));
        assert_eq!(share("1"), Ok(1.0));
        for text in ["0", "1.1", "-1", "NaN", "x"] {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
