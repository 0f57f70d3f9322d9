//! Numbers as people read them.
use std::time::Duration;

/// `13.6 MB`, decimal as download pages and the engine's messages show them.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, &["bytes", "kB", "MB", "GB", "TB", "PB"])
}

/// `8.03 B` parameters.
pub fn count(n: u64) -> String {
    scaled(n as f64, &["", "K", "M", "B", "T"]).trim_end().to_owned()
}

/// `14,512,345`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `830 µs`, `34.1 ms`, `1.24 s`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1e-3 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{} ms", significant(seconds * 1e3))
    } else {
        format!("{} s", significant(seconds))
    }
}

/// `1` of `sequence` or `2 sequences`.
pub fn plural(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{} {noun}s", grouped(n as u64)) }
}

fn scaled(value: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    // 999.5 and more would round to 1000.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1e3;
        unit += 1;
    }
    let number = if unit == 0 { format!("{value:.0}") } else { significant(value) };
    format!("{number} {}", units[unit])
}

/// Three significant digits, from 1 to 999.
fn significant(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(13_648_208), "13.6 MB");
        assert_eq!(bytes(999_999), "1.00 MB");
        assert_eq!(count(8_030_261_248), "8.03 B");
        assert_eq!(count(12), "12");
        assert_eq!((grouped(7), grouped(1234), grouped(14_512_345)), ("7".into(), "1,234".into(), "14,512,345".into()));
        assert_eq!(duration(Duration::from_micros(830)), "830 µs");
        assert_eq!(duration(Duration::from_micros(34_120)), "34.1 ms");
        assert_eq!(duration(Duration::from_millis(1240)), "1.24 s");
        assert_eq!((plural(1, "token"), plural(2, "token")), ("1 token".into(), "2 tokens".into()));
    }
}
