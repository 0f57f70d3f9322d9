//! Dates for templates that write today's into the system message.

/// `strftime` in the C locale on a UTC time; unknown directives are copied, as glibc does.
pub(super) fn strftime(format: &str, unix_seconds: i64) -> String {
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let days = unix_seconds.div_euclid(86_400);
    let seconds = unix_seconds.rem_euclid(86_400);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let (year, month, day) = civil(days);
    let weekday = DAYS[(days + 4).rem_euclid(7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        // GNU's "no padding" flag.
        let bare = directive == Some('-');
        if bare {
            directive = chars.next();
        }
        let two = |n: i64| {
            if bare { n.to_string() } else { format!("{n:02}") }
        };
        let text = match directive {
            Some('Y') => year.to_string(),
            Some('y') => two(year.rem_euclid(100)),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two(hour12),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('j') => format!("{:03}", days - civil_days(year) + 1),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('n') => "\n".to_owned(),
            Some('t') => "\t".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        };
        out.push_str(&text);
    }
    out
}

/// Days from 1970-01-01 to January 1st of `year`.
fn civil_days(year: i64) -> i64 {
    let y = year - 1;
    365 * (year - 1970) + (y.div_euclid(4) - 492) - (y.div_euclid(100) - 19) + (y.div_euclid(400) - 4)
}

/// Year, month and day of a day number; proleptic Gregorian.
fn civil(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days.div_euclid(366);
    while civil_days(year + 1) <= days {
        year += 1;
    }
    let leap = civil_days(year + 1) - civil_days(year) == 366;
    let mut rest = days - civil_days(year);
    for (i, len) in [31, 28 + i64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30].iter().enumerate() {
        if rest < *len {
            return (year, i as i64 + 1, rest + 1);
        }
        rest -= len;
    }
    (year, 12, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01 Thursday 001"),
            (951_782_400, "2000-02-29 Tuesday 060"),
            (1_735_603_200, "2024-12-31 Tuesday 366"),
            (-1, "1969-12-31 Wednesday 365"),
            (4_102_444_800, "2100-01-01 Friday 001"),
        ] {
            assert_eq!(strftime("%F %A %j", seconds), text);
        }
        assert_eq!(strftime("%-d %b %Y %-I%p %q%", 951_782_400), "29 Feb 2000 12AM %q%");
    }
}
