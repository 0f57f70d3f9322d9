//! Stop strings: found across chunk borders, removed from the output, held back while incomplete.

/// Scans a stream of text for the first occurrence of any of several strings.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that was not released because a stop string may begin in it; shorter than the longest stop string.
    held: String,
    found: bool,
}

/// What [`StopStrings::push`] released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Text that belongs to the output for certain.
    pub text: String,
    /// A stop string was found: the output ends with `text`, everything later is ignored.
    pub stopped: bool,
}

impl StopStrings {
    /// Looks for `stops`; empty strings are ignored.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        StopStrings {
            stops: stops.into_iter().filter(|s| !s.is_empty()).collect(),
            held: String::new(),
            found: false,
        }
    }

    /// Adds a chunk and returns what is certain by now.
    ///
    /// The output ends before the occurrence that begins first; among those that are complete when this
    /// chunk has arrived, so that the answer does not wait for a longer one that may never be completed.
    pub fn push(&mut self, chunk: &str) -> Released {
        if self.found {
            return Released {
                text: String::new(),
                stopped: true,
            };
        }
        self.held.push_str(chunk);
        let first = self
            .stops
            .iter()
            .filter_map(|s| self.held.find(s.as_str()))
            .min();
        if let Some(at) = first {
            self.found = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Released {
                text,
                stopped: true,
            };
        }
        let keep = self.held.len() - self.possible_suffix();
        let rest = self.held.split_off(keep);
        Released {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// The text held back, when the output ends for another reason.
    pub fn finish(self) -> String {
        self.held
    }

    /// Length of the longest suffix of `held` that a stop string begins with.
    fn possible_suffix(&self) -> usize {
        let longest = |stop: &String| {
            let limit = self.held.len().min(stop.len() - 1);
            (1..=limit)
                .rev()
                .find(|n| self.held.as_bytes().ends_with(&stop.as_bytes()[..*n]))
                .map(|n| self.char_start(self.held.len() - n))
        };
        let start = self.stops.iter().filter_map(longest).min();
        start.map_or(0, |start| self.held.len() - start)
    }

    /// Stop strings are whole characters, so a match can only begin at one; this guards the split all the same.
    fn char_start(&self, at: usize) -> usize {
        (0..=at)
            .rev()
            .find(|i| self.held.is_char_boundary(*i))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(list: &[&str]) -> StopStrings {
        StopStrings::new(list.iter().map(|s| (*s).to_owned()))
    }

    fn released(text: &str, stopped: bool) -> Released {
        Released {
            text: text.to_owned(),
            stopped,
        }
    }

    #[test]
    fn across_chunks() {
        let mut s = stops(&["</answer>", "STOP"]);
        assert_eq!(s.push("42 </ans"), released("42 ", false));
        assert_eq!(s.push("wer"), released("", false));
        assert_eq!(s.push("> more"), released("", true));
        assert_eq!(s.push("x"), released("", true));
        assert_eq!(s.finish(), "");
    }

    #[test]
    fn false_alarms_are_released() {
        let mut s = stops(&["STOP"]);
        assert_eq!(s.push("ST"), released("", false));
        assert_eq!(s.push("ST"), released("ST", false));
        assert_eq!(s.push("A"), released("STA", false));
        assert_eq!(s.push("S"), released("", false));
        assert_eq!(s.finish(), "S");
    }

    #[test]
    fn nothing_is_held_without_stop_strings() {
        assert_eq!(stops(&["", ""]).push("abc"), released("abc", false));
    }

    proptest! {
        /// Against a search over the whole text, one character at a time and in random chunks.
        #[test]
        fn equals_a_naive_search(
            text in "[abé]{0,40}",
            list in prop::collection::vec("[abé]{1,5}", 0..4),
            cuts in prop::collection::vec(0usize..40, 0..8),
        ) {
            let chars: Vec<char> = text.chars().collect();
            let mut borders: Vec<usize> = cuts.into_iter().map(|c| c.min(chars.len())).collect();
            borders.extend([0, chars.len()]);
            borders.sort_unstable();

            // The naive answer: the first chunk border by which any stop string is complete, then the earliest.
            let mut want = (text.clone(), false);
            for border in &borders {
                let so_far: String = chars[..*border].iter().collect();
                if let Some(at) = list.iter().filter_map(|s| so_far.find(s.as_str())).min() {
                    want = (so_far[..at].to_owned(), true);
                    break;
                }
            }
            let mut s = StopStrings::new(list.clone());
            let mut got = (String::new(), false);
            for pair in borders.windows(2) {
                let chunk: String = chars[pair[0]..pair[1]].iter().collect();
                let r = s.push(&chunk);
                got.0.push_str(&r.text);
                got.1 = r.stopped;
                let held = text.len() - got.0.len();
                prop_assert!(got.1 || list.iter().all(|s| !got.0.contains(s.as_str())));
                prop_assert!(got.1 || held <= text.len());
            }
            got.0.push_str(&s.finish());
            prop_assert_eq!(got, want);
        }
    }
}
