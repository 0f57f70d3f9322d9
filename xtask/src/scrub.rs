//! Rust source less its comments and literals, so that a rule about code finds code alone.

/// `source` with the contents of comments, strings and character literals blanked. Lines stay
/// lines, so that a finding's line number is right.
pub fn code_only(source: &str) -> String {
    let mut scrubber = Scrubber { chars: source.chars().collect(), at: 0, out: String::with_capacity(source.len()) };
    while scrubber.at < scrubber.chars.len() {
        scrubber.step();
    }
    scrubber.out
}

struct Scrubber {
    chars: Vec<char>,
    at: usize,
    out: String,
}

impl Scrubber {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn keep(&mut self) {
        self.out.push(self.peek(0));
        self.at += 1;
    }

    fn blank(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(&c) = self.chars.get(self.at) {
                self.out.push(if c == '\n' { '\n' } else { ' ' });
                self.at += 1;
            }
        }
    }

    fn step(&mut self) {
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => {
                while self.at < self.chars.len() && self.peek(0) != '\n' {
                    self.blank(1);
                }
            }
            ('/', '*') => self.block_comment(),
            ('"', _) => self.string(),
            ('r', '"' | '#') if !self.inside_word() => self.raw_string(),
            ('\'', _) => self.char_or_lifetime(),
            _ => self.keep(),
        }
    }

    /// Whether the current character continues an identifier. A `b` or `c` prefix does not count:
    /// `br"…"` and `cr"…"` are raw strings.
    fn inside_word(&self) -> bool {
        let word = |back: usize| {
            let before = self.at.checked_sub(back).map(|at| self.chars[at]);
            before.is_some_and(|c| c.is_alphanumeric() || c == '_')
        };
        let prefixed = self.at > 0 && matches!(self.chars[self.at - 1], 'b' | 'c');
        word(if prefixed { 2 } else { 1 })
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => {
                    depth += 1;
                    self.blank(2);
                }
                ('*', '/') => {
                    depth -= 1;
                    self.blank(2);
                    if depth == 0 {
                        return;
                    }
                }
                _ => self.blank(1),
            }
        }
    }

    fn string(&mut self) {
        self.keep();
        while self.at < self.chars.len() {
            match self.peek(0) {
                '\\' => self.blank(2),
                '"' => return self.keep(),
                _ => self.blank(1),
            }
        }
    }

    fn raw_string(&mut self) {
        let mut hashes = 0;
        while self.peek(1 + hashes) == '#' {
            hashes += 1;
        }
        if self.peek(1 + hashes) != '"' {
            // A raw identifier: r#type.
            return self.keep();
        }
        self.blank(2 + hashes);
        while self.at < self.chars.len() {
            let closes = self.peek(0) == '"' && (1..=hashes).all(|ahead| self.peek(ahead) == '#');
            if closes {
                return self.blank(1 + hashes);
            }
            self.blank(1);
        }
    }

    fn char_or_lifetime(&mut self) {
        if self.peek(1) == '\\' {
            // 'x', '\n', '\u{1F600}', '\'': the escape's first character is never the end.
            self.blank(3);
            while self.at < self.chars.len() && self.peek(0) != '\'' {
                self.blank(1);
            }
            self.blank(1);
        } else if self.peek(2) == '\'' {
            self.blank(3);
        } else {
            self.keep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<String> {
        let code = code_only(source);
        assert_eq!(code.lines().count(), source.lines().count());
        code.split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn comments_go() {
        assert_eq!(words("a // unsafe\nb"), ["a", "b"]);
        assert_eq!(words("a /* x /* unsafe */ y\n */ b"), ["a", "b"]);
        assert_eq!(words("a / b * c"), ["a", "b", "c"]);
    }

    #[test]
    fn strings_go() {
        assert_eq!(words(r#"a("un\"safe // x", b)"#), ["a", "b"]);
        assert_eq!(words("a(r#\"un\"safe\"#, b)"), ["a", "b"]);
        assert_eq!(words("a(br\"x\\\", b)"), ["a", "b", "b"]);
        assert_eq!(words("var\"x\" b"), ["var", "b"]);
        assert_eq!(words("r#type b"), ["r", "type", "b"]);
    }

    #[test]
    fn characters_go_and_lifetimes_stay() {
        assert_eq!(words("f('\"', x)"), ["f", "x"]);
        assert_eq!(words(r"f('\'', '\u{41}', '\\', x)"), ["f", "x"]);
        assert_eq!(words("fn f<'a>(x: &'a str)"), ["fn", "f", "a", "x", "a", "str"]);
    }
}
